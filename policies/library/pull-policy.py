"""A digest is pulled once, anything else at each start.

Reads the image and writes the imagePullPolicy of init and plain containers.
Rule: CREATE of pods.
The user's own value is overwritten: where there is none, the API server has already filled one in,
and the two can't be told apart. "Never" stays.
"""

from objects import containers_of, pod_of, read


def mutate(obj, request):
    if pod_of(obj, request) is None:
        return
    for container in containers_of(obj, request, "initContainers", "containers"):
        if container.get("imagePullPolicy") != "Never":
            pinned = "@" in read(container, "image", str)
            container["imagePullPolicy"] = "IfNotPresent" if pinned else "Always"
