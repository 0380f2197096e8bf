#!/usr/bin/env python3
"""whook: a Kubernetes admission webhook that one person can audit in one sitting.

The API server posts an AdmissionReview over HTTPS; whook runs plain Python policies on the object
in it and answers with a verdict and a base64 JSON Patch. Standard library only.

Trust boundary: the bytes from the network are hostile until parse_review has accepted them. The
policies, the certificate files and the command line are the operator's own and are trusted: a
policy is code that runs with whook's rights. whook needs no right at all in the cluster.

What it will not do: call the API server, read a Secret, write a file, log an object, follow a URL,
decide between fail-open and fail-closed (the webhook configuration's failurePolicy does that).

Sections, each using only what stands above it: 1 this text, 2 limits and log, 3 the review,
4 policies, 5 JSON Patch, 6 evaluation, 7 HTTP, 8 TLS, 9 metrics, 10 workers, 11 command line.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import collections
import contextlib
import errno
import functools
import gc
import hashlib
import http.server
import itertools
import json
import marshal
import math
import mmap
import os
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
import types
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

__version__ = "1.0.0"

# ---------------------------------------------------------------------------- 2 limits and log
# Sizes are bytes, times are seconds.

MAX_BODY = 7 * 1024 * 1024  # a user's body may be 3 MiB, and a review can hold object and oldObject
MAX_LINE = 8 * 1024  # of a request line or a header; the API server's longest is under 100
MAX_HEADERS = 64  # the API server sends six
BODIES_IN_FLIGHT = 4  # reviews of full size that one worker holds at a time
SMALLEST_SHARE = 32  # a review counts as at least 1/32 of a full one, so at most 128 at a time
MAX_CONNECTIONS = 1000  # per worker: each is a thread
MAX_REFUSING = 64  # connections over that bound that are told 503; past them they are closed
BACKLOG = 1024
IDLE_TIMEOUT = 100.0  # longer than the 90 s after which the API server drops an idle connection
HANDSHAKE_TIMEOUT = 10.0
HEAD_TIMEOUT = 10.0
BODY_TIMEOUT = 10.0
WRITE_TIMEOUT = 10.0
PRESSED_TIMEOUT = 3.0  # for a handshake, a head, a first request and a write, when half full
LINGER_TIMEOUT = 2.0  # how long an unread body is thrown away, so that its sender sees the answer
DEFAULT_TIMEOUT = 10.0  # of a review without ?timeout=, as in admissionregistration.k8s.io/v1
STUCK_AFTER = 30.0  # past a review's deadline, its worker is replaced; no webhook may take longer
SETTLE_TIME = 5.0  # a draining worker without connections waits this long for late ones
GRACE_PERIOD = 95.0  # longer than those 90 s: no connection is cut that may still be used
LONG_LIFE = 10.0  # a worker that lived longer is replaced without a pause
HEAD_START = 0.002  # that a worker gives another with fewer connections, at each accept
TICK = 0.5  # how often a worker looks after time-outs, files and its heartbeat
SWITCH_INTERVAL = 0.02  # of threads that compute; Python's 0.005 costs 6% of the reviews a second
LOG_PAUSE = 0.05  # after a write, in which lines of the level INFO wait ...
LOG_LINES = 1000  # ... unless they are more than these
LOG_WRITE = 4096  # bytes that a pipe takes in one piece (PIPE_BUF)
MAX_WARNINGS = 4096  # characters in all warnings together; past them each is cut to:
MAX_WARNING = 256
MAX_SERIES = 2000  # label combinations a worker counts; later ones go without labels
SLOT_SIZE = 1024 * 1024  # shared memory for one worker's counters


class Log:
    """Writes one line an event to standard error, as text or JSON.

    A line holds names, counts and messages, never an object: a Secret is an object. Values are
    escaped, so that nothing from outside can forge a line. A full disk under the log loses lines,
    not reviews. Under load lines go out together, at the latest with the next tick: a write(2) a
    review hands the interpreter's lock over once more, and cost a seventh of all processor time.
    """

    def __init__(self) -> None:
        self.format = "text"
        self.waiting: collections.deque[bytes] = collections.deque()
        self.written, self.lock = 0.0, threading.Lock()

    def __call__(self, level: str, event: str, **fields: object) -> None:
        now = time.time()
        stamp = f"{_utc_second(int(now))}.{int(now % 1 * 1000):03d}Z"
        if self.format == "json":
            line = json.dumps({"time": stamp, "level": level, "event": event, **fields})
        else:
            pairs = " ".join([f"{key}={_quote(value)}" for key, value in fields.items()])
            line = f"{stamp} {level} {event} {pairs}"
        self.waiting.append(line.encode("utf-8", "backslashreplace") + b"\n")
        if level != "INFO" or now - self.written > LOG_PAUSE or len(self.waiting) > LOG_LINES:
            self.written = now
            self.flush()

    def flush(self) -> None:
        """Write what waits, in pieces that other workers can't write into."""
        with self.lock, contextlib.suppress(OSError):
            while self.waiting:
                lines = self.waiting.popleft()
                while self.waiting and len(lines) + len(self.waiting[0]) <= LOG_WRITE:
                    lines += self.waiting.popleft()
                os.write(2, lines)


@functools.lru_cache(maxsize=4)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


_PLAIN = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII but space, quote, equals, \


