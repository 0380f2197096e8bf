"""An Ingress has a class, and TLS for its hosts, with a certificate from cert-manager.

Reads spec.rules; writes spec.ingressClassName, spec.tls and metadata.annotations.
Rule: CREATE, UPDATE of networking.k8s.io/ingresses.
A class, also in the old annotation, and any tls stay as they are.
"""

from objects import edit, kind_of, read, terminating

CLASS = "nginx"
ISSUER = {"cert-manager.io/cluster-issuer": "letsencrypt"}


def mutate(obj, request):
    if kind_of(request) != "networking.k8s.io/Ingress" or request.sub_resource:
        return
    if terminating(request):
        return  # no certificate for what goes
    spec = edit(obj, "spec", dict)
    annotations = read(obj, "metadata.annotations", dict)
    if not spec.get("ingressClassName") and "kubernetes.io/ingress.class" not in annotations:
        spec["ingressClassName"] = CLASS
    hosts = [read(rule, "host", str) for rule in read(spec, "rules", [dict])]
    hosts = sorted({host for host in hosts if host})
    if hosts and not read(spec, "tls", [dict]):
        spec["tls"] = [{"hosts": hosts, "secretName": hosts[0].removeprefix("*.") + "-tls"}]
        for key, value in ISSUER.items():
            edit(obj, "metadata.annotations", dict).setdefault(key, value)
