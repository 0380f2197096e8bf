"""A digest is pulled once, anything else at each start.

Reads the image and writes the imagePullPolicy of init and plain containers.
Rule: CREATE of pods.
The user's own value is overwritten: where there is none, the API server has already filled one in,
and the two can't be told apart. "Never" stays.
"""


def mutate(obj, request):
    if request.pod(obj) is None:
        return
    for container in request.containers(obj, "initContainers", "containers"):
        if container.get("imagePullPolicy") != "Never":
            pinned = "@" in request.read(container, "image", str)
            container["imagePullPolicy"] = "IfNotPresent" if pinned else "Always"