def _quote(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN(text) else json.dumps(text)


log = Log()


class Refusal(Exception):
    """A request that gets no verdict: the HTTP status, and what the Status body says."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


# ---------------------------------------------------------------------------- 3 the review


class Kind(NamedTuple):
    """What sort of object, as in `apps/v1, Deployment`."""

    group: str
    version: str
    kind: str


class Resource(NamedTuple):
    """Which collection, as in `apps/v1, deployments`."""

    group: str
    version: str
    resource: str


class Denied(BaseException):
    """Ends a review from within a policy; not an Exception, so that no policy swallows it."""


class Response:
    """A verdict. `patch` is a list of JSON Patch operations, `audit` maps key to value, `spent`
    maps a policy's name to the seconds that it took, `changed_by` to its number of operations."""

    def __init__(self) -> None:
        self.allowed = True
        self.code, self.reason, self.message = 200, "", ""
        self.warnings: list[str] = []
        self.audit: dict[str, str] = {}
        self.patch: list[dict[str, Any]] = []
        self.spent: dict[str, float] = {}
        self.changed_by: dict[str, int] = {}


class Request:
    """One AdmissionReview's request, as a policy sees it, under the field's own names.

    `deadline` is on time.monotonic()'s clock. `name` falls back on metadata.name, then on
    metadata.generateName. `old_object` and `options` may be None.
    """

    api_version: str
    uid: str
    kind: Kind
    resource: Resource
    sub_resource: str
    request_kind: Kind
    request_resource: Resource
    request_sub_resource: str
    name: str
    namespace: str
    operation: str
    user_info: dict[str, Any]
    old_object: dict[str, Any] | None
    dry_run: bool
    options: dict[str, Any] | None
    deadline: float

    def __init__(self, obj: dict[str, Any] | None) -> None:
        self.response = Response()
        self.has_object = obj is not None  # False on DELETE
        self._parsed = obj
        self._object: dict[str, Any] | None = None
        self._frozen: Frozen | None = None

    @property
    def object(self) -> Any:
        """The object as the API server sent it; None on DELETE. Not what a policy edits."""
        if self._object is None and self.has_object:
            self._object = thaw_fields(self.freeze())
        return self._object

    def freeze(self) -> Frozen:
        """The object as it came, to compare with and to copy from. Refusal if too deep."""
        if self._frozen is None:
            try:
                self._frozen = freeze_fields(self._parsed or {})
            except ValueError:
                raise Refusal(400, "the object is nested too deeply") from None
        return self._frozen

    def working_copy(self) -> Any:
        """A copy of the object, for a policy to edit; the first one is what was parsed, which
        nobody else holds."""
        frozen, parsed = self.freeze(), self._parsed
        self._parsed = None
        return thaw_fields(frozen) if parsed is None else parsed

    def deny(self, message: str, code: int = 403, reason: str = "Forbidden") -> NoReturn:
        """End the review: the API server refuses the user's request with this message, which
        continues its sentence: lower case, no full stop. ValueError if code is no HTTP error."""
        if not 400 <= code <= 599:
            raise ValueError(f"deny code {code} is not between 400 and 599")
        response = self.response
        response.allowed, response.code = False, code
        response.reason, response.message = str(reason), str(message)
        raise Denied(message)

    def warn(self, text: str) -> None:
        """Show the user a line (kubectl: `Warning: …`). Control characters become spaces, as the
        API server would drop the whole warning for one."""
        line = _CONTROL.sub(" ", str(text)).strip()
        if line and line not in self.response.warnings:
            self.response.warnings.append(line)

    def audit(self, key: str, value: Any) -> None:
        """Put a value into the cluster's audit log. ValueError if the key can't be one there."""
        if not _AUDIT_KEY(key):
            raise ValueError(
                f"audit key {key!r} must be 1 to 63 letters, digits, '-', '_' or '.', "
                "with a letter or digit at both ends"
            )
        self.response.audit[key] = str(value)


_API_VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")
_OPERATIONS = ("CREATE", "UPDATE", "DELETE", "CONNECT")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_AUDIT_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?").fullmatch
_TYPE_NAMES = {dict: "an object", str: "a string", bool: "true or false", list: "a list"}


def freeze(value: Any) -> bytes:
    """A JSON value as bytes that differ where it does: true, 1 and 1.0 are three values, which ==
    says are one. Version 2 of the format has no back references, so equal values in equal order
    give equal bytes. ValueError for what is no plain JSON type, or over 2000 levels deep."""
    return marshal.dumps(value, 2)


thaw: Callable[[bytes], Any] = marshal.loads  # only ever reads what freeze() wrote
Frozen = dict[str, bytes]  # an object, each of its fields frozen


def freeze_fields(obj: dict[str, Any]) -> Frozen:
    """The object frozen field by field, so that only those that change are looked at closely: a
    label added to a 5 KB pod costs half as much as if spec were thawed and compared too.

    Equal bytes mean equal values, but not the other way round: version 4 writes a value that is
    referred to twice in another way. It takes half the time of version 2."""
    return {key: marshal.dumps(value, 4) for key, value in obj.items()}


def thaw_fields(frozen: Frozen) -> dict[str, Any]:
    return {key: thaw(value) for key, value in frozen.items()}


def parse_review(body: bytes, deadline: float = math.inf) -> Request:
    """The Request in the bytes of an AdmissionReview, v1 or v1beta1; Refusal (400) of all else."""
    review = _decode(body)
    if type(review) is not dict or review.get("kind") != "AdmissionReview":
        raise Refusal(400, "the body is not an AdmissionReview: its kind must say so")
    if review.get("apiVersion") not in _API_VERSIONS:
        raise Refusal(400, f"apiVersion must be one of {', '.join(_API_VERSIONS)}")
    fields = review.get("request")
    if type(fields) is not dict:
        raise Refusal(400, "the AdmissionReview has no request")
    obj = _field(fields, "object", dict, None)
    request = Request(obj)
    request.api_version, request.deadline = review["apiVersion"], deadline
    request.uid = _field(fields, "uid", str, "")
    if not request.uid:
        raise Refusal(400, "request.uid is missing")
    request.operation = _field(fields, "operation", str, "")
    if request.operation not in _OPERATIONS:
        raise Refusal(400, f"request.operation must be one of {', '.join(_OPERATIONS)}")
    request.kind = _names(Kind, fields, "kind")
    request.resource = _names(Resource, fields, "resource")
    request.sub_resource = _field(fields, "subResource", str, "")
    request.request_kind = request.kind  # as a v1beta1 API server means it, and nearly always
    if fields.get("requestKind") not in (None, fields.get("kind")):
        request.request_kind = _names(Kind, fields, "requestKind")
    request.request_resource = request.resource
    if fields.get("requestResource") not in (None, fields.get("resource")):
        request.request_resource = _names(Resource, fields, "requestResource")
    request.request_sub_resource = _field(fields, "requestSubResource", str, "")
    request.namespace = _field(fields, "namespace", str, "")
    request.name = _field(fields, "name", str, "") or _own_name(obj)
    request.user_info = _field(fields, "userInfo", dict, {})
    request.old_object = _field(fields, "oldObject", dict, None)
    request.dry_run = _field(fields, "dryRun", bool, False)
    request.options = _field(fields, "options", dict, None)
    return request


def _decode(body: bytes) -> Any:
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError is one; so is an integer of over 4300 digits
        reason = str(error).partition(";")[0] if body else "it is empty"
        raise Refusal(400, f"the body is not JSON: {reason}") from None


def _reject_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _reject_number(text)


_DECODER = json.JSONDecoder(parse_constant=_reject_number, parse_float=_finite)


def _field(fields: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = fields.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise Refusal(400, f"request.{key} must be {_TYPE_NAMES[kind]}")
    return value


Names = TypeVar("Names", Kind, Resource)


def _names(what: type[Names], fields: dict[str, Any], key: str) -> Names:
    values = _field(fields, key, dict, {})
    found: list[Any] = [values.get(name, "") for name in what._fields]
    if {*map(type, found)} != {str}:
        raise Refusal(400, f"{', '.join(what._fields)} in request.{key} must be strings")
    return what(*found)


def _own_name(obj: dict[str, Any] | None) -> str:
    metadata = obj.get("metadata") if obj else None
    if type(metadata) is not dict:
        return ""
    name = metadata.get("name") or metadata.get("generateName")
    return name if type(name) is str else ""


_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


def render_review(request: Request, response: Response) -> bytes:
    """The AdmissionReview that answers `request`, in the version that asked."""
    answer: dict[str, Any] = {"uid": request.uid, "allowed": response.allowed}
    if not response.allowed:
        answer["status"] = {
            "code": response.code,
            "reason": response.reason,
            "message": response.message,
        }
    if response.patch:
        patch = base64.b64encode(_ENCODE(response.patch).encode())
        answer |= {"patchType": "JSONPatch", "patch": patch.decode()}
    if response.warnings:
        answer["warnings"] = _fitting(response.warnings)
    if response.audit:
        answer["auditAnnotations"] = response.audit
    review = {"apiVersion": request.api_version, "kind": "AdmissionReview", "response": answer}
    return _ENCODE(review).encode()


def _fitting(warnings: list[str]) -> list[str]:
    """What the API server keeps: all of them up to 4096 characters, else each cut to 256."""
    if sum(map(len, warnings)) <= MAX_WARNINGS:
        return warnings
    return [warning[:MAX_WARNING] for warning in warnings][: MAX_WARNINGS // MAX_WARNING]


# ---------------------------------------------------------------------------- 4 policies


class SetupError(Exception):
    """Why whook can't start, or can't take a change: a message, and a hint what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


PolicyFunction = Callable[[Any, Request], object]


class Policy(NamedTuple):
    """One policy file: its name is the file's, without `.py`."""

    name: str
    path: str
    mutate: PolicyFunction | None
    validate: PolicyFunction | None


class PolicySet(NamedTuple):
    """All policies in the order of their names, and the hash of their sources."""

    policies: tuple[Policy, ...] = ()
    digest: str = ""

    def find(self, verb: str, name: str) -> Sequence[Policy]:
        """The policies behind /verb or /verb/name; Refusal (404) where there is none."""
        if not name:
            return self.policies
        for policy in self.policies:
            if policy.name == name and getattr(policy, verb):
                return (policy,)
        raise Refusal(404, f'there is no policy "{name}" that defines {verb}')


def read_files(paths: Iterable[str], hint: str) -> dict[str, bytes]:
    """The files' contents; SetupError names the one that can't be read."""
    try:
        return {path: Path(path).read_bytes() for path in paths}
    except OSError as error:
        raise SetupError(f"can't read {error.filename}: {error.strerror}", hint) from None


def read_sources(paths: Iterable[str]) -> dict[str, bytes]:
    """The content of every policy file behind `paths`, files or folders, by file; SetupError where
    there is none. A folder's names that start with a dot or an underscore are left out."""
    files: list[str] = []
    for path in paths:
        found = [path]
        if os.path.isdir(path):
            found = [str(p) for p in Path(path).glob("*.py") if p.name[0] not in "._"]
        if not found:
            raise SetupError(f"no policy (*.py) in folder {path}", "name a file, or leave it out")
        files += found
    return read_files(files, "--policy takes a Python file, or a folder with some")


def load_policies(sources: Mapping[str, bytes]) -> PolicySet:
    """Run each source and take its functions; SetupError names the file that is no policy."""
    ordered = sorted(sources, key=lambda path: (Path(path).stem, path))
    policies = tuple(_load_policy(path, sources[path]) for path in ordered)
    for one, other in itertools.pairwise(policies):
        if one.name == other.name:
            raise SetupError(
                f'two policies are named "{one.name}": {one.path} and {other.path}',
                "rename one of the files",
            )
    return PolicySet(policies, digest_of(sources))


def _load_policy(path: str, source: bytes) -> Policy:
    module = types.ModuleType(Path(path).stem)
    module.__file__ = path
    if not re.fullmatch("[A-Za-z0-9._-]+", module.__name__):
        raise SetupError(
            f"policy {path} can't be named in a path like /mutate/NAME",
            "use letters, digits, '-', '_' and '.'",
        )
    try:
        exec(compile(source, path, "exec"), vars(module))  # noqa: S102  the operator's own code
    except (Exception, SystemExit) as error:
        raise SetupError(
            f"policy {path} does not load: {describe(error, path)}",
            "run it with python to see the whole error",
        ) from error
    found = [getattr(module, verb, None) for verb in ("mutate", "validate")]
    functions = [function if callable(function) else None for function in found]
    if not any(functions):
        raise SetupError(
            f"policy {path} defines neither mutate nor validate",
            "a policy is a file with `def mutate(obj, request):`, or validate, or both",
        )
    return Policy(module.__name__, path, *functions)


def describe(error: BaseException, path: str) -> str:
    """What went wrong in the file at `path`, and on which of its lines."""
    lines = [n for f, n in traceback.walk_tb(error.__traceback__) if f.f_code.co_filename == path]
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {str(error)[:500]}"


def digest_of(contents: Mapping[str, bytes]) -> str:
    """A short hash over file names and contents: equal exactly where nothing changed."""
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(f"{path}\0{len(contents[path])}\0".encode("utf-8", "surrogateescape"))
        digest.update(contents[path])
    return digest.hexdigest()[:12]


# ---------------------------------------------------------------------------- 5 JSON Patch

Patch = list[dict[str, Any]]


def diff(before: Any, after: Any) -> Patch:
    """The JSON Patch (RFC 6902) that turns `before` into `after`: add, remove and replace only,
    below the root, each parent there when its turn comes. This is the part on which the API
    server's patch library and the RFC agree. Types count: true, 1 and 1.0 differ.

    Neither argument is changed, and the patch shares nothing with them. ValueError where the root
    itself would be replaced, or `after` holds what JSON can't: the message names the path.
    """
    if type(before) is not type(after) or type(after) not in (dict, list):
        if _same(before, after):
            return []
        raise ValueError("the whole document can't be replaced by a patch")
    patch: Patch = []
    _diff(before, after, "", patch)
    return patch


def _diff(before: Any, after: Any, path: str, patch: Patch) -> None:
    if type(before) is dict and type(after) is dict:
        _diff_dicts(before, after, path, patch)
    elif type(before) is list and type(after) is list:
        _diff_lists(before, after, path, patch)
    elif not _same(before, after):
        patch.append({"op": "replace", "path": path, "value": _plain(after, path)})


def _diff_dicts(before: dict[str, Any], after: dict[str, Any], path: str, patch: Patch) -> None:
    for key in before:
        if key not in after:
            patch.append({"op": "remove", "path": f"{path}/{_escape(key)}"})
    for key, value in after.items():
        if type(key) is not str:
            raise ValueError(f"{path or '/'} has the key {key!r}: JSON's keys are strings")
        if key not in before:
            place = f"{path}/{_escape(key)}"
            patch.append({"op": "add", "path": place, "value": _plain(value, place)})
        elif not _same(before[key], value):
            _diff(before[key], value, f"{path}/{_escape(key)}", patch)


def _diff_lists(before: list[Any], after: list[Any], path: str, patch: Patch) -> None:
    """What both lists start and end with stays; between, items are compared in pairs, then the
    rest is added or removed (from the end, so that the indices before it hold)."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and _same(before[start], after[start]):
        start += 1
    end = 0
    while end < shorter - start and _same(before[-1 - end], after[-1 - end]):
        end += 1
    for index in range(start, shorter - end):
        _diff(before[index], after[index], f"{path}/{index}", patch)
    for index in range(shorter - end, len(after) - end):
        value = _plain(after[index], f"{path}/{index}")
        patch.append({"op": "add", "path": f"{path}/{index}", "value": value})
    for index in range(len(before) - end - 1, shorter - end - 1, -1):
        patch.append({"op": "remove", "path": f"{path}/{index}"})


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or one != other:
        return False
    if type(one) is dict or type(one) is list:  # == says true of [1] and [True] too
        frozen = _frozen(one)
        return frozen is not None and frozen == _frozen(other)
    return True


def _frozen(value: Any) -> bytes | None:
    """freeze(), or None for what can't be frozen; a walk then finds out where."""
    try:
        return freeze(value)
    except ValueError:
        return None


def _plain(value: Any, path: str) -> Any:
    """A copy of a JSON value; ValueError names the path of anything else in it."""
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{path} has the key {key!r}: JSON's keys are strings")
        return {key: _plain(item, f"{path}/{_escape(key)}") for key, item in value.items()}
    if kind is list:
        return [_plain(item, f"{path}/{index}") for index, item in enumerate(value)]
    if value is None or kind in (str, int, bool) or (kind is float and math.isfinite(value)):
        return value
    raise ValueError(f"{path} is {value if kind is float else 'a ' + kind.__name__}: not JSON")


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1") if "~" in key or "/" in key else key


def apply(document: Any, patch: Patch) -> Any:
    """A copy of `document` with a patch of add, remove and replace applied, as strictly as the RFC
    says; ValueError names the operation that does not fit."""
    result = thaw(freeze(document))
    for step in patch:
        try:
            _apply(result, step)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{step} does not fit: {error}") from None
    return result


def _apply(target: Any, step: dict[str, Any]) -> None:
    keys = [key.replace("~1", "/").replace("~0", "~") for key in step["path"].split("/")[1:]]
    for key in keys[:-1]:
        target = target[_place(target, key)]
    place = _place(target, keys[-1])
    if step["op"] == "add" and type(target) is list:
        target[place:place] = [thaw(freeze(step["value"]))]
    elif step["op"] == "add":
        target[place] = thaw(freeze(step["value"]))
    elif step["op"] == "replace":
        target[place]  # must be there
        target[place] = thaw(freeze(step["value"]))
    elif step["op"] == "remove":
        del target[place]
    else:
        raise ValueError("the operation is unknown")


def _place(target: Any, key: str) -> Any:
    if type(target) is dict:
        return key
    if type(target) is list and key == "-":
        return len(target)
    if type(target) is not list or not re.fullmatch("0|[1-9][0-9]*", key) or int(key) > len(target):
        raise ValueError(f"there is no place {key!r} in {type(target).__name__}")
    return int(key)


# ---------------------------------------------------------------------------- 6 evaluation

Verb = Literal["mutate", "validate"]


class PolicyFault(Refusal):
    """A policy failed: the API server gets a 500 and does as its failurePolicy says."""

    def __init__(self, policy: Policy, reason: str) -> None:
        super().__init__(500, f'policy "{policy.name}" failed: {reason}')
        self.policy = policy


def evaluate(request: Request, policies: Iterable[Policy], verb: Verb = "mutate") -> Response:
    """Run the policies on the request, in their order, until one denies it.

    Pure but for what a policy does itself: no socket, no file, no clock but the deadline's. May be
    called again on the same request. PolicyFault if a policy fails; Refusal (504) if time is up.
    """
    request.response = response = Response()
    try:
        if verb == "validate":
            _validate(request, policies)
        elif request.has_object:  # on DELETE there is nothing to patch
            _mutate(request, policies)
    except Denied:
        response.patch, response.changed_by = [], {}
    return response


def _mutate(request: Request, policies: Iterable[Policy]) -> None:
    obj: Any = None
    for policy in policies:
        if policy.mutate is None:
            continue
        if obj is None:
            state, obj = request.freeze(), request.working_copy()
        _run(policy, policy.mutate, obj, request)
        changed = _frozen_fields(obj)
        if changed != state:
            steps = _steps(policy, state, changed or {}, obj)
            request.response.patch += steps
            request.response.changed_by[policy.name] = len(steps)
            state = changed or freeze_fields(obj)


def _frozen_fields(obj: dict[str, Any]) -> Frozen | None:
    try:
        return freeze_fields(obj)
    except ValueError:
        return None  # what can't be frozen is no JSON: diff() says where


def _steps(policy: Policy, before: Frozen, after: Frozen, obj: dict[str, Any]) -> Patch:
    same = {key for key, value in after.items() if before.get(key) == value}
    try:
        return diff(
            {key: thaw(value) for key, value in before.items() if key not in same},
            {key: value for key, value in obj.items() if key not in same},
        )
    except (ValueError, RecursionError) as error:
        raise PolicyFault(policy, f"what it made can't be sent: {error}") from None


def _validate(request: Request, policies: Iterable[Policy]) -> None:
    for policy in policies:
        if policy.validate is not None:
            obj = request.working_copy() if request.has_object else None
            _run(policy, policy.validate, obj, request)


def _run(policy: Policy, function: PolicyFunction, obj: Any, request: Request) -> None:
    started = time.monotonic()
    if started > request.deadline:
        raise Refusal(504, f'the deadline passed before policy "{policy.name}" ran')
    try:
        function(obj, request)
    except (Exception, SystemExit) as error:
        raise PolicyFault(policy, describe(error, policy.path)) from error
    finally:
        request.response.spent[policy.name] = time.monotonic() - started
    if not request.response.allowed:  # a bare `except:` in the policy can't undo its denial
        raise Denied


# ---------------------------------------------------------------------------- 7 HTTP
#
# What comes                                              what goes out             then
# a review that policies allow, patch or deny             200 AdmissionReview       next request
# a review that a policy fails on                         500 Status                next request
# a body that is no review                                400 Status                next request
# an unknown path or policy; another method or type       404, 405, 415 Status      next request
# over the bounds                                         503 Status, Retry-After   closed
# a head that can be read in two ways                     400 Status                closed
# no length, or chunks; too large; a long line, many      411, 413, 431 Status      closed
# silence past a time-out; bytes that are no TLS          nothing                   closed
#
# A 503 with Retry-After is sent again by the API server within its deadline; a cut is not.


class Head(NamedTuple):
    """A request's first lines; header names are in lower case."""

    method: str
    target: str
    version: str
    headers: dict[str, str]

    def keep_alive(self) -> bool:
        close = "close" in self.headers.get("connection", "").lower()
        return self.version == "1.1" and not close


class Answer(NamedTuple):
    """What to send back."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/(1\.[01])\r\n").fullmatch
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)\r\n").fullmatch
_SINGLE = {"host", "content-length", "transfer-encoding", "content-type", "expect"}
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_REASONS = {400: "BadRequest", 404: "NotFound", 405: "MethodNotAllowed", 500: "InternalError"}
_REASONS |= {413: "RequestEntityTooLarge", 415: "UnsupportedMediaType", 504: "Timeout"}
_REASONS |= {503: "ServiceUnavailable"}


def status_answer(refusal: Refusal) -> Answer:
    """A refusal as a metav1.Status: the API server shows its message to the user."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body |= {"message": refusal.message, "reason": _REASONS.get(refusal.status, "")}
    content = _ENCODE(body | {"code": refusal.status}).encode()
    return Answer(refusal.status, content, refusal.headers)


def read_head(stream: BufferedIOBase) -> Head:
    """Read a request's head, strictly; Refusal (400, 431) for anything two readers could take in
    two ways, EOFError where the client is gone."""
    match = _REQUEST_LINE(_line(stream))
    if not match:
        raise Refusal(400, "the request line is not like POST /mutate HTTP/1.1")
    method, target, version = (part.decode("ascii") for part in match.groups())
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS + 1):
        line = _line(stream)
        if line == b"\r\n":
            break
        match = _HEADER(line)
        if not match:
            raise Refusal(400, "a header is malformed, folded, or has a space before its colon")
        name = match[1].decode("ascii").lower()
        if name in _SINGLE and name in headers:
            raise Refusal(400, f"the header {name} stands there twice")
        headers[name] = match[2].decode("latin-1").strip()
    else:
        raise Refusal(431, f"there are more than {MAX_HEADERS} headers")
    if version == "1.1" and "host" not in headers:
        raise Refusal(400, "the header host is missing")
    return Head(method, target, version, headers)


def _line(stream: BufferedIOBase) -> bytes:
    line = stream.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise Refusal(431, f"a line of the head is longer than {MAX_LINE} bytes")
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def body_length(head: Head, limit: int) -> int:
    """The length of the body to come, in bytes; Refusal (400, 411, 413) if it isn't clear."""
    text = head.headers.get("content-length")
    if "transfer-encoding" in head.headers:
        if text is not None:
            raise Refusal(400, "content-length and transfer-encoding exclude each other")
        raise Refusal(411, "send a content-length; transfer-encoding is not supported")
    if text is None:
        if head.method == "POST":
            raise Refusal(411, "send a content-length")
        return 0
    if not re.fullmatch("[0-9]{1,18}", text):
        raise Refusal(400, f"the content-length {text[:40]!r} is not a number")
    if int(text) > limit:
        raise Refusal(413, f"the body of {text} bytes is over the limit of {limit} (--max-body)")
    return int(text)


class Connection:
    """A client's socket, and how long it may take over what it does now."""

    def __init__(self, client: socket.socket, peer: str, refused: bool) -> None:
        self.socket, self.peer = client, peer
        self.refused = refused  # over the bound: it will be told so
        self.served = False  # has had an answer
        self.overdue = math.inf  # when the policy at work on its review counts as stuck
        self.expect(HANDSHAKE_TIMEOUT, PRESSED_TIMEOUT)

    def expect(self, limit: float, pressed: float) -> None:
        """From now on it has `limit` seconds, or `pressed` while the server is half full."""
        self.limit, self.pressed, self.since = limit, pressed, time.monotonic()

    def cut(self) -> None:
        """Wake the thread that waits on this socket: its next read or write fails."""
        with contextlib.suppress(OSError):
            # not SSLSocket's own: that one drops the TLS state under the other thread
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Handler(http.server.BaseHTTPRequestHandler):
    """Frames one connection's bytes; what to answer is for `server.respond` to say.

    Sockets block without a time-out of their own: the server's reap() cuts what takes too long,
    from handshake to answer, however slowly the bytes drip.
    """

    server: Server
    rbufsize = 64 * 1024  # four TLS records
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.watched = self.server.connections[self.request]
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def handle_one_request(self) -> None:
        watched, server = self.watched, self.server
        self.close_connection = True  # unless a whole request gets its answer
        watched.expect(IDLE_TIMEOUT, IDLE_TIMEOUT if watched.served else PRESSED_TIMEOUT)
        if not self.rfile.peek(1):  # type: ignore[attr-defined]  # it is a BufferedReader
            return
        watched.expect(HEAD_TIMEOUT, PRESSED_TIMEOUT)
        head, whole, held = None, False, 0
        try:
            head = read_head(self.rfile)
            length = body_length(head, server.max_body)
            held = server.hold(length, watched)
            body = self.read_body(head, length)
            whole = True
            watched.expect(math.inf, math.inf)
            answer = server.respond(head, body, watched)
        except EOFError:
            return
        except Refusal as refusal:
            answer = server.refuse(refusal, watched.peer)
        except Exception as error:
            if isinstance(error, OSError) and not whole:
                raise  # the connection broke
            log("ERROR", "bug", error=describe(error, __file__), trace=traceback.format_exc())
            answer = server.refuse(Refusal(500, "whook failed: see its log"), watched.peer)
        finally:
            watched.overdue = math.inf
            with server.lock:
                server.held -= held
        keep = whole and not server.draining and head is not None and head.keep_alive()
        watched.expect(WRITE_TIMEOUT, PRESSED_TIMEOUT)
        self.send(answer, keep, head is None or head.method != "HEAD")
        watched.served, self.close_connection = True, not keep
        if not whole:
            self.linger()

    def read_body(self, head: Head, length: int) -> bytes:
        self.watched.expect(BODY_TIMEOUT, BODY_TIMEOUT)  # a large one may be slow because we are
        if head.headers.get("expect", "").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(length)
        if len(body) < length:
            raise EOFError
        return body

    def send(self, answer: Answer, keep: bool, with_body: bool) -> None:
        """One write, so that no half of an answer waits for the client's acknowledgement."""
        head = (
            f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
            f"Date: {_http_date(int(time.time()))}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
        )
        for name, value in answer.headers.items():
            head += f"{name}: {value}\r\n"
        head += "\r\n" if keep else "Connection: close\r\n\r\n"
        self.connection.sendall(head.encode("latin-1") + (answer.body if with_body else b""))

    def linger(self) -> None:
        """Throw away what still comes: closing on unread bytes would reset the connection, and
        the client would never see the answer."""
        self.watched.expect(LINGER_TIMEOUT, PRESSED_TIMEOUT)
        socket.socket.shutdown(self.connection, socket.SHUT_WR)
        while self.rfile.read1(self.rbufsize):
            pass


@functools.lru_cache(maxsize=4)
def _http_date(second: int) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second))


