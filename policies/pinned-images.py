"""Images are pinned: each container names a tag other than latest, or a digest.

Reads spec.containers, initContainers and ephemeralContainers. Rule: CREATE, UPDATE of pods and
pods/ephemeralcontainers.
"""


def validate(obj, request):
    if request.kind.kind != "Pod" or obj is None:
        return
    for part in ("initContainers", "containers", "ephemeralContainers"):
        for container in obj["spec"].get(part) or []:
            name, image = container["name"], container["image"]
            if not pinned(image):
                request.deny(
                    f'container "{name}": image "{image}" has a mutable tag; '
                    "pin a version or a digest"
                )


def pinned(image):
    if "@sha256:" in image:
        return True
    tag = image.rpartition("/")[2].partition(":")[2]  # a colon before the slash is a port
    return tag not in ("", "latest")
