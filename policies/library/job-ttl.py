"""A finished Job is deleted after a while, with its pods.

Writes spec.ttlSecondsAfterFinished. Rule: CREATE of jobs.
A value that is there stays. The jobs of a CronJob are left alone: it has history limits for them.
"""

SECONDS = 24 * 3600


def mutate(obj, request):
    if request.kind.kind != "Job" or request.operation != "CREATE":
        return
    if request.read(obj, "metadata.ownerReferences", [dict]):
        return
    spec = request.edit(obj, "spec", dict)
    if spec.get("ttlSecondsAfterFinished") is None:
        spec["ttlSecondsAfterFinished"] = SECONDS
