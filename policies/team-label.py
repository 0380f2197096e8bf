"""Every object carries the label of the team that answers for it.

Reads and writes metadata.labels. Rule: CREATE, UPDATE of whatever should be labelled.
A label that is there already stays.
"""

from objects import edit

LABEL, TEAM = "example.com/team", "shop"


def mutate(obj, request):
    if not request.sub_resource:  # a Scale, an Eviction or an exec is no object of its own
        edit(obj, "metadata.labels", dict).setdefault(LABEL, TEAM)
