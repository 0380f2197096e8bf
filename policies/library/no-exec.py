"""Nobody gets a shell in production: no exec, attach, port-forward, proxy or debug container.

Reads the sub-resource, the namespace and userInfo.groups.
Rule: CONNECT of pods/exec, pods/attach, pods/portforward, pods/proxy; UPDATE of
pods/ephemeralcontainers.
"""

from objects import read

NAMESPACES = ("production", "shop")
EXEMPT = ("on-call",)  # groups whose users may; each time is noted in the audit log
WAYS = ("exec", "attach", "portforward", "proxy", "ephemeralcontainers")


def validate(obj, request):
    if request.namespace not in NAMESPACES or request.sub_resource not in WAYS:
        return
    if (request.resource.group, request.resource.resource) != ("", "pods"):
        return  # such as the proxy of a Service
    if set(EXEMPT) & set(read(request.user_info, "groups", [str])):
        request.audit("exempt", request.sub_resource)
        return
    request.deny(
        f'{request.sub_resource} into pod "{request.name}": namespace "{request.namespace}" is '
        f"production; read logs and metrics, or ask {' or '.join(EXEMPT)}"
    )
