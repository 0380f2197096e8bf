"""Images are pinned: each container names a tag other than latest, or a digest.

Reads the image of init, plain and ephemeral containers, in pods and in pod templates; what an
UPDATE leaves as it was stays allowed.
Rule: CREATE, UPDATE of pods, pods/ephemeralcontainers.
"""

from objects import containers_of, read


def validate(obj, request):
    for container in containers_of(obj, request, field="image"):
        name, image = container.get("name"), read(container, "image", str)
        if not pinned(image):
            request.deny(
                f'container "{name}": image "{image}" has a mutable tag; pin a version or a digest'
            )


def pinned(image):
    if "@" in image:
        return True  # a digest
    tag = image.rpartition("/")[2].partition(":")[2]  # a colon before the slash is a port
    return tag not in ("", "latest")
