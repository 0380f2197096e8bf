"""What several policies need to know of an object, and of the request that is about it.

A policy that wants some of it says `from objects import containers_of, read`; one that imports
nothing works as well. whook.py uses none of this, so who audits the server need not read it.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator
from typing import Any

NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
NAMES |= {bool: "true or false"}
# Where an object of this kind, as kind_of() has it, keeps its pod.
TEMPLATES = {"Pod": "", "PodTemplate": "template", "ReplicationController": "spec.template"}
TEMPLATES |= dict.fromkeys(("apps/Deployment", "apps/ReplicaSet"), "spec.template")
TEMPLATES |= dict.fromkeys(("apps/StatefulSet", "apps/DaemonSet"), "spec.template")
TEMPLATES |= {"batch/Job": "spec.template", "batch/CronJob": "spec.jobTemplate.spec.template"}


# ---------------------------------------------------------------------------- fields


def read(
    obj: Any, path: str, kind: type | list[type], default: Any = ..., *, create: bool = False
) -> Any:
    """The value at a path like "spec.template", of this type ([str]: a list of strings). Where it
    or a parent is missing or null: the default, or else an empty value that is not to be edited. No
    key in the path may have a dot in it. ValueError names the field that is of another type."""
    outer, items = (list, kind) if isinstance(kind, list) else (kind, [])
    keys = path.split(".")
    for depth, key in enumerate(keys, 1):
        parent, wanted = obj, outer if depth == len(keys) else dict
        if parent.get(key) is None and default is not ...:
            return default
        obj = wanted() if parent.get(key) is None else parent[key]
        if type(obj) is not wanted:
            raise ValueError(f"{'.'.join(keys[:depth])} must be {NAMES[wanted]}")
        if create:
            parent[key] = obj
    for index, item in enumerate(obj if items else ()):
        if type(item) is not items[0]:
            raise ValueError(f"{path}[{index}] must be {NAMES[items[0]]}")
    return obj


def edit(obj: Any, path: str, kind: type | list[type]) -> Any:
    """As read(), but what was missing is put into `obj`, to be edited there."""
    return read(obj, path, kind, create=True)


def add(obj: Any, path: str, item: dict[str, Any], key: str = "name", first: bool = False) -> None:
    """Put a copy of `item` at the end of the list at `path`, or first, unless one with the same
    `key` is there. A copy, as the next policy may edit it, and `item` is usually a constant."""
    if all(other.get(key) != item[key] for other in read(obj, path, [dict])):
        items = edit(obj, path, list)
        items.insert(0 if first else len(items), copy.deepcopy(item))


def matches(text: str, pattern: str) -> bool:
    """Is a text as this pattern says? `*` stands for any characters, `?` for one."""
    return fnmatch.fnmatchcase(text, pattern)


# ---------------------------------------------------------------------------- objects


def kind_of(request: Any) -> str:
    """The object's kind with its group, as in "apps/Deployment" or, in the core group, "Service".
    The kind alone says little: Knative has a Service too, and Volcano a Job."""
    group, kind = request.kind.group, request.kind.kind
    return f"{group}/{kind}" if group else kind


def terminating(request: Any) -> bool:
    """Is the object being deleted? What changes now is mostly that controllers take their
    finalizers off: refused, it would stay for ever. The old object says so, as the API server
    wrote that one. A Service or an Ingress works on until it is gone."""
    return bool(read(request.old_object or {}, "metadata.deletionTimestamp", str))


# ---------------------------------------------------------------------------- pods


def pod_of(obj: Any, request: Any) -> Any:
    """What has a pod's metadata and spec: the Pod itself, or a workload's template. None for other
    kinds, a mirror pod, what is being deleted, a Pod or Job that exists already (their pod is
    immutable), and a template that the UPDATE leaves as it was: no policy starts a rollout by
    itself."""
    if request.operation == "UPDATE" and kind_of(request) in ("Pod", "batch/Job"):
        return None
    pod = _pod(obj, request)
    return None if pod == _pod(request.old_object, request) else pod


def containers_of(obj: Any, request: Any, *parts: str, field: str = "") -> Iterator[dict[str, Any]]:
    """The containers that the request adds or changes in a Pod or template: init, plain and
    ephemeral ones, or those in `parts`; with a field, those where it is that field that changes.
    In a Pod that exists only the image can, and in a resize (`request.sub_resource`) resources."""
    pod, old = _pod(obj, request) or {}, _pod(request.old_object, request) or {}
    for part in parts or ("initContainers", "containers", "ephemeralContainers"):
        before = {read(each, "name", str): each for each in read(old, f"spec.{part}", [dict])}
        for container in read(pod, f"spec.{part}", [dict]):
            was = before.get(read(container, "name", str))
            if was == container or (was and field and was.get(field) == container.get(field)):
                continue
            yield container


def _pod(obj: Any, request: Any) -> Any:
    """None for what is being deleted too: no new container is started for it."""
    path = TEMPLATES.get(kind_of(request))
    if obj is None or path is None or terminating(request):
        return None
    pod = read(obj, path, dict) if path else obj
    mirror = "kubernetes.io/config.mirror" in read(pod, "metadata.annotations", dict)
    return None if mirror else pod
