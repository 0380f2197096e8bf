"""Objects marked as protected can't be deleted, until somebody takes the mark off.

Reads metadata.labels of the old object.
Rule: DELETE of namespaces, persistentvolumeclaims, secrets, services; apps/statefulsets,
apps/deployments.
A namespace that goes takes all in it along, protected or not: mark the namespace too. The
controllers that clear it up are not stopped: it would never end.
"""

from objects import read, terminating

LABEL, VALUE = "example.com/protected", "true"
CLEANERS = (
    "system:serviceaccount:kube-system:namespace-controller",
    "system:serviceaccount:kube-system:generic-garbage-collector",
)


def validate(obj, request):
    if request.operation != "DELETE" or request.user_info.get("username") in CLEANERS:
        return
    if terminating(request):
        return  # deleted already, and the last word of whoever clears it up
    metadata = read(request.old_object or {}, "metadata", dict)
    labels = read(metadata, "labels", dict)
    if labels.get(LABEL) == VALUE:
        request.deny(
            f'metadata.labels: {request.kind.kind} "{metadata.get("name")}" is protected; '
            f"if it must go, take the label {LABEL} off first"
        )
