"""Objects carry the label of the team that created them, found by the user's group.

Reads userInfo.groups; writes metadata.labels, also of pod templates.
Rule: CREATE of services, configmaps; apps/deployments, apps/statefulsets, apps/daemonsets;
batch/jobs, batch/cronjobs.
A label that is there already stays. What a controller creates (the pods of a Deployment) is
created by the controller's user: those get the label from the template.
"""

from objects import edit, pod_of, read

LABEL = "example.com/team"
TEAMS = {  # group: team; a user in several gets the first one of this table
    "shop-developers": "shop",
    "payment-developers": "payment",
}


def mutate(obj, request):
    groups = read(request.user_info, "groups", [str])
    team = next((team for group, team in TEAMS.items() if group in groups), None)
    if request.operation != "CREATE" or request.sub_resource or team is None:
        return
    for target in filter(None, (obj, pod_of(obj, request))):
        edit(target, "metadata.labels", dict).setdefault(LABEL, team)
