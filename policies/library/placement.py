"""The pods of a namespace run on its nodes: node selector, tolerations, affinity.

Reads the namespace's name; writes spec.nodeSelector, spec.tolerations and spec.affinity.
Rule: CREATE of pods.
What is there already stays: a label in the node selector, a toleration for the key, any node
affinity. The pods of a DaemonSet are left alone: each is meant for one node.
"""

from objects import add, edit, pod_of, read

PLACES = {
    "batch": {
        "nodeSelector": {"example.com/pool": "batch"},
        "tolerations": [{"key": "example.com/batch", "operator": "Exists", "effect": "NoSchedule"}],
        "prefer": {"example.com/spot": "true"},  # labels of the nodes that are tried first
    },
}


def mutate(obj, request):
    pod, place = pod_of(obj, request), PLACES.get(request.namespace)
    if pod is None or place is None or of_daemonset(pod, request):
        return
    for label, value in place.get("nodeSelector", {}).items():
        edit(pod, "spec.nodeSelector", dict).setdefault(label, value)
    for toleration in place.get("tolerations", []):
        add(pod, "spec.tolerations", toleration, key="key")
    if not read(pod, "spec.affinity.nodeAffinity", dict):
        for label, value in place.get("prefer", {}).items():
            prefer(label, value, edit(pod, "spec.affinity.nodeAffinity", dict))


def prefer(label, value, affinity):
    match = {"matchExpressions": [{"key": label, "operator": "In", "values": [value]}]}
    terms = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
    terms.append({"weight": 100, "preference": match})


def of_daemonset(pod, request):
    """Of any group: OpenKruise's DaemonSet too makes a pod for each node."""
    owners = read(pod, "metadata.ownerReferences", [dict])
    return any(owner.get("kind") == "DaemonSet" for owner in owners)
