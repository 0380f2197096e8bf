"""Pods get no service account token, unless they ask for one.

Reads spec.serviceAccountName; writes spec.automountServiceAccountToken, and takes the token's
volume and its mounts out of a Pod.
Rule: CREATE of pods.
A pod that says automountServiceAccountToken: true keeps its token. The field alone would do nothing
to a Pod: the API server mounts the token before it calls webhooks.
"""

from objects import containers_of, edit, pod_of, read

KEEP = ("argocd-application-controller", "flux")  # service accounts that need their token
PREFIX = "kube-api-access-"  # of the volume that the API server makes; the rest is random


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None or read(pod, "spec.serviceAccountName", str) in KEEP:
        return
    spec = edit(pod, "spec", dict)
    if spec.get("automountServiceAccountToken"):
        return
    spec["automountServiceAccountToken"] = False
    remove(request, spec, "volumes")
    for container in containers_of(obj, request, "initContainers", "containers"):
        remove(request, container, "volumeMounts")


def remove(request, holder, field):
    items = read(holder, field, [dict])
    kept = [item for item in items if not str(item.get("name")).startswith(PREFIX)]
    if len(kept) < len(items):
        holder[field] = kept
