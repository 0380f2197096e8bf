"""Images come from a mirror: nginx:1.27 becomes mirror.example.com/docker/library/nginx:1.27.

Reads and writes the image of init, plain and ephemeral containers, in pods and pod templates.
Rule: CREATE, UPDATE of pods and pods/ephemeralcontainers.
Tags and digests stay. An image from a registry that is not in the table stays as it is. In a pod
that exists, only an image that the UPDATE changes is rewritten: a rewrite restarts the container.
"""

from objects import containers_of, read

MIRRORS = {  # registry: what replaces it
    "docker.io": "mirror.example.com/docker",
    "ghcr.io": "mirror.example.com/ghcr",
    "quay.io": "mirror.example.com/quay",
    "registry.k8s.io": "mirror.example.com/k8s",
}


def mutate(obj, request):
    for container in containers_of(obj, request):
        image = read(container, "image", str)
        if image:
            container["image"] = mirrored(image)


def mirrored(image):
    registry, slash, path = image.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, path = "docker.io", image  # a short name: nginx, or grafana/grafana
    if registry in ("docker.io", "index.docker.io"):
        registry, path = "docker.io", path if "/" in path else f"library/{path}"
    mirror = MIRRORS.get(registry)
    return f"{mirror}/{path}" if mirror else image
