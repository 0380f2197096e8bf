"""Workloads have enough replicas to survive a node, and not so many that they fill the cluster.

Reads spec.replicas. Rule: CREATE, UPDATE of deployments, deployments/scale, statefulsets and
statefulsets/scale.
0 switches a workload off and is always allowed; a number that an UPDATE leaves as it was, too.
"""

from objects import read

RANGES = {"*": (1, 50), "shop": (2, 20)}  # namespace: lowest and highest; "*" is for all others
KINDS = ("Deployment", "StatefulSet", "Scale")


def validate(obj, request):
    if request.kind.kind not in KINDS or obj is None:
        return
    lowest, highest = RANGES.get(request.namespace, RANGES["*"])
    replicas = read(obj, "spec.replicas", int)
    before = read(request.old_object or {}, "spec.replicas", int)
    if replicas not in (0, before) and not lowest <= replicas <= highest:
        request.deny(
            f"spec.replicas: {replicas} is not within {lowest} to {highest}, the range in "
            f'namespace "{request.namespace}"; choose one of these, or 0 to switch it off'
        )
