"""Objects carry the labels and annotations of their namespace: cost centre, environment, owner.

Reads the namespace's name; writes metadata.labels and metadata.annotations, also of pod templates.
Rule: CREATE, UPDATE of pods, services; apps/deployments, apps/statefulsets, apps/daemonsets;
batch/jobs, batch/cronjobs.
What is there already stays.
"""

from objects import edit, pod_of, terminating

# For the namespace of this name; "*" is for all of them, and a name's own entry wins over it.
LABELS = {
    "*": {"example.com/cluster": "europe-1"},
    "shop": {"example.com/environment": "production"},
}
ANNOTATIONS = {
    "shop": {"example.com/cost-centre": "4711"},
}


def mutate(obj, request):
    if request.sub_resource or terminating(request):
        return  # a Scale, an Eviction or an exec is no object of its own
    for path, table in ("metadata.labels", LABELS), ("metadata.annotations", ANNOTATIONS):
        wanted = table.get("*", {}) | table.get(request.namespace, {})
        for target in filter(None, (obj, pod_of(obj, request))):
            for key, value in wanted.items():
                edit(target, path, dict).setdefault(key, value)