Respond = Callable[[Head, bytes, Connection], Answer]


class Server(http.server.ThreadingHTTPServer):
    """A bounded HTTP/1.1 server, over TLS where it has a context: a thread a connection. `respond`
    answers a whole request, or raises Refusal; `draining` closes each connection as it answers."""

    context: ssl.SSLContext | None = None
    max_body, max_connections = MAX_BODY, MAX_CONNECTIONS
    draining = False
    held = 0  # bytes of bodies in flight
    last_logged = 0.0

    def __init__(self, listener: socket.socket, respond: Respond) -> None:
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        listener.setblocking(False)  # several workers may wake for one connection
        self.respond, self.lock = respond, threading.Lock()
        self.connections: dict[socket.socket, Connection] = {}
        self.counted: Callable[[str], None] = lambda what: None  # told of each refusal
        self.crowded: Callable[[int], bool] = lambda count: False  # told how many are connected

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; a worker with more of them than another lets that one go first. The
        API server keeps few, and for long: one of two workers had 5 or more of 8 half the time."""
        if self.crowded(len(self.connections)):
            time.sleep(HEAD_START)
        try:
            client, address = self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(TICK / 10)  # the listener stays readable: don't spin
            raise
        client.setblocking(True)
        if self.context:
            wrap = functools.partial(self.context.wrap_socket, server_side=True)
            client = wrap(client, do_handshake_on_connect=False)  # that is for its own thread
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        count = len(self.connections)
        if count >= self.max_connections + MAX_REFUSING:
            self.count("overfull")
            return False
        refused = count >= self.max_connections
        self.connections[request] = Connection(request, str(client_address[0]), refused)
        self.crowded(len(self.connections))
        return True

    def shutdown_request(self, request: Any) -> None:
        with self.lock:  # so that reap() never cuts a socket whose number was given away again
            self.connections.pop(request, None)
            self.crowded(len(self.connections))
            super().shutdown_request(request)

    def hold(self, length: int, connection: Connection) -> int:
        """Make room for a body, of at least 1/32 of the largest; Refusal (503) if there is none."""
        share = max(length, self.max_body // SMALLEST_SHARE)
        with self.lock:
            if connection.refused or self.held + share > self.max_body * BODIES_IN_FLIGHT:
                raise Refusal(503, "whook is at its limit", **{"Retry-After": "1"})
            self.held += share
        return share

    def reap(self, idle: bool = False) -> None:
        """Cut each connection that takes longer than it may, or all that have no review at work.
        Half full, there is less patience."""
        now = time.monotonic()
        with self.lock:
            full = self.held * 2 > self.max_body * BODIES_IN_FLIGHT
            full |= len(self.connections) * 2 > self.max_connections
            for connection in list(self.connections.values()):
                limit = connection.pressed if full else connection.limit
                if now - connection.since > limit or (idle and limit != math.inf):
                    connection.cut()

    def refuse(self, refusal: Refusal, peer: str) -> Answer:
        self.count(str(refusal.status), peer=peer, error=refusal.message)
        return status_answer(refusal)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        reason = getattr(error, "reason", None) or type(error).__name__
        self.count("connection", peer=str(client_address[0]), error=f"{reason}: {error}")

    def count(self, what: str, **fields: object) -> None:
        """Count what got no verdict; log the first in a second, as a flood must not fill a disk."""
        self.counted(what)
        if time.monotonic() - self.last_logged > 1:
            self.last_logged = time.monotonic()
            log("WARN", "refused", what=what, **fields)


# ---------------------------------------------------------------------------- 8 TLS


class Serving(NamedTuple):
    """A TLS context, and what the log, the metrics and /readyz say of its certificate."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    not_after: float  # seconds since 1970


