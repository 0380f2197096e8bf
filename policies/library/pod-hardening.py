"""Pods run as the "restricted" Pod Security Standard wants it, unless they say otherwise.

Writes spec.securityContext (runAsNonRoot, seccompProfile) and the securityContext of init and plain
containers (allowPrivilegeEscalation, capabilities).
Rule: CREATE of pods.
What the pod sets stays. runAsNonRoot is left out where something asks for user 0; an image whose
user is root, or a name instead of a number, then does not start. Windows pods have none of these.
"""

from objects import containers_of, edit, pod_of, read


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None or read(pod, "spec.os.name", str) == "windows":
        return
    shared = edit(pod, "spec.securityContext", dict)
    shared.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    parts = [read(pod, f"spec.{part}", [dict]) for part in ("initContainers", "containers")]
    contexts = [read(each, "securityContext", dict) for part in parts for each in part]
    if all(context.get("runAsUser") != 0 for context in [shared, *contexts]):
        shared.setdefault("runAsNonRoot", True)
    for container in containers_of(obj, request, "initContainers", "containers"):
        harden(edit(container, "securityContext", dict), request)


def harden(context, request):
    if context.get("privileged"):
        return  # whoever asks for that needs it all
    edit(context, "capabilities", dict).setdefault("drop", ["ALL"])
    added = read(context, "capabilities.add", [str])
    if "SYS_ADMIN" not in added and "CAP_SYS_ADMIN" not in added:  # the API server refuses both
        context.setdefault("allowPrivilegeEscalation", False)
