"""Labels that others rely on (bills, network policies) never change.

Reads metadata.labels of the object and the old object.
Rule: UPDATE of namespaces, pods, services; apps/deployments, apps/statefulsets, apps/daemonsets.
A label that was missing can be added.
"""

from objects import read

LABELS = ("example.com/team", "example.com/cost-centre")


def validate(obj, request):
    if request.operation != "UPDATE" or request.sub_resource:
        return
    labels = read(obj, "metadata.labels", dict)
    before = read(request.old_object or {}, "metadata.labels", dict)
    for label in LABELS:
        if label in before and labels.get(label) != before[label]:
            now = f'be "{labels[label]}"' if label in labels else "be taken away"
            request.deny(
                f'metadata.labels: "{label}" is "{before[label]}" and can\'t {now}; '
                "put it back, or create the object anew"
            )