def load_tls(options: argparse.Namespace, files: Mapping[str, bytes]) -> Serving:
    """A new context that was proven to serve, and its certificate; SetupError otherwise.

    Always a new one: a failed load_cert_chain on a context in use breaks its later handshakes.
    """
    cert, key = options.tls_cert, options.tls_key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0  # the API server never resumes: two tickets a handshake for nothing
    at_fault, hint = f"{cert} with {key}", "take both from one Secret, PEM, no password on the key"
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        at_fault, hint = cert, "make a new one: python certs.py, or here: python certs.py local"
        names, not_after = _prove(context, cert)
        at_fault, hint = options.client_ca, "give the CA's certificates as PEM"
        if options.client_ca:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error
        raise SetupError(f"can't serve with {at_fault}: {reason}", hint) from None
    if read_files(files, "") != files:
        raise SetupError("the TLS files changed while they were read", "they will be read again")
    return Serving(context, names, not_after)


def _no_password() -> NoReturn:
    raise ValueError("the key has a password")


def _prove(context: ssl.SSLContext, cert: str) -> tuple[tuple[str, ...], float]:
    """Shake hands with ourselves in memory, trusting just this certificate: it must belong to the
    key, and be valid today, for a server. Its names and its end; ssl.SSLError otherwise."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cert)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    facts: dict[str, Any] = client.getpeercert() or {}
    names = tuple(name for _, name in facts.get("subjectAltName", ()))
    return names, ssl.cert_time_to_seconds(facts["notAfter"])


Made = TypeVar("Made")


class Watched(Generic[Made]):
    """Something made from files (the policies, the TLS context), and made anew when their content
    changes. `value` is the last good one; SetupError if the first is none."""

    def __init__(
        self,
        what: str,
        read: Callable[[], Mapping[str, bytes]],
        make: Callable[[Mapping[str, bytes]], Made],
    ) -> None:
        self.what, self.read, self.make = what, read, make
        contents = read()
        self.value, self.seen = make(contents), digest_of(contents)
        self.errors, self.complaint, self.made_at = 0, "", time.time()

    def refresh(self) -> None:
        """Look at the files. A mounted ConfigMap or Secret swaps a link to a whole folder, maybe
        between two reads of ours: so only what reads the same twice is taken."""
        seen = ""
        try:
            contents = self.read()
            if digest_of(contents) != self.seen and self.read() == contents:
                seen = digest_of(contents)
                self.value, self.made_at = self.make(contents), time.time()
                self.seen, self.complaint = seen, ""
                log("INFO", "reloaded", what=self.what, hash=seen)
        except SetupError as error:
            self.seen = seen  # not tried again until it changes
            if self.complaint != error.message:
                self.complaint, self.errors = error.message, self.errors + 1
                log("ERROR", "reload", what=self.what, error=error.message, hint=error.hint)


# ---------------------------------------------------------------------------- 9 metrics

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 10, 30)
MAX_KINDS = 64  # that have a label of their own; the rest is "other"

Merge = Callable[[Sequence[float]], float]
# name: type, help, how the values of several workers become one
METRICS: dict[str, tuple[str, str, Merge]] = {
    "whook_reviews_total": ("counter", "Reviews, by path, operation, kind and outcome.", sum),
    "whook_review_duration_seconds": ("histogram", "From body read to answer made.", sum),
    "whook_policy_duration_seconds": ("summary", "Time in each policy.", sum),
    "whook_policy_errors_total": ("counter", "Reviews that a policy failed on.", sum),
    "whook_patch_operations_total": ("counter", "JSON Patch operations, by policy.", sum),
    "whook_refusals_total": ("counter", "Requests without a verdict, by status or cause.", sum),
    "whook_reviews_in_flight": ("gauge", "Reviews at work.", sum),
    "whook_connections": ("gauge", "Open connections on the admission port.", sum),
    "whook_workers": ("gauge", "Workers that are ready.", sum),
    "whook_worker_restarts_total": ("counter", "Workers that were replaced.", sum),
    "whook_reload_errors_total": ("counter", "Changed files that could not be used.", max),
    "whook_reload_timestamp_seconds": ("gauge", "When the files in use were loaded.", max),
    "whook_policies_info": ("gauge", "The hash of the policies in use.", max),
    "whook_certificate_not_after_timestamp_seconds": ("gauge", "The leaf's end.", min),
    "whook_build_info": ("gauge", "The versions of whook and Python.", max),
}

Series = dict[tuple[str, str], list[float]]  # (metric, its labels as text) to its numbers


class Metrics:
    """One process's numbers: one for a counter or gauge; for a histogram or summary a count for
    each bucket, then the sum. Goes on from the counters in `series`."""

    def __init__(self, series: Series) -> None:
        self.series = {key: v for key, v in series.items() if METRICS[key[0]][0] != "gauge"}
        self.kinds: set[str] = set()
        self.lock = threading.Lock()

    def add(self, name: str, labels: str = "", amount: float = 1) -> None:
        with self.lock:
            self._numbers(name, labels, 1)[0] += amount

    def set(self, name: str, labels: str, value: float) -> None:
        with self.lock:
            self.series[name, labels] = [value]

    def forget(self, name: str) -> None:
        with self.lock:
            self.series = {key: value for key, value in self.series.items() if key[0] != name}

    def observe(self, name: str, labels: str, seconds: float) -> None:
        with self.lock:
            numbers = self._numbers(name, labels, len(BUCKETS) + 2)
            numbers[bisect.bisect_left(BUCKETS, seconds)] += 1
            numbers[-1] += seconds

    def _numbers(self, name: str, labels: str, count: int) -> list[float]:
        if (name, labels) not in self.series and len(self.series) >= MAX_SERIES:
            labels = ""
        return self.series.setdefault((name, labels), [0] * count)

    def review(self, path: str, request: Request, outcome: str, seconds: float) -> None:
        kind = request.kind.kind
        if kind not in self.kinds:
            kind = kind if len(self.kinds) < MAX_KINDS and kind.isalnum() else "other"
            self.kinds.add(kind)
        labels = f'path="{path}",operation="{request.operation}",kind="{kind}"'
        self.add("whook_reviews_total", f'{labels},outcome="{outcome}"')
        self.observe("whook_review_duration_seconds", f'path="{path}"', seconds)
        for policy, spent in request.response.spent.items():
            self.observe("whook_policy_duration_seconds", f'policy="{policy}"', spent)
        for policy, count in request.response.changed_by.items():
            self.add("whook_patch_operations_total", f'policy="{policy}"', count)


class Board:
    """Shared memory made before the fork, with a slot for each process: its heartbeat, its number
    of connections and its numbers, so that any worker can tell the sum, and a new one goes on
    where the dead one was. Who meets a half-written slot sees a wrong checksum, and looks again."""

    _HEAD = struct.Struct("<dII")  # heartbeat, then the length and the checksum of the numbers

    def __init__(self, slots: int) -> None:
        self.slots = range(slots)
        self.memory = mmap.mmap(-1, slots * SLOT_SIZE)
        self.connections = memoryview(mmap.mmap(-1, slots * 4)).cast("i")

    def publish(self, slot: int, series: Series) -> None:
        data = marshal.dumps(series)  # MAX_SERIES of them fit
        start = slot * SLOT_SIZE + self._HEAD.size
        self.memory[start : start + len(data)] = data
        head = (time.monotonic(), len(data), zlib.crc32(data))
        self._HEAD.pack_into(self.memory, slot * SLOT_SIZE, *head)

    def crowded(self, slot: int, count: int) -> bool:
        """Take note of a worker's connections; whether it has more than another worker."""
        self.connections[slot] = count
        return count > min(self.connections[:-1])  # the last slot is the supervisor's

    def heartbeat(self, slot: int) -> float:
        """When the slot was last published, on time.monotonic()'s clock; 0 if never."""
        return float(self._HEAD.unpack_from(self.memory, slot * SLOT_SIZE)[0])

    def read(self, slot: int) -> Series:
        start = slot * SLOT_SIZE + self._HEAD.size
        for _ in range(100):
            _, length, checksum = self._HEAD.unpack_from(self.memory, slot * SLOT_SIZE)
            data = self.memory[start : start + length]
            if data and zlib.crc32(data) == checksum:
                return thaw(data)  # type: ignore[no-any-return]
        return {}


