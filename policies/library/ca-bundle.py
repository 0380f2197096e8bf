"""Containers trust the company's CA: its bundle is mounted, and the usual variables point at it.

Writes spec.volumes, and the volumeMounts and env of init and plain containers.
Rule: CREATE of pods.
A mount at the same path, or a variable of the same name, stays. The ConfigMap must be in each
namespace (trust-manager puts it there), or the pods wait for it; it must hold the public CAs too,
as most of these variables replace the image's own list. Java reads none of them.
"""

from objects import add, containers_of, pod_of

SKIP = ("log-agent",)  # containers that bring their own, such as injected sidecars
CONFIGMAP, KEY, FOLDER = "ca-bundle", "ca.crt", "/etc/company-ca"
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
VARIABLES += ("AWS_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT")


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is None:
        return
    add(pod, "spec.volumes", {"name": "company-ca", "configMap": {"name": CONFIGMAP}})
    mount = {"name": "company-ca", "mountPath": FOLDER, "readOnly": True}
    for container in containers_of(obj, request, "initContainers", "containers"):
        if container.get("name") not in SKIP:
            add(container, "volumeMounts", mount, key="mountPath")
            for name in VARIABLES:
                add(container, "env", {"name": name, "value": f"{FOLDER}/{KEY}"})
