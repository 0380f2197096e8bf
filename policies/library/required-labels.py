"""Workloads carry the labels that say what they are and who answers for them.

Reads metadata.labels.
Rule: CREATE, UPDATE of apps/deployments, apps/statefulsets, apps/daemonsets; batch/cronjobs.
An object that has lacked a label so far can still be changed.
"""

from objects import read

REQUIRED = {  # label: what to set it to
    "example.com/team": "the team that answers for it, such as shop",
    "app.kubernetes.io/name": "the name of the application",
}


def validate(obj, request):
    if obj is None or request.sub_resource:
        return
    labels = read(obj, "metadata.labels", dict)
    before = read(request.old_object or {}, "metadata.labels", dict)
    for label, meaning in REQUIRED.items():
        lacked = request.operation == "UPDATE" and not before.get(label)
        if not labels.get(label) and not lacked:
            request.deny(f'metadata.labels: "{label}" is missing; set it to {meaning}')