def render_metrics(parts: Sequence[Series]) -> bytes:
    """The numbers of all processes together, in Prometheus' text format 0.0.4."""
    lines = []
    keys = sorted({key for series in parts for key in series})
    for name, (kind, text, merge) in METRICS.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for key in [key for key in keys if key[0] == name]:
            columns = zip(*[series[key] for series in parts if key in series], strict=True)
            *counts, total = [merge(column) for column in columns]
            labels = key[1]
            if not counts:
                lines.append(f"{name}{{{labels}}} {total:.15g}")
                continue
            bounds = (*BUCKETS, "+Inf") if kind == "histogram" else ()
            for index, bound in enumerate(bounds, 1):
                lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {sum(counts[:index])}')
            lines.append(f"{name}_sum{{{labels}}} {total:.15g}")
            lines.append(f"{name}_count{{{labels}}} {sum(counts)}")
    return "\n".join([*lines, ""]).encode()


# ---------------------------------------------------------------------------- 10 workers

Evaluate = Callable[[Request, Sequence[Policy], Verb], Response]

_TARGET = re.compile(r"/(mutate|validate)(?:/([A-Za-z0-9._-]+))?(?:\?(.*))?").fullmatch
_TIMEOUT = re.compile(r"(?:^|&)timeout=([^&]*)").search


