"""Containers without requests and limits get some.

Reads spec.resources; writes the resources of init and plain containers.
Rule: CREATE of pods; UPDATE of pods/resize.
A resource for which the container names a request or a limit stays as it is: a default could
contradict it (a request above the limit), and the API server takes a limit for the request too.
A container that is resized gets requests only: a limit could be below what it uses already. What
it has can't be taken away by a resize, the API server sees to that.
"""

from objects import containers_of, edit, pod_of, read

REQUESTS = {"cpu": "50m", "memory": "128Mi"}
LIMITS = {"memory": "512Mi"}  # none for CPU: a limit there slows a pod down on an idle node


def mutate(obj, request):
    resized = request.sub_resource == "resize"
    pod = obj if resized else pod_of(obj, request)
    if pod is None or read(pod, "spec.resources", dict):
        return  # resources for the pod as a whole
    for container in containers_of(obj, request, "initContainers", "containers"):
        fill_in(container, {"requests": REQUESTS} | ({} if resized else {"limits": LIMITS}))


def fill_in(container, defaults):
    kinds = ("requests", "limits")
    own = {name for kind in kinds for name in read(container, f"resources.{kind}", dict)}
    for kind, amounts in defaults.items():
        for name, amount in amounts.items():
            if name not in own:
                edit(container, f"resources.{kind}", dict)[name] = amount
