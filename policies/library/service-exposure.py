"""Services open no port on the nodes, and claim no addresses.

Reads spec.type and spec.externalIPs.
Rule: CREATE, UPDATE of services.
externalIPs let whoever may create a Service take over traffic to any address (CVE-2020-8554).
What an UPDATE leaves as it was stays allowed.
"""

from objects import kind_of, read


def validate(obj, request):
    if kind_of(request) != "Service" or obj is None or request.sub_resource:
        return
    spec = read(obj, "spec", dict)
    before = read(request.old_object or {}, "spec", dict)
    if spec.get("type") == "NodePort" and before.get("type") != "NodePort":
        request.deny("spec.type is NodePort; use ClusterIP with an Ingress, or LoadBalancer")
    known = set(read(before, "externalIPs", [str]))
    for address in read(spec, "externalIPs", [str]):
        if address not in known:
            request.deny(f"spec.externalIPs: {address} is not yours to claim; use LoadBalancer")
