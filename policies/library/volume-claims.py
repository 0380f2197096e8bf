"""Claims get their namespace's storage class, and ask for no more than it allows.

Reads spec.resources.requests.storage; writes spec.storageClassName.
Rule: CREATE, UPDATE of persistentvolumeclaims.
A class other than the cluster's default stays, and so does "" (no class). The default itself is
replaced: the API server has filled it in before it calls webhooks. Claims that a StatefulSet makes
come by here too. A claim that is over the limit already can be changed, but not grown.
"""

from objects import edit, kind_of, read

CLUSTER_DEFAULT = "standard"
CLASSES = {"shop": "fast"}  # namespace: class
LIMITS = {"*": "100Gi", "shop": "1Ti"}  # namespace: size; "*" is for all others
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}


def mutate(obj, request):
    wanted = CLASSES.get(request.namespace)
    if kind_of(request) != "PersistentVolumeClaim" or request.operation != "CREATE" or not wanted:
        return  # the class of a claim that exists is immutable
    spec = edit(obj, "spec", dict)
    if spec.get("storageClassName") in (None, CLUSTER_DEFAULT) and not spec.get("volumeName"):
        spec["storageClassName"] = wanted


def validate(obj, request):
    if kind_of(request) != "PersistentVolumeClaim" or obj is None:
        return
    limit = LIMITS.get(request.namespace, LIMITS["*"])
    size, before = storage(obj, request), storage(request.old_object or {}, request)
    if size != before and size_in_bytes(size) > size_in_bytes(limit):
        request.deny(
            f"spec.resources.requests.storage: {size} is over {limit}, which is the limit in "
            f'namespace "{request.namespace}"; ask for less, or for a higher limit'
        )


def storage(claim, request):
    return read(claim, "spec.resources.requests.storage", str) or "0"


def size_in_bytes(quantity):
    number = quantity.rstrip("mkKMGTPEi")
    try:
        return float(number) * UNITS[quantity[len(number) :]]
    except (ValueError, KeyError):
        raise ValueError(f'storage "{quantity}" is not a quantity such as 10Gi') from None
