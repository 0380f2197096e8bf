"""Every object carries the label of the team that answers for it.

Reads and writes metadata.labels. Rule: CREATE, UPDATE of whatever should be labelled.
A label that is there already stays.
"""

LABEL, TEAM = "example.com/team", "shop"


def mutate(obj, request):
    if "metadata" in obj:  # the options of exec, attach and port-forward have none
        obj["metadata"].setdefault("labels", {}).setdefault(LABEL, TEAM)
