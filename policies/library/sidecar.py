"""A pod that asks for it by an annotation gets a log agent, and the volume that both share.

Reads the annotation example.com/inject-log-agent: "true"; writes spec.initContainers (or
spec.containers), spec.volumes and the volumeMounts of the pod's own containers.
Rule: CREATE of pods.
A container of the sidecar's name is taken for the sidecar, so that it is never injected twice.
The service account's token is mounted into it too: the API server does that once more after a
webhook has changed a pod.
"""

from objects import add, containers_of, pod_of, read

ANNOTATION = "example.com/inject-log-agent"
NATIVE = True  # an init container that keeps running: Kubernetes 1.29 and later; else plain
SHARED = {"name": "app-logs", "mountPath": "/var/log/app"}
VOLUME = {"name": "app-logs", "emptyDir": {"sizeLimit": "100Mi"}}
SIDECAR = {  # complete but for the shared mount, so that it needs nothing from other policies
    "name": "log-agent",
    "image": "registry.example.com/log-agent:1.4.2",
    "imagePullPolicy": "Always",
    "args": ["--follow", "/var/log/app"],
    "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None or read(pod, "metadata.annotations", dict).get(ANNOTATION) != "true":
        return
    names = [container.get("name") for container in read(pod, "spec.containers", [dict])]
    for container in containers_of(obj, request, "containers"):
        if container.get("name") != SIDECAR["name"]:
            add(container, "volumeMounts", SHARED, key="mountPath")
    add(pod, "spec.volumes", VOLUME)
    mounts = [*SIDECAR.get("volumeMounts", []), SHARED | {"readOnly": True}]
    agent = SIDECAR | {"volumeMounts": mounts}
    if NATIVE and SIDECAR["name"] not in names:
        add(pod, "spec.initContainers", agent | {"restartPolicy": "Always"})
    elif not NATIVE:
        add(pod, "spec.containers", agent)