def route(head: Head) -> tuple[Verb, str, float]:
    """Which policies a request is for ("" means all), and its time-out in seconds; Refusal (400,
    404, 405, 415) if it is for none."""
    target = _TARGET(head.target)
    if not target:
        raise Refusal(404, "there is nothing here but /mutate and /validate, or /mutate/POLICY")
    if head.method != "POST":
        raise Refusal(405, f"{head.method} is not allowed: POST an AdmissionReview", Allow="POST")
    content_type = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refusal(415, f"the content-type {content_type!r} is not application/json")
    verb: Verb = "mutate" if target[1] == "mutate" else "validate"
    timeout = _TIMEOUT(target[3] or "")
    if not timeout:
        return verb, target[2] or "", DEFAULT_TIMEOUT
    if not re.fullmatch("[0-9]{1,4}s", timeout[1]):
        raise Refusal(400, f"the timeout {timeout[1]!r} is not in whole seconds, as in 5s")
    return verb, target[2] or "", float(timeout[1][:-1])


class Setup(NamedTuple):
    """All that a worker needs; made before it is forked."""

    options: argparse.Namespace
    admission: socket.socket
    health: socket.socket
    policies: Watched[PolicySet]
    tls: Watched[Serving]
    board: Board


class Worker:
    """A process that serves: two threads accept, each connection has one, and the main thread
    looks after time-outs, changed files, the heartbeat and the end.

    `evaluate` may be another function of the same shape, such as the debugging desk's.
    """

    def __init__(self, setup: Setup, slot: int = 0, evaluate: Evaluate = evaluate) -> None:
        options = setup.options
        self.setup, self.slot, self.evaluate = setup, slot, evaluate
        self.metrics = Metrics(setup.board.read(slot))
        self.admission = Server(setup.admission, self.review)
        self.admission.max_body = options.max_body
        self.admission.max_connections = options.max_connections
        self.admission.crowded = functools.partial(setup.board.crowded, slot)
        self.health = Server(setup.health, self.answer_health)
        for server in (self.admission, self.health):
            server.counted = lambda what: self.metrics.add(
                "whook_refusals_total", f'reason="{what}"'
            )
        self.wake = threading.Event()
        self.parent = os.getppid()
        self.ending: list[float] = []  # since when, until when at most, on the monotonic clock
        self.status = 0

    def run(self) -> int:
        """Serve until a signal says otherwise; returns the exit status."""
        self.look_after()
        for server in (self.admission, self.health):
            threading.Thread(target=server.serve_forever, args=(TICK,), daemon=True).start()
        while not self.ended():
            self.wake.wait(TICK)
            self.wake.clear()
            self.look_after()
        self.admission.shutdown()
        self.finish()
        return self.status

    def obey_signals(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.end(self.setup.options.grace_period))
        signal.signal(signal.SIGINT, lambda *_: self.end(0))

    def look_after(self) -> None:
        """What is due every half second."""
        setup, servers = self.setup, (self.admission, self.health)
        setup.policies.refresh()
        setup.tls.refresh()
        self.admission.context = setup.tls.value.context
        for server in servers:
            server.reap()
        if self.stuck() and not self.ending:
            log("ERROR", "stuck", hint="a policy did not come back: this worker is replaced")
            self.status = 1
            self.admission.shutdown()  # the other workers serve who comes now,
            self.health.shutdown()  # and say how they are
            self.end(SETTLE_TIME)
        if os.getppid() != self.parent and not self.ending:
            self.end(0)
        log.flush()
        self.publish()

    # -- reviews

    def review(self, head: Head, body: bytes, connection: Connection) -> Answer:
        started = time.monotonic()
        verb, name, timeout = route(head)
        policies = self.setup.policies.value.find(verb, name)
        connection.overdue = started + timeout + STUCK_AFTER
        request = parse_review(body, started + timeout)
        outcome = "error"
        try:
            response = self.evaluate(request, policies, verb)
            answer = Answer(200, render_review(request, response))
            outcome = "allowed" if response.allowed else "denied"
        except PolicyFault as fault:
            answer = status_answer(fault)
            self.report(fault, request)
        path = f"/{verb}/{name}" if name else f"/{verb}"
        duration = time.monotonic() - started
        self.metrics.review(path, request, outcome, duration)
        self.log_review(path, request, outcome, duration)
        return answer

    def report(self, fault: PolicyFault, request: Request) -> None:
        trace = "".join(traceback.format_exception(fault.__cause__)) if fault.__cause__ else ""
        log("ERROR", "policy", uid=request.uid, error=fault.message, trace=trace)
        self.metrics.add("whook_policy_errors_total", f'policy="{fault.policy.name}"')

    def log_review(self, path: str, request: Request, outcome: str, duration: float) -> None:
        name = f"{request.namespace}/{request.name}" if request.namespace else request.name
        fields: dict[str, Any] = {"uid": request.uid, "path": path, "operation": request.operation}
        fields |= {"kind": request.kind.kind, "object": name}
        fields |= {"user": request.user_info.get("username", "")}
        fields |= {"allowed": "error" if outcome == "error" else request.response.allowed}
        fields |= {"patch": len(request.response.patch), "duration": f"{duration * 1000:.2f}ms"}
        log("ERROR" if outcome == "error" else "INFO", "review", **fields)

    # -- health

    def answer_health(self, head: Head, body: bytes, connection: Connection) -> Answer:
        if head.method not in ("GET", "HEAD"):
            raise Refusal(405, f"{head.method} is not allowed: GET it", Allow="GET")
        path = head.target.partition("?")[0]
        if path == "/metrics":
            self.publish()
            return Answer(200, self.all_metrics(), {}, "text/plain; version=0.0.4")
        if path not in ("/livez", "/readyz"):
            raise Refusal(404, "there is nothing here but /livez, /readyz and /metrics")
        wrong = self.unready() if path == "/readyz" else "a policy is stuck" * self.stuck()
        text = f"not ok: {wrong}\n" if wrong else "ok\n"
        return Answer(503 if wrong else 200, text.encode(), {}, "text/plain")

    def all_metrics(self) -> bytes:
        """Every process's numbers; of one that is dead or stopped, what it counted."""
        board, recently = self.setup.board, time.monotonic() - 10 * TICK
        parts = {slot: board.read(slot) for slot in board.slots}
        for slot, series in parts.items():
            if board.heartbeat(slot) < recently:
                parts[slot] = Metrics(series).series
        return render_metrics([*parts.values()])

    def stuck(self) -> bool:
        """Whether a policy is still at work STUCK_AFTER past its review's deadline."""
        at_work = list(self.admission.connections.values())
        return min((c.overdue for c in at_work), default=math.inf) < time.monotonic()

    def unready(self) -> str:
        """Why no review should come here; "" if they may."""
        if self.ending:
            return "draining"
        if time.time() > self.setup.tls.value.not_after:
            return "the serving certificate has expired"
        return "a policy is stuck" * self.stuck()

    def publish(self) -> None:
        setup, put = self.setup, self.metrics.set
        at_work = [c for c in list(self.admission.connections.values()) if c.overdue < math.inf]
        put("whook_reviews_in_flight", "", len(at_work))
        put("whook_connections", "", len(self.admission.connections))
        put("whook_workers", "", not self.unready())
        put("whook_certificate_not_after_timestamp_seconds", "", setup.tls.value.not_after)
        self.metrics.forget("whook_policies_info")
        put("whook_policies_info", f'hash="{setup.policies.value.digest}"', 1)
        put("whook_build_info", f'version="{__version__}",python="{sys.version.split()[0]}"', 1)
        for watched in (setup.policies, setup.tls):
            put("whook_reload_timestamp_seconds", f'what="{watched.what}"', watched.made_at)
            put("whook_reload_errors_total", f'what="{watched.what}"', watched.errors)
        with self.metrics.lock:
            setup.board.publish(self.slot, self.metrics.series)

    # -- the end

    def end(self, grace: float) -> None:
        """Begin to drain: not ready, still serving, each answer closes its connection. Twice:
        end at once."""
        if self.ending:
            os._exit(1)
        now = time.monotonic()
        self.ending = [now, now + grace]
        self.admission.draining = True
        self.wake.set()

    def ended(self) -> bool:
        """Whether the draining is over: nobody is connected, nor was for a while, or time is up."""
        if not self.ending:
            return False
        now = time.monotonic()
        if self.admission.connections:
            self.ending[0] = now
        return now >= min(self.ending[0] + SETTLE_TIME, self.ending[1])

    def finish(self) -> None:
        """Cut who is idle, and wait for the reviews at work but those that are stuck."""
        while True:
            self.admission.reap(idle=True)
            self.publish()
            now = time.monotonic()
            at_work = list(self.admission.connections.values())
            if not any(now < connection.overdue < math.inf for connection in at_work):
                return log.flush()
            time.sleep(TICK / 50)


