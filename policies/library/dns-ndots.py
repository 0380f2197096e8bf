"""Names with two dots or more are looked up as they are first: most lookups of names outside the
cluster then take one query instead of several.

Reads spec.dnsPolicy; writes spec.dnsConfig.options.
Rule: CREATE of pods.
An ndots option that is there stays. A name like service.namespace.svc has two dots, and still
resolves: the search list comes second.
"""

from objects import add, pod_of, read

NDOTS = "2"  # Kubernetes' own value is 5


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None or read(pod, "spec.dnsPolicy", str) in ("Default", "None"):
        return  # the node's own settings, or the pod's
    add(pod, "spec.dnsConfig.options", {"name": "ndots", "value": NDOTS})
