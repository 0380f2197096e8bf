"""The pods of an application spread over zones and nodes.

Reads the pod's labels; writes spec.topologySpreadConstraints.
Rule: CREATE of pods.
A pod with constraints of its own keeps just those. One without an application's label, or of a Job
or a DaemonSet, is left alone. ScheduleAnyway: a preference, so that nothing stays pending.
"""

from objects import add, pod_of, read

LABELS = ("app.kubernetes.io/name", "app")  # the first that the pod has says what belongs together
TOPOLOGY = ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
OWNERS = ("Job", "DaemonSet")  # of any group: Volcano's Job and OpenKruise's DaemonSet too


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None or read(pod, "spec.topologySpreadConstraints", [dict]):
        return
    owners = read(pod, "metadata.ownerReferences", [dict])
    kinds = [request.kind.kind, *(owner.get("kind") for owner in owners)]
    labels = read(pod, "metadata.labels", dict)
    label = next((label for label in LABELS if isinstance(labels.get(label), str)), None)
    if label is None or any(kind in OWNERS for kind in kinds):
        return
    for key in TOPOLOGY:
        constraint = {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {label: labels[label]}},
        }
        add(pod, "spec.topologySpreadConstraints", constraint, key="topologyKey")
