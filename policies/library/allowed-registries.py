"""Images come from the company's registries only.

Reads the image of init, plain and ephemeral containers, in pods and in pod templates; what an
UPDATE leaves as it was stays allowed.
Rule: CREATE, UPDATE of pods, pods/ephemeralcontainers.
"""

from objects import containers_of, read

ALLOWED = (  # each ends with a slash: else registry.example.com.evil.test would pass
    "registry.example.com/",
    "mirror.example.com/",
)


def validate(obj, request):
    for container in containers_of(obj, request, field="image"):
        name, image = container.get("name"), read(container, "image", str)
        if not image.startswith(tuple(ALLOWED)):
            request.deny(
                f'container "{name}": image "{image}" is from no allowed registry; '
                f"take it from {' or '.join(ALLOWED)}"
            )
