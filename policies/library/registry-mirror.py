"""Images come from a mirror: nginx:1.27 becomes mirror.example.com/docker/library/nginx:1.27.

Reads metadata.labels; reads and writes the image of init, plain and ephemeral containers, in pods
and pod templates.
Rule: CREATE, UPDATE of pods, pods/ephemeralcontainers.
Tags and digests stay. An image stays as it is where no pattern matches, where it is at a mirror
already, and where the object or its template has the label. On UPDATE only an image that the
request changes is rewritten: a rewrite restarts the container.
"""

from objects import containers_of, matches, pod_of, read

LABEL, OFF = "example.com/registry-mirror", "off"
# The first pattern that matches decides. It is held against the whole reference, tag and all, as
# a container runtime completes it: docker.io/library/nginx:1.27. "" leaves the image alone.
MIRRORS = {
    "docker.io/library/hello-world:1.0": "registry.example.com/hello-world:1.0-patched",
    "quay.io/our-company/*": "",
    "docker.io/*": "mirror.example.com/docker/{path}",
    "ghcr.io/*": "mirror.example.com/ghcr/{path}",
    "quay.io/*": "mirror.example.com/quay/{path}",
    "registry.k8s.io/*": "mirror.example.com/k8s/{path}",
    # "*": "mirror.example.com/{host}/{path}" would be for all others; {name} is the path's end
}


def mutate(obj, request):
    for holder in (obj, pod_of(obj, request) or {}):
        if read(holder, "metadata.labels", dict).get(LABEL) == OFF:
            return
    for container in containers_of(obj, request, field="image"):
        image = read(container, "image", str)
        if image:
            container["image"] = mirrored(image)


def mirrored(image):
    whole = complete(image)
    starts = [mirror.partition("{")[0] for mirror in MIRRORS.values()]
    if whole.startswith(tuple(complete(start) for start in starts if start)):
        return image  # at a mirror already
    mirror = next((MIRRORS[pattern] for pattern in MIRRORS if matches(whole, pattern)), "")
    registry, _, path = whole.partition("/")
    host, name = registry.partition(":")[0], path.rpartition("/")[2]
    return mirror.format(host=host, path=path, name=name) or image


def complete(image):
    """As a container runtime does: with a registry, and "library/" where Docker Hub wants it."""
    registry, slash, path = image.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, path = "docker.io", image  # a short name: nginx, or grafana/grafana
    if registry in ("docker.io", "index.docker.io"):
        registry, path = "docker.io", path if "/" in path else f"library/{path}"
    return f"{registry}/{path}"
