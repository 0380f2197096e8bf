"""What several policies need of an object: a field of a type, a pod's template, its containers.

A policy that wants them says `from objects import containers_of, read`; one that imports nothing
works as well. whook.py uses none of this, so who audits the server need not read it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
NAMES |= {bool: "true or false"}
TEMPLATES = {"Pod": "", "PodTemplate": "template", "CronJob": "spec.jobTemplate.spec.template"}
TEMPLATES |= dict.fromkeys(("Deployment", "ReplicationController", "Job"), "spec.template")
TEMPLATES |= dict.fromkeys(("StatefulSet", "DaemonSet", "ReplicaSet"), "spec.template")


def read(obj: Any, path: str, kind: type | list[type], create: bool = False) -> Any:
    """The value at a path like "spec.template", of this type ([str]: a list of strings); an empty
    one, not to be edited, where it or a parent is missing or null. No key in the path may have a
    dot in it. ValueError names the field that is of another type."""
    outer, items = (list, kind) if isinstance(kind, list) else (kind, [])
    keys = path.split(".")
    for depth, key in enumerate(keys, 1):
        parent, wanted = obj, outer if depth == len(keys) else dict
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


def add(obj: Any, path: str, item: dict[str, Any], key: str = "name") -> None:
    """Append a copy of `item` to the list at `path`, unless one with the same `key` is there. A
    copy, as the next policy may edit it, and `item` is usually a constant."""
    if all(other.get(key) != item[key] for other in read(obj, path, [dict])):
        edit(obj, path, [dict]).append(copy.deepcopy(item))


def pod_of(obj: Any, request: Any) -> Any:
    """What has a pod's metadata and spec: the Pod itself, or a workload's template. None for other
    kinds, a mirror pod, a Pod or Job that exists already (their pod is immutable), and a template
    that the UPDATE leaves as it was: no policy starts a rollout by itself."""
    if request.operation == "UPDATE" and request.kind.kind in ("Pod", "Job"):
        return None
    pod = _pod(obj, request)
    return None if pod == _pod(request.old_object, request) else pod


def containers_of(obj: Any, request: Any, *parts: str) -> Iterator[dict[str, Any]]:
    """The containers that the request adds or changes in a Pod or template: init, plain and
    ephemeral ones, or those in `parts`. In a Pod that exists, only their image is mutable."""
    pod, old = _pod(obj, request) or {}, _pod(request.old_object, request) or {}
    for part in parts or ("initContainers", "containers", "ephemeralContainers"):
        before = read(old, f"spec.{part}", [dict])
        for container in read(pod, f"spec.{part}", [dict]):
            if container not in before:
                yield container


def _pod(obj: Any, request: Any) -> Any:
    kind = request.kind
    path = TEMPLATES.get(kind.kind) if kind.group in ("", "apps", "batch") else None
    if obj is None or path is None:
        return None
    pod = read(obj, path, dict) if path else obj
    mirror = "kubernetes.io/config.mirror" in read(pod, "metadata.annotations", dict)
    return None if mirror else pod
