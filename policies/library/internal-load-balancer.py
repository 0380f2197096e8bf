"""A Service of type LoadBalancer is reachable from inside the company only.

Reads spec.type; writes metadata.annotations.
Rule: CREATE, UPDATE of services.
An annotation that is there stays: "false" or "internet-facing" is how to ask for a public address.
A load balancer that exists is left as it is: most clouds would replace it, address and all.
"""

from objects import edit, kind_of, read

ANNOTATIONS = {
    "service.beta.kubernetes.io/aws-load-balancer-scheme": "internal",
    "service.beta.kubernetes.io/azure-load-balancer-internal": "true",
    "networking.gke.io/load-balancer-type": "Internal",
}


def mutate(obj, request):
    if kind_of(request) != "Service" or request.sub_resource:
        return
    types = [read(each or {}, "spec.type", str) for each in (obj, request.old_object)]
    if types[0] == "LoadBalancer" and types[1] != "LoadBalancer":
        for key, value in ANNOTATIONS.items():
            edit(obj, "metadata.annotations", dict).setdefault(key, value)
