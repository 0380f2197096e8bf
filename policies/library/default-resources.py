"""Containers without requests and limits get some.

Reads spec.resources; writes the resources of init and plain containers.
Rule: CREATE of pods.
A resource for which the container names a request or a limit stays as it is: a default could
contradict it (a request above the limit), and the API server takes a limit for the request too.
"""

from objects import containers_of, edit, pod_of, read

REQUESTS = {"cpu": "50m", "memory": "128Mi"}
LIMITS = {"memory": "512Mi"}  # none for CPU: a limit there slows a pod down on an idle node


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None or read(pod, "spec.resources", dict):
        return  # resources for the pod as a whole
    for container in containers_of(obj, request, "initContainers", "containers"):
        own = {
            name
            for kind in ("requests", "limits")
            for name in read(container, f"resources.{kind}", dict)
        }
        for kind, defaults in ("requests", REQUESTS), ("limits", LIMITS):
            for name, amount in defaults.items():
                if name not in own:
                    edit(container, f"resources.{kind}", dict)[name] = amount
