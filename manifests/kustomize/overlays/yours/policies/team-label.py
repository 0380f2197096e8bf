"""Every object carries the label of the team that answers for it.

Reads and writes metadata.labels.
Rule: CREATE of pods.
Any other kind will do as well, and UPDATE. A label that is there already stays.
"""

from objects import edit, terminating

LABEL, TEAM = "example.com/team", "shop"


def mutate(obj, request):
    if request.sub_resource or terminating(request):
        return  # a Scale, an Eviction or an exec is no object of its own
    edit(obj, "metadata.labels", dict).setdefault(LABEL, TEAM)
