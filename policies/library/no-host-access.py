"""Pods stay off their node: no host namespaces, host paths, host ports or privileged containers.

Reads spec.hostNetwork, hostPID, hostIPC and volumes, and the ports and securityContext of init,
plain and ephemeral containers.
Rule: CREATE of pods; CREATE, UPDATE of pods/ephemeralcontainers.
"""

from objects import containers_of, pod_of, read

EXEMPT = ("kube-system", "monitoring")  # namespaces whose pods may


def validate(obj, request):
    if request.namespace in EXEMPT:
        return
    spec = read(pod_of(obj, request) or {}, "spec", dict)
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if read(spec, field, bool):
            request.deny(f"spec.{field} is true; take it out")
    for volume in read(spec, "volumes", [dict]):
        if volume.get("hostPath") is not None:
            name = volume.get("name")
            request.deny(f'volume "{name}" is a hostPath; use a claim, a ConfigMap or an emptyDir')
    for container in containers_of(obj, request, field="securityContext"):
        check_privilege(container, request)
    for container in containers_of(obj, request, field="ports"):
        check_ports(container, request)


def check_privilege(container, request):
    if read(container, "securityContext.privileged", bool):
        name = container.get("name")
        request.deny(f'container "{name}" is privileged; add just the capabilities that it needs')


def check_ports(container, request):
    for port in read(container, "ports", [dict]):
        if port.get("hostPort"):
            name, number = container.get("name"), port["hostPort"]
            request.deny(f'container "{name}": hostPort {number} is on the node; use a Service')