class Supervisor:
    """Forks the workers, and replaces those that die or fall silent. It has no second thread: a
    fork would copy the locks that such a thread holds."""

    def __init__(self, setup: Setup) -> None:
        count = setup.options.workers
        self.setup, self.slot = setup, count  # the board's last slot is its own
        self.metrics = Metrics({})
        self.workers: dict[int, int] = {}  # process id to slot
        self.changed = [0.0] * count  # when each slot was filled or emptied
        self.pause = [0.0] * count  # before it is filled again
        self.status = 0
        self.kill_at = math.inf  # finite once the workers were told to end

    def run(self) -> int:
        """Keep the workers up until a signal ends them all; returns the exit status."""
        awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        while self.workers or self.kill_at == math.inf:
            if self.kill_at == math.inf:
                self.start_missing()
            received = signal.sigtimedwait(awaited, TICK)
            if received and received.si_signo != signal.SIGCHLD:
                self.end(received.si_signo)
            self.kill_silent()
            self.bury()
            self.setup.board.publish(self.slot, self.metrics.series)
        return self.status

    def start_missing(self) -> None:
        now = time.monotonic()
        for slot in set(range(self.slot)) - set(self.workers.values()):
            if now >= self.changed[slot] + self.pause[slot]:
                self.changed[slot] = now
                process = os.fork()
                if not process:
                    _be_a_worker(self.setup, slot)
                self.workers[process] = slot

    def bury(self) -> None:
        """Note who died: replaced at once, or after a pause that grows if it died young. SetupError
        if one dies before any has ever come up."""
        for process, slot in list(self.workers.items()):
            dead, status = os.waitpid(process, os.WNOHANG)
            if not dead:
                continue
            del self.workers[process]
            code = os.waitstatus_to_exitcode(status)
            if self.kill_at < math.inf:
                self.status |= code != 0
                continue
            lived = time.monotonic() - self.changed[slot]
            log("ERROR", "worker ended", process=process, status=code, lived=f"{lived:.1f}s")
            if not any(map(self.setup.board.heartbeat, range(self.slot))):
                raise SetupError("no worker could start", "the log above says why")
            self.pause[slot] = 0 if lived > LONG_LIFE else min(2 * self.pause[slot] + 0.1, 5)
            self.changed[slot] += lived
            self.metrics.add("whook_worker_restarts_total")

    def kill_silent(self) -> None:
        """Kill each worker without a heartbeat for too long: stopped, or stuck in C code."""
        now = time.monotonic()
        for process, slot in self.workers.items():
            beat = max(self.setup.board.heartbeat(slot), self.changed[slot])
            if now - beat > STUCK_AFTER or now > self.kill_at:
                log("ERROR", "worker killed", process=process, silent=f"{now - beat:.1f}s")
                os.kill(process, signal.SIGKILL)

    def end(self, number: int) -> None:
        """Pass a SIGTERM or SIGINT on. Who is late is killed; on a second one, all are."""
        grace = self.setup.options.grace_period if number == signal.SIGTERM else 0
        patience = grace + 2 * STUCK_AFTER if self.kill_at == math.inf else 0
        self.kill_at = time.monotonic() + patience
        for process in self.workers:
            os.kill(process, number)


