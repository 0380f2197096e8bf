"""Containers get environment variables: constants, facts about the pod, values from a ConfigMap
and a Secret.

Writes the env of init and plain containers.
Rule: CREATE of pods.
A variable that is there already stays.
"""

from objects import add, containers_of, pod_of

SKIP = ("log-agent",)  # containers that bring their own, such as injected sidecars
VARIABLES = [
    {"name": "CLUSTER", "value": "europe-1"},
    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    {
        "name": "HTTPS_PROXY",
        "valueFrom": {"configMapKeyRef": {"name": "proxy", "key": "https", "optional": True}},
    },
    {
        "name": "TELEMETRY_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "telemetry", "key": "token", "optional": True}},
    },
]


def mutate(obj, request):
    if pod_of(obj, request) is None:
        return
    for container in containers_of(obj, request, "initContainers", "containers"):
        if container.get("name") not in SKIP:
            for variable in VARIABLES:
                add(container, "env", variable)
