"""Workloads have enough replicas to survive a node, and not so many that they fill the cluster.

Reads spec.replicas.
Rule: CREATE, UPDATE of apps/deployments, apps/deployments/scale, apps/statefulsets,
apps/statefulsets/scale.
0 switches a workload off and is always allowed; a number that an UPDATE leaves as it was, too.
"""

from objects import kind_of, read

RANGES = {"*": (1, 50), "shop": (2, 20)}  # namespace: lowest and highest; "*" is for all others
KINDS = ("apps/Deployment", "apps/StatefulSet", "autoscaling/Scale")


def validate(obj, request):
    if kind_of(request) not in KINDS or request.resource.group != "apps" or obj is None:
        return  # other groups can be scaled as well
    lowest, highest = RANGES.get(request.namespace, RANGES["*"])
    replicas = read(obj, "spec.replicas", int, 1)
    before = request.old_object and read(request.old_object, "spec.replicas", int, 1)
    if replicas not in (0, before) and not lowest <= replicas <= highest:
        request.deny(
            f"spec.replicas: {replicas} is not within {lowest} to {highest}, the range in "
            f'namespace "{request.namespace}"; choose one of these, or 0 to switch it off'
        )
