"""A finished Job is deleted after a while, with its pods.

Writes spec.ttlSecondsAfterFinished.
Rule: CREATE of batch/jobs.
A value that is there stays. The jobs of a CronJob are left alone: it has history limits for them.
"""

from objects import edit, kind_of, read

SECONDS = 24 * 3600


def mutate(obj, request):
    if kind_of(request) != "batch/Job" or request.operation != "CREATE":
        return
    if read(obj, "metadata.ownerReferences", [dict]):
        return
    spec = edit(obj, "spec", dict)
    if spec.get("ttlSecondsAfterFinished") is None:
        spec["ttlSecondsAfterFinished"] = SECONDS