def _be_a_worker(setup: Setup, slot: int) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C then reaches the supervisor alone, which passes it on
        worker = Worker(setup, slot)
        worker.obey_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        status = worker.run()
    except BaseException as error:
        log("ERROR", "worker", error=describe(error, __file__), trace=traceback.format_exc())
    finally:
        os._exit(status)


def usable_cores() -> int:
    """How many cores this process may use, by its affinity and its cgroup's quota; at least 1.
    Where there is no fork, 1."""
    if not hasattr(signal, "sigtimedwait"):
        return 1
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or no quota ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


# ---------------------------------------------------------------------------- 11 command line

EXAMPLES = """\
examples:
  python certs.py local                     # certificates for this machine
  python whook.py --tls-cert webhook-certs/server-cert.pem \\
                  --tls-key webhook-certs/server-key.pem --policy policies

SIGTERM: not ready, keep serving, end when nobody is connected any more (exit 0).
Ctrl-C: finish what is in flight, then end. Twice: end at once."""


def main(argv: Sequence[str] | None = None, evaluate: Evaluate = evaluate) -> int:
    """The command line; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    options = parse_arguments(argv)
    log.format = options.log_format
    try:
        setup = set_up(options)
        if options.workers > 1:
            return Supervisor(setup).run()
        worker = Worker(setup, 0, evaluate)
        worker.obey_signals()
        return worker.run()
    except SetupError as error:
        print(f"whook: error: {error.message}\nwhook: hint: {error.hint}", file=sys.stderr)
        return 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="whook",
        description="A Kubernetes admission webhook: AdmissionReviews in, plain Python policies.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tls-cert", metavar="FILE", required=True, help="certificate chain, PEM; reloaded")
    add("--tls-key", metavar="FILE", required=True, help="its private key, PEM; reloaded")
    add("--policy", metavar="FILE|DIR", action="append", default=[], help="reloaded; repeatable")
    add("--host", metavar="ADDR", default="", help="address to listen on (default: all)")
    add("--port", type=_whole(0, 65535), default=8443, help="for the API server, HTTPS")
    add("--health-port", type=_whole(0, 65535), default=8080, help="plain HTTP: /livez ...")
    add("--workers", type=_whole(1, 256), default=usable_cores(), help="processes (%(default)s)")
    add("--client-ca", metavar="FILE", help="demand a client certificate from this CA")
    add("--max-body", metavar="BYTES", type=_whole(1024, 2**30), default=MAX_BODY)
    add("--max-connections", metavar="N", type=_whole(1, 100_000), default=MAX_CONNECTIONS)
    add("--grace-period", metavar="SECONDS", type=_whole(0, 3600), default=GRACE_PERIOD)
    add("--log-format", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    if options.workers > 1 and not hasattr(signal, "sigtimedwait"):
        parser.error("this system can't fork workers; use --workers 1")
    return options


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return number


def set_up(options: argparse.Namespace) -> Setup:
    """Load, prove and bind all that serving needs, and log what it is; SetupError."""
    files = [file for file in (options.tls_cert, options.tls_key, options.client_ca) if file]
    policies = Watched("policies", lambda: read_sources(options.policy), load_policies)
    hint = "`python certs.py local` makes a certificate and key in webhook-certs/"
    tls = Watched("tls", lambda: read_files(files, hint), functools.partial(load_tls, options))
    admission = listen(options.host, options.port, "--port")
    health = listen(options.host, options.health_port, "--health-port")
    _allow_files(2 * options.max_connections)
    where = [listener.getsockname() for listener in (admission, health)]
    log("INFO", "listening", admission=where[0][1], health=where[1][1], host=where[0][0],
        workers=options.workers, version=__version__)  # fmt: skip
    names = ",".join(policy.name for policy in policies.value.policies)
    log("INFO", "policies", names=names, hash=policies.value.digest)
    end = _utc_second(int(tls.value.not_after)) + "Z"
    log("INFO", "certificate", names=",".join(tls.value.names), not_after=end)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()  # what stands here stays: neither walk it again nor copy its pages after a fork
    return Setup(options, admission, health, policies, tls, Board(options.workers + 1))


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket, on all addresses, IPv4 and IPv6, where host is empty; SetupError."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    listen_on = functools.partial(socket.create_server, family=family, dualstack_ipv6=both)
    try:
        return listen_on((host, port), backlog=BACKLOG)
    except OSError as error:
        raise SetupError(
            f"can't listen on {host or 'any address'}, port {port}: {error.strerror}",
            f"choose another with {flag} or --host, or end what uses it",
        ) from None


def _allow_files(count: int) -> None:
    """Raise this process's own limit of open files, as far as it may."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))


if __name__ == "__main__":
    sys.exit(main())
