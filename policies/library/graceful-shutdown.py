"""A container that serves keeps doing so for a while after its pod was told to go, until the load
balancers have noticed.

Reads the ports of plain containers; writes their lifecycle.preStop, and
spec.terminationGracePeriodSeconds.
Rule: CREATE of pods.
A preStop that is there stays. The grace period is lengthened where it is 30 s, which is what the
API server fills in; any other is the pod's own, and one too short for the pause gets none.
Needs Kubernetes 1.30 (the sleep action); the kubelet sleeps, so the image needs no shell.
"""

from objects import containers_of, edit, pod_of, read

PAUSE = 10  # seconds
GRACE = 45  # seconds, the pause included
FILLED_IN = 30


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None:
        return
    containers = containers_of(obj, request, "containers")
    serving = [each for each in containers if read(each, "ports", [dict])]
    spec = edit(pod, "spec", dict)
    if serving and spec.get("terminationGracePeriodSeconds") in (None, FILLED_IN):
        spec["terminationGracePeriodSeconds"] = GRACE
    grace = read(spec, "terminationGracePeriodSeconds", int)
    for container in serving:
        if grace > PAUSE and not read(container, "lifecycle.preStop", dict):
            edit(container, "lifecycle", dict)["preStop"] = {"sleep": {"seconds": PAUSE}}
