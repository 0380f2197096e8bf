#!/usr/bin/env python3
"""whook: a Kubernetes admission webhook that one person can audit in one evening.

The API server posts an AdmissionReview over HTTPS. whook runs plain Python policies on the object
in it and answers with a verdict and a base64 JSON Patch. It uses the standard library only.

Trust boundary: bytes from the network are untrusted until parse_review() has accepted them. The
policies, the certificate files and the command line belong to the operator and are trusted: a
policy is code that runs with the privileges of whook. whook needs no rights in the cluster.

whook never calls the API server, reads a Secret, writes a file, logs an object, follows a URL, or
decides between fail-open and fail-closed (failurePolicy in the webhook configuration does that).

Concurrency: one process, one thread, one event loop, which waits only in select(). Nothing is
shared between threads, so there are no locks.
Resource limits: section 2 has a bound for everything that external input can make large or slow.

Sections, each using at import only what is defined above it: 1 this text, 2 limits and log,
3 the review, 4 policies, 5 JSON Patch, 6 evaluation, 7 HTTP, 8 TLS, 9 metrics, 10 the process,
11 command line.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  an older Python gets this message, not a traceback
    sys.exit("whook: error: whook needs Python 3.11 or later")

import argparse
import ast
import base64
import bisect
import collections
import contextlib
import difflib
import errno
import faulthandler
import functools
import gc
import hashlib
import http.server
import inspect
import itertools
import json
import marshal
import math
import os
import random
import re
import select
import selectors
import shlex
import signal
import socket
import socketserver
import ssl
import time
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

__version__ = "1.0.0"

# ---------------------------------------------------------------------------- 2 limits and log
# Sizes are in bytes and times in seconds.

MAX_BODY = 7 * 1024 * 1024  # a user may send 3 MiB; a review can hold object and oldObject
MAX_CONTAINERS = 500_000  # objects and lists in a body; each one uses 56 bytes of memory or more
LARGE_BODY = 256 * 1024  # larger bodies have a queue of their own, and their containers counted
MAX_LINE = 8 * 1024  # a request line or a header; the API server's longest is under 100
MAX_HEAD = 32 * 1024  # the request line and all headers
MAX_HEADERS = 64  # the API server sends six
MAX_PATCH = 2 * MAX_BODY  # the paths of a review's patch; what a policy changed; audit annotations
MAX_LIST_EDITS = 1000  # operations in one list; a list with more changes is replaced as a whole
MAX_BUFFERED_BODIES = 8  # bodies of full size that may be in memory at a time, answers included
MAX_CONNECTIONS = 1000  # on the admission port
MAX_HEALTH_CONNECTIONS = 64  # the kubelet and Prometheus use a few
BACKLOG = 1024  # connections that the kernel keeps for accept()
STEP = 16 * 1024  # bytes read in one step; the most that a TLS record holds
ACCEPTS_PER_TURN = 32
HANDSHAKES_PER_TURN = 16  # a handshake takes about 1 ms of processor time
STEP_SLICE = 0.02  # steps of connections, after which requests are evaluated
HEALTH_SLICE = 0.005  # answers on the health port, per turn
WORK_SLICE = 0.01  # evaluation, after which the loop looks at its sockets again
LARGE_WAIT = 1.0  # how long smaller bodies may be evaluated before the next large one
TICK = 0.5  # interval at which timeouts and files are checked
# The states of a connection, and how long it may stay in each.
TIMEOUTS = {
    "lingering": 2.0,
    "handshake": 10.0,
    "new": 100.0,  # Go opens connections in advance and keeps them like idle ones
    "head": 10.0,
    "body": 10.0,
    "idle": 100.0,  # longer than the 90 s after which the API server closes it
    "writing": 10.0,
    "waiting": math.inf,  # until whook answers; the review's own deadline applies
}
EVICTION = {"lingering": 0, "handshake": 1, "new": 1, "head": 1, "body": 1, "idle": 2, "writing": 3}
MAX_CONNECTION_AGE = 60.0  # then the next response closes it, so that load reaches new pods
MAX_REVIEW_TIMEOUT = 30.0  # admissionregistration.k8s.io/v1 allows no longer timeoutSeconds
DEFAULT_REVIEW_TIMEOUT = 10.0  # of a review without ?timeout=, as in admissionregistration
TIME_LIMIT = 1.0  # all work for one review; also loading policies after a change
START_TIME_LIMIT = 10.0  # loading policies at the start
ALARM_INTERVAL = 0.05  # between two attempts to interrupt a policy
MAX_ALARMS = 40  # interruptions that code may swallow, in two seconds; then the process exits
WATCHDOG = 8.0  # of processor time in one turn of the loop; then the process ends
SETTLE_TIME = 5.0  # while draining without connections: wait for clients that still arrive
GRACE_PERIOD = 95.0  # longer than the API server keeps an idle connection (90 s)
FINISH_TIME = 30.0  # after the grace period, for requests that were received before
PIPE_BUF = 4096  # a write of at most this size to a pipe is atomic
MAX_LOGGED = 256  # characters of a value in a log line, or ...
MAX_LOGGED_LONG = 25  # ... of each value, if the line would not fit into PIPE_BUF
MAX_MESSAGE = 4096  # characters of a denial, a warning or an error
MAX_UID = 253
MAX_WARNINGS = 4096  # characters that the API server keeps of all warnings, or else ...
MAX_WARNING = 256  # ... that many of each
MAX_KINDS = 100  # kinds in metrics; further ones are counted as "other"
MAX_SERIES = 1000  # label combinations of a metric; further ones are counted as "other"


class Log:
    """Writes one line per event to standard error, as text or JSON.

    A line holds names, numbers and messages, never an object: an object may be a Secret. Values
    are truncated and escaped, so that input can neither forge a line nor make it long. Lines are
    written only if standard error can take PIPE_BUF bytes at once, so that logging never blocks
    and a line is never split; otherwise they are dropped and counted in `dropped`. While the loop
    runs (`batched`), the lines of a turn are written together: a write wakes the reader.
    """

    def __init__(self) -> None:
        self.format, self.dropped = "text", 0
        self.batched, self.pending = False, ""
        self.poll = select.poll() if hasattr(select, "poll") else None  # not on Windows
        if self.poll:
            self.poll.register(2, select.POLLOUT)

    def __call__(self, level: str, event: str, **fields: object) -> None:
        line = self._line(level, event, fields, MAX_LOGGED)
        if len(line) > PIPE_BUF:
            line = self._line(level, event, fields, MAX_LOGGED_LONG)
        if self.pending and len(self.pending) + len(line) > PIPE_BUF:
            self.flush()
        self.pending += line
        if not self.batched:
            self.flush()

    def flush(self) -> None:
        """Write the pending lines, or drop them if that would block or fails."""
        text, self.pending = self.pending, ""
        try:
            if self.poll and not self.poll.poll(0):
                raise BlockingIOError
            os.write(2, text.encode())
        except OSError:  # the pipe or the disk is full, or the reader is gone
            self.dropped += text.count("\n")

    def _line(self, level: str, event: str, fields: dict[str, Any], limit: int) -> str:
        """Return the line. It is ASCII, so its length in bytes is its length in characters."""
        now = time.time()
        stamp = f"{_utc_second(int(now))}.{int(now % 1 * 1000):03d}Z"
        if self.format == "json":
            numbers = (int, float, bool)
            cut = {k: v if type(v) in numbers else str(v)[:limit] for k, v in fields.items()}
            return json.dumps({"time": stamp, "level": level, "event": event, **cut}) + "\n"
        pairs = [f" {key}={_quote(value, limit)}" for key, value in fields.items()]
        return f"{stamp} {level} {event}{''.join(pairs)}\n"


@functools.lru_cache(maxsize=4)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


_PLAIN = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII without space, ", = and \


def _quote(value: object, limit: int = MAX_LOGGED) -> str:
    """Return the value as text, as a JSON string if it has any special character."""
    text = str(value).lower() if type(value) is bool else str(value)[:limit]
    return text if _PLAIN(text) else json.dumps(text)


log = Log()


class HTTPError(Exception):
    """A request that gets no verdict: its HTTP status and the message of its Status body."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def truncate(text: str, limit: int = 100) -> str:
    """Return at most `limit` characters of an untrusted text, for use in a message."""
    return text if len(text) <= limit else text[:limit] + "…"


def traceback_summary(error: BaseException) -> str:
    """Return the places of the error's traceback, innermost first, for the log.

    The text of the error is left out because it may quote an object."""
    calls = [
        f"{os.path.basename(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return " < ".join(reversed(calls))


# ---------------------------------------------------------------------------- 3 the review


class Kind(NamedTuple):
    """The type of an object, such as `apps/v1, Deployment`."""

    group: str
    version: str
    kind: str


class Resource(NamedTuple):
    """The collection of an object, such as `apps/v1, deployments`."""

    group: str
    version: str
    resource: str


class Denied(BaseException):
    """Ends a review from within a policy. `except Exception` in the policy does not catch it."""


class Response:
    """The verdict on a review, and details for the log and the metrics.

    `patch` is a list of JSON Patch operations and `audit` maps keys to values. `spent` maps the
    name of each policy that ran to its seconds, `changed_by` to its number of operations, and
    `would_deny` to the message with which it would have denied if the verb were not "warn".
    `policy` is the policy that ran last, and `body` the AdmissionReview in JSON.
    """

    def __init__(self) -> None:
        self.allowed = True
        self.code, self.reason, self.message = 200, "", ""
        self.warnings: dict[str, None] = {}
        self.audit: dict[str, str] = {}
        self.audit_size = 0
        self.patch: list[dict[str, Any]] = []
        self.spent: dict[str, float] = {}
        self.changed_by: dict[str, int] = {}
        self.would_deny: dict[str, str] = {}
        self.policy: Policy | None = None
        self.body = b""


class Request:
    """The request of an AdmissionReview, with the API's field names in snake_case.

    `deadline` is a time of time.monotonic(). `name` is request.name, or else metadata.name, or else
    metadata.generateName. `object`, `old_object` and `options` may be None.

    Each policy gets a view() of its own. The four fields that hold JSON are copied for a view when
    it first reads them, so no policy sees what another one has written into them.
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

    def __init__(self, obj: Any, decode: Callable[[], Any], fields: Mapping[str, Any]) -> None:
        """`decode` returns another copy of `obj`; `fields` are the other JSON fields."""
        self.response = Response()
        self.has_object = obj is not None  # False on DELETE
        self._parsed, self._decode, self._fields = obj, decode, fields

    def __getattr__(self, name: str) -> Any:
        """Copy a field that holds JSON when it is read for the first time."""
        if name not in _COPIED_FIELDS:
            raise AttributeError(f"'Request' object has no attribute {name!r}")
        value = self._decode() if name == "object" else copy_json(self._fields[name])
        vars(self)[name] = value
        return value

    def view(self) -> Request:
        """Return the request for one policy; what the policy writes into it has no effect."""
        view = object.__new__(Request)
        vars(view).update(vars(self))
        for name in _COPIED_FIELDS:
            vars(view).pop(name, None)
        return view

    def take_object(self) -> Any:
        """Return the parsed object, or a new copy if the parsed one was already taken."""
        parsed, self._parsed = self._parsed, None
        return self._decode() if parsed is None and self.has_object else parsed

    def deny(self, message: str, code: int = 403, reason: str = "Forbidden") -> NoReturn:
        """End the review: the API server refuses the user's request with this message.

        The message continues a sentence of the API server, so it starts in lower case and has no
        full stop. Raises ValueError if `code` is not from 400 to 599."""
        if type(code) is not int or not 400 <= code <= 599:
            raise ValueError(f"deny code {code!r} is not between 400 and 599")
        response, text = self.response, truncate(str(message), MAX_MESSAGE)
        response.reason, response.message = truncate(str(reason), MAX_MESSAGE), text
        response.allowed, response.code = False, code
        raise Denied(text)

    def warn(self, text: str) -> None:
        """Show the user a warning (kubectl prints `Warning: …`).

        Control characters become spaces, because the API server drops a warning that has one."""
        line = _CONTROL.sub(" ", str(text)[:MAX_MESSAGE]).strip()
        if line and len(self.response.warnings) < MAX_WARNINGS:
            self.response.warnings[line] = None

    def audit(self, key: str, value: Any) -> None:
        """Add an annotation to the API server's audit log.

        Raises ValueError if the API server would reject the key, or if all annotations together
        are too large."""
        if not _AUDIT_KEY(key):
            raise ValueError(
                f"audit key {key!r} must be 1 to 63 letters, digits, '-', '_' or '.', "
                "with a letter or digit at both ends"
            )
        response, text = self.response, str(value)
        response.audit_size += len(key) + len(text)
        if response.audit_size > MAX_PATCH:
            raise ValueError(f"the audit annotations are larger than {MAX_PATCH} characters")
        response.audit[key] = text


_API_VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")
_OPERATIONS = ("CREATE", "UPDATE", "DELETE", "CONNECT")
_COPIED_FIELDS = ("object", "old_object", "options", "user_info")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_AUDIT_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?").fullmatch
_TYPE_NAMES: dict[type, str] = {dict: "an object", str: "a string", bool: "true or false"}
_TYPE_NAMES |= {list: "a list", tuple: "a list", set: "a list", frozenset: "a list"}
_TYPE_NAMES |= {int: "a whole number", float: "a number", type(None): "null"}


def copy_json(value: Any) -> Any:
    """Return a copy of a JSON value that shares no object or list with it or within itself.

    marshal's version 2 records no references, so a value that occurs twice becomes two. Raises
    ValueError if a type is not one of marshal's or the nesting is too deep."""
    return _loads(marshal.dumps(value, 2))


_loads: Callable[[Any], Any] = marshal.loads  # reads nothing but the output of marshal.dumps() here


def same_json(one: Any, other: Any) -> bool:
    """Return True if two JSON values are equal, of the same types (1, 1.0 and true differ), and
    their keys have the same order."""
    if type(one) is not type(other) or one != other:
        return False
    return type(one) in (str, int, bool) or _canonical(one) == _canonical(other)


def _canonical(value: Any) -> object:
    """Return bytes that are equal for equal JSON values with the same order of keys."""
    try:
        return marshal.dumps(value, 2)
    except ValueError:  # not JSON, or nested too deeply
        return object()


def parse_review(body: bytes | bytearray, deadline: float = math.inf) -> Request:
    """Return the request in an AdmissionReview, v1 or v1beta1. Raises HTTPError 400 or 413."""
    if len(body) > LARGE_BODY and body.count(b"{") + body.count(b"[") > MAX_CONTAINERS:
        raise HTTPError(413, f"the body has more than {MAX_CONTAINERS} objects and lists")
    review = _decode(body)
    if type(review) is not dict or review.get("kind") != "AdmissionReview":
        raise HTTPError(
            400, 'the body is not an AdmissionReview: its kind must be "AdmissionReview"'
        )
    if review.get("apiVersion") not in _API_VERSIONS:
        raise HTTPError(400, f"apiVersion must be one of {', '.join(_API_VERSIONS)}")
    fields = review.get("request")
    if type(fields) is not dict:
        raise HTTPError(400, "the AdmissionReview has no request")
    obj = _field(fields, "object", dict, None)
    copied = {
        "user_info": _field(fields, "userInfo", dict, {}),
        "old_object": _field(fields, "oldObject", dict, None),
        "options": _field(fields, "options", dict, None),
    }
    request = Request(obj, lambda: _decode(body)["request"].get("object"), copied)
    request.api_version, request.deadline = review["apiVersion"], deadline
    request.uid = _field(fields, "uid", str, "")
    if not 0 < len(request.uid) <= MAX_UID:
        raise HTTPError(400, "request.uid is " + ("too long" if request.uid else "missing"))
    request.operation = _field(fields, "operation", str, "")
    if request.operation not in _OPERATIONS:
        raise HTTPError(400, f"request.operation must be one of {', '.join(_OPERATIONS)}")
    if obj is None and request.operation in ("CREATE", "UPDATE"):
        raise HTTPError(400, f"request.object is missing; {request.operation} needs it")
    request.kind = _names(Kind, fields, "kind")
    request.resource = _names(Resource, fields, "resource")
    request.sub_resource = _field(fields, "subResource", str, "")
    request.request_kind, request.request_resource = request.kind, request.resource
    if fields.get("requestKind") not in (None, fields.get("kind")):  # it was converted
        request.request_kind = _names(Kind, fields, "requestKind")
    if fields.get("requestResource") not in (None, fields.get("resource")):
        request.request_resource = _names(Resource, fields, "requestResource")
    request.request_sub_resource = _field(fields, "requestSubResource", str, "")
    request.namespace = _field(fields, "namespace", str, "")
    request.name = _field(fields, "name", str, "") or _own_name(obj)
    request.dry_run = _field(fields, "dryRun", bool, False)
    return request


def _decode(body: bytes | bytearray) -> Any:
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise HTTPError(400, "the body is not UTF-8") from None
    except RecursionError:
        raise HTTPError(400, "the body is nested too deeply") from None
    except ValueError as error:  # a JSONDecodeError, or an integer of more than 4300 digits
        reason = truncate(str(error).partition(";")[0]) if body else "it is empty"
        raise HTTPError(400, f"the body is not JSON: {reason}") from None


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
        raise HTTPError(400, f"request.{key} must be {_TYPE_NAMES[kind]}")
    return value


Names = TypeVar("Names", Kind, Resource)


def _names(names: type[Names], fields: dict[str, Any], key: str) -> Names:
    values = _field(fields, key, dict, {})
    found: list[Any] = [values.get(name, "") for name in names._fields]
    if {*map(type, found)} != {str}:
        raise HTTPError(400, f"{', '.join(names._fields)} in request.{key} must be strings")
    return names(*found)


def _own_name(obj: dict[str, Any] | None) -> str:
    metadata = obj.get("metadata") if obj else None
    if type(metadata) is not dict:
        return ""
    name = metadata.get("name") or metadata.get("generateName")
    return name if type(name) is str else ""


_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


def render_review(request: Request, response: Response) -> bytes:
    """Return the AdmissionReview that answers `request`, in the version of the request."""
    answer: dict[str, Any] = {"uid": request.uid, "allowed": response.allowed}
    if not response.allowed:
        answer["status"] = {"code": response.code, "reason": response.reason}
        answer["status"]["message"] = response.message
    if response.patch:
        patch = base64.b64encode(_ENCODE(response.patch).encode())
        answer |= {"patchType": "JSONPatch", "patch": patch.decode()}
    if response.warnings:
        answer["warnings"] = _fitting(list(response.warnings))
    if response.audit:
        answer["auditAnnotations"] = response.audit
    review = {"apiVersion": request.api_version, "kind": "AdmissionReview", "response": answer}
    return _ENCODE(review).encode()


def _fitting(warnings: list[str]) -> list[str]:
    """Return the warnings that the API server keeps: all, or the start of each if they are long."""
    if sum(map(len, warnings)) <= MAX_WARNINGS:
        return warnings
    return [warning[:MAX_WARNING] for warning in warnings][: MAX_WARNINGS // MAX_WARNING]


# ---------------------------------------------------------------------------- 4 policies


class ConfigError(Exception):
    """The reason why whook can't start or can't use changed files, and a hint on how to fix it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class PolicyTimeout(BaseException):
    """Raised in code that exceeds a time limit. `except Exception` does not catch it."""


_set_handler: Any = getattr(signal.signal, "__wrapped__", signal.signal)  # its enums take 5 µs


class TimeLimit:
    """Interrupts code that runs for too long, by a repeating SIGALRM.

    While `running` is true, each alarm raises PolicyTimeout wherever the code is, so code that
    swallows the exception is interrupted again; after MAX_ALARMS the process logs where the code
    is, and exits. While `running` is false, an alarm does nothing. CPython calls
    signal handlers only at function calls and backward jumps, so an alarm can't fall between the
    end of the code and `running = False`. A call into C is interrupted only if it checks for
    signals, as time.sleep() and re do; the watchdog of section 10 is for the others.
    """

    def __init__(self) -> None:
        self.enabled = hasattr(signal, "setitimer")  # --debug-policies and Windows: no limit
        self.running = False
        self.expired, self.alarms = False, 0  # since run() was called
        self.seconds = self.end = 0.0
        self.lines: dict[str, int] = {}  # by file: the line at which the first alarm was raised

    def run(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return function(*arguments). Raises PolicyTimeout if it takes longer than `seconds`.

        A call from within a function that has a limit keeps to that limit."""
        if self.running:
            return function(*arguments)
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.expired, self.alarms, self.lines = False, 0, {}
        self.arm()
        try:
            self.running = self.enabled
            return function(*arguments)
        finally:
            self.running = False
            if self.enabled:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def arm(self) -> None:
        """Set handler and timer, which a policy may have changed."""
        if self.enabled:
            _set_handler(signal.SIGALRM, self.on_alarm)
            left = max(self.end - time.monotonic(), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, ALARM_INTERVAL)

    def on_alarm(self, number: int, frame: types.FrameType | None) -> None:
        if not self.running:
            return
        lines: dict[str, int] = {}
        while frame:
            lines.setdefault(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        self.alarms += 1
        if self.alarms > MAX_ALARMS:
            places = " < ".join(f"{os.path.basename(name)}:{line}" for name, line in lines.items())
            log("ERROR", "exit", error="code can't be interrupted after its time limit", at=places)
            log.flush()
            os._exit(1)
        self.lines = self.lines if self.expired else lines
        self.expired = True
        raise PolicyTimeout


time_limit = TimeLimit()

PolicyFunction = Callable[[Any, Request], object]


class Policy(NamedTuple):
    """One policy file. Its name is the file's, without `.py`."""

    name: str
    path: str
    mutate: PolicyFunction | None
    validate: PolicyFunction | None


class PolicySet(NamedTuple):
    """All policies in the order of their names, and the hash of their sources and parameters."""

    policies: tuple[Policy, ...] = ()
    digest: str = ""

    def find(self, verb: str, name: str) -> Sequence[Policy]:
        """Return the policies for the path /verb or /verb/name. Raises HTTPError 404."""
        if not name:
            return self.policies
        function = "mutate" if verb == "mutate" else "validate"
        for policy in self.policies:
            if policy.name == name and getattr(policy, function) is not None:
                return (policy,)
        raise HTTPError(404, f'there is no policy "{name}" that defines {function}')

    def facts(self) -> dict[str, object]:
        return {"names": ",".join(policy.name for policy in self.policies), "hash": self.digest}


def read_files(paths: Iterable[str], hint: str) -> dict[str, bytes]:
    """Return the contents of files. Raises ConfigError that names the file it can't read."""
    try:
        return {path: Path(path).read_bytes() for path in paths}
    except OSError as error:
        raise ConfigError(f"can't read {error.filename}: {error.strerror}", hint) from None


def read_sources(paths: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of all policy files in `paths`, which are files or folders, by path.

    The file NAME.json beside a policy NAME.py holds its parameters and is included. In a folder,
    names that start with a dot or an underscore are left out. Raises ConfigError if a folder has
    no policy or a file can't be read."""
    files: list[str] = []
    for path in paths:
        found = [path]
        if os.path.isdir(path):
            found = [str(p) for p in Path(path).glob("*.py") if p.name[0] not in "._"]
        elif not path:
            raise ConfigError("the name of a policy file is empty", _POLICY_HINT)
        if not found:
            raise ConfigError(f"no policy (*.py) in folder {path}", "name a file, or leave it out")
        files += found
    files += [beside for beside in map(parameters_of, files) if os.path.exists(beside)]
    return read_files(files, _POLICY_HINT)


_POLICY_HINT = "--policy takes a Python file, or a folder with Python files"


def parameters_of(path: str) -> str:
    """Return the path of the parameters of the policy in `path`: NAME.json beside NAME.py."""
    return str(Path(path).with_suffix(".json"))


def load_policies(sources: Mapping[str, bytes], seconds: float = TIME_LIMIT) -> PolicySet:
    """Run each source and take its functions, all within so many seconds.

    Raises ConfigError that names the file, if it does not load, is not a policy, or has parameters
    that don't fit."""
    here = os.path.dirname(os.path.abspath(__file__))
    if here not in sys.path:  # with PYTHONSAFEPATH; policies import objects.py from there
        sys.path.append(here)
    files = sorted((Path(path).stem, path) for path in sources if not path.endswith(".json"))
    for (name, path), (other, other_path) in itertools.pairwise(files):
        if name == other:
            what = f'two policies are named "{name}": {path} and {other_path}'
            raise ConfigError(what, "rename one of the files")
    policies: list[Policy] = []
    try:
        time_limit.run(seconds, lambda: policies.extend(_load(path, sources) for _, path in files))
    except PolicyTimeout as error:  # between two policies; else _load() names the policy
        what = f"the policies took longer than {seconds:g} s to load"
        raise ConfigError(what, "reduce the work at module level") from error
    return PolicySet(tuple(policies), digest_of(sources))


def _load(path: str, sources: Mapping[str, bytes]) -> Policy:
    name = Path(path).stem
    if not re.fullmatch("[A-Za-z0-9._-]{1,200}", name):
        what = f"policy {path} can't be named in a path like /mutate/NAME"
        raise ConfigError(what, "use letters, digits, '-', '_' and '.'")
    module = types.ModuleType(f"policy {name}")
    module.__file__ = path
    before = {k: v for k, v in sys.modules.items() if k == module.__name__}
    sys.modules[module.__name__] = module  # dataclasses look up their annotations there
    try:
        tree = ast.parse(sources[path], path)
        if (given := sources.get(parameters_of(path))) is not None:
            vars(module)[_PARAMETER] = _set_parameters(tree, path, given)
        time_limit.arm()
        exec(compile(tree, path, "exec", dont_inherit=True), vars(module))  # noqa: S102
        functions = [_function(module, path, verb) for verb in ("mutate", "validate")]
        if time_limit.expired:  # the policy swallowed it
            raise PolicyTimeout
    except BaseException as error:  # an import may raise anything, SystemExit included
        del sys.modules[module.__name__]
        sys.modules.update(before)
        if isinstance(error, ConfigError):
            raise
        command = f"python {shlex.quote(__file__)} --check --policy {shlex.quote(path)}"
        raise ConfigError(
            f"policy {path} does not load: {describe(error, path)}", f"see the traceback: {command}"
        ) from error
    if all(function is None for function in functions):
        hint = (
            "a policy is a file that defines mutate(obj, request), validate(obj, request), or both"
        )
        raise ConfigError(f"policy {path} defines neither mutate nor validate", hint)
    return Policy(name, path, *functions)


def _function(module: types.ModuleType, path: str, verb: str) -> Any:
    """Return a policy's function, or None. Raises ConfigError if it can't be called as one."""
    function, reason = vars(module).get(verb), ""
    if not callable(function):
        return None
    if any(test(function) for test in _NEVER_RUN):
        reason = "is async or a generator, and would never run"
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        reason = f"can't be called with two arguments: {error}"
    if reason:
        raise ConfigError(f"policy {path}: {verb} {reason}", f"write `def {verb}(obj, request):`")
    return function


_NEVER_RUN = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
_PARAMETER = "__whook_parameter__"


def _set_parameters(tree: ast.Module, path: str, content: bytes) -> Callable[[str, Any], Any]:
    """Change a policy's syntax tree so that its constants take their values from NAME.json.

    Return the function that the tree calls as _PARAMETER, with a constant's name and value. Raises
    ConfigError if the file is not an object of constants that the policy assigns."""
    file = parameters_of(path)
    try:
        given = _DECODER.decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}", _PARAMETERS_HINT) from None
    if type(given) is not dict:
        raise ConfigError(f"{file} is not a JSON object", _PARAMETERS_HINT)
    calls = _ParameterCalls({name for name in given if name.isupper()})
    calls.visit(tree)
    if unused := sorted({*given} - calls.found):
        what = f"{file} sets {unused[0]}, which {path} does not"
        raise ConfigError(what, "it can set upper-case names that the policy's source assigns")

    def parameter(name: str, default: Any) -> Any:
        value, kind = given[name], type(default)
        if (type(value), kind) in _CONVERTED:
            with contextlib.suppress(TypeError):  # a set of lists
                return kind(value)
        if type(value) is not kind:
            wanted = _TYPE_NAMES.get(kind, f"left out: JSON has no {kind.__name__}")
            raise ConfigError(f"{name} in {file} must be {wanted}", "as in the policy's source")
        return value

    return parameter


_PARAMETERS_HINT = 'give constants, as in {"LIMIT": 5}'
_CONVERTED = {(list, tuple), (list, set), (list, frozenset), (int, float)}


class _ParameterCalls(ast.NodeTransformer):
    """Inserts `NAME = _PARAMETER("NAME", NAME)` after each assignment to a parameter on the level
    of the module, so that constants which are computed from a parameter follow it."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.found = names, set[str]()

    def visit_Assign(self, node: Any) -> Any:
        if node.value is None:  # `NAME: int` assigns nothing
            return node
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        stored = {n.id for n in names if isinstance(n.ctx, ast.Store)} & self.names
        self.found |= stored
        calls = ast.parse("; ".join(f"{name} = {_PARAMETER}({name!r}, {name})" for name in stored))
        return [node, *ast.increment_lineno(calls, node.lineno - 1).body]

    visit_AnnAssign = visit_AugAssign = visit_Assign

    def visit_FunctionDef(self, node: Any) -> Any:
        return node  # names in a function or class are not on the level of the module

    visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = visit_FunctionDef


def describe(error: BaseException, path: str) -> str:
    """Return a description of the error, with its line in the file at `path`."""
    places = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in places if frame.f_code.co_filename == path]
    line = lines[-1] if lines else 0
    if isinstance(error, SyntaxError):
        line = error.lineno or line
    if time_limit.expired:
        line = time_limit.lines.get(path, 0)
        text = f"timed out after {time_limit.seconds:.3g} s"
        text += "" if line else " while whook processed its changes"
    else:
        text = f"{type(error).__name__}: {_text_of(error)}"
    return f"line {line}: {text}" if line else text


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # the __str__ of a policy's exception failed
        return "?"


def digest_of(contents: Mapping[str, bytes]) -> str:
    """Return a short hash of file names and contents."""
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(f"{path}\0{len(contents[path])}\0".encode("utf-8", "surrogateescape"))
        digest.update(contents[path])
    return digest.hexdigest()[:12]


T = TypeVar("T")


class Reloadable(Generic[T]):
    """A value made from files, such as the TLS context, that follows changes of the files.

    `value` is the last good one. The constructor raises ConfigError if the first one fails."""

    def __init__(
        self,
        what: str,
        read: Callable[[], Mapping[str, bytes]],
        make: Callable[[Mapping[str, bytes]], T],
        facts: Callable[[T], dict[str, object]] = lambda value: {},
        retry: bool = False,
    ) -> None:
        """`facts` returns the log fields for a value. With `retry`, files that fail are tried again
        although they have not changed: a certificate may become valid."""
        self.what, self.read, self.make, self.facts, self.retry = what, read, make, facts, retry
        contents = read()
        self.value, self.loaded, self.failed = make(contents), digest_of(contents), ""
        self.errors, self.last_error, self.loaded_at = 0, "", time.time()
        log("INFO", what, **facts(self.value))

    def refresh(self) -> None:
        """Make a new value if the files have changed; keep the old one if that fails in any way.

        A mounted Secret replaces a link to a whole folder, perhaps while its files are being read;
        so the files are used only if they are the same when they are read a second time."""
        try:
            contents = self.read()
            digest = digest_of(contents)
            if digest == self.failed or (digest == self.loaded and not self.last_error):
                return
            if self.read() != contents:
                return
            self.failed = "" if self.retry else digest
            if digest != self.loaded:
                self.value = self.make(contents)
            self.loaded, self.failed, self.loaded_at = digest, "", time.time()
            self.last_error = ""
            log("INFO", "reloaded", what=self.what, **self.facts(self.value))
        except Exception as error:
            if not isinstance(error, ConfigError):
                text = f"{type(error).__name__} at {traceback_summary(error)}"
                error = ConfigError(text, "report this: it is a bug in whook")
            if error.message != self.last_error:
                self.last_error, self.errors = error.message, self.errors + 1
                log("ERROR", "reload", what=self.what, error=error.message, hint=error.hint)


# ---------------------------------------------------------------------------- 5 JSON Patch

Patch = list[dict[str, Any]]


def diff(before: dict[str, Any], after: dict[str, Any]) -> Patch:
    """Return the JSON Patch (RFC 6902) that turns the object `before` into `after`.

    It has only add, remove and replace operations below the root, whose parents exist when they
    are applied: the part on which the API server's patch library and the RFC agree. The types of
    numbers count: true, 1 and 1.0 differ. Items of lists are matched if they are equal or objects
    with the same `name`. The patch shares no object or list with the arguments.

    Raises ValueError, with the path, if `after` holds something that is not JSON, and if the patch
    would be larger than MAX_PATCH."""
    difference = _Difference()
    difference.compare_objects(before, _copy(after), "")
    return difference.patch


class _Difference:
    """The patch while it is being made, and the sum of the lengths of its paths.

    The methods take two values and the JSON Pointer (RFC 6901) of their place. The patch refers to
    the values after the change; it does not copy them."""

    def __init__(self) -> None:
        self.patch: Patch = []
        self.size = 0

    def compare(self, before: Any, after: Any, path: str) -> None:
        if type(before) is dict and type(after) is dict:
            self.compare_objects(before, after, path)
        elif type(before) is list and type(after) is list:
            self.compare_lists(before, after, path)
        else:
            self.add("replace", path, after)

    def compare_objects(self, before: dict[str, Any], after: dict[str, Any], path: str) -> None:
        for key in before:
            if key not in after:
                self.add("remove", f"{path}/{_escape(key)}")
        for key, value in after.items():
            if key not in before:
                self.add("add", f"{path}/{_escape(key)}", value)
            elif not same_json(before[key], value):
                self.compare(before[key], value, f"{path}/{_escape(key)}")

    def compare_lists(self, before: list[Any], after: list[Any], path: str) -> None:
        """Keep the items that both lists have in the same order. Between two of them, change items
        in pairs, remove the old items that are left over, and insert the new ones.

        Replace the whole list if it has too many changes."""
        start = end = 0
        shorter = min(len(before), len(after))
        while start < shorter and same_json(before[start], after[start]):
            start += 1
        while end < shorter - start and same_json(before[-1 - end], after[-1 - end]):
            end += 1
        old, new = range(start, len(before) - end), range(start, len(after) - end)
        if max(len(old), len(new)) > MAX_LIST_EDITS:
            return self.add("replace", path, after)
        keys = _item_keys(before, old), _item_keys(after, new)
        pairs: list[tuple[int, int]] = []
        removed: list[int] = []
        added: list[int] = []
        for _, i, i_end, j, j_end in difflib.SequenceMatcher(None, *keys, False).get_opcodes():
            count = min(i_end - i, j_end - j)
            pairs += zip(old[i : i + count], new[j : j + count], strict=True)
            removed += old[i + count : i_end]
            added += new[j + count : j_end]
        for i in reversed(removed):  # from the end, so that the earlier indices stay
            self.add("remove", f"{path}/{i}")
        for j in added:
            self.add("add", f"{path}/{j}", after[j])
        for i, j in pairs:
            if _name(before[i]) != _name(after[j]):  # a different item is now at this index
                self.add("replace", f"{path}/{j}", after[j])
            elif not same_json(before[i], after[j]):
                self.compare(before[i], after[j], f"{path}/{j}")
        return None

    def add(self, op: str, path: str, value: Any = ...) -> None:
        self.size += len(path)
        if self.size > MAX_PATCH:
            raise ValueError(f"the patch is larger than {MAX_PATCH} bytes")
        self.patch.append({"op": op, "path": path} | ({} if value is ... else {"value": value}))


def _copy(value: Any) -> Any:
    """Return a copy of a JSON value that shares no object or list with it or within itself.

    Raises ValueError, with the place, if it is not JSON or is larger than MAX_PATCH."""
    left = MAX_PATCH

    def copy(value: Any, path: str) -> Any:
        nonlocal left
        kind = type(value)
        left -= len(value) if kind is str else 2
        if left < 0:
            raise ValueError(f"the changed fields are larger than {MAX_PATCH} bytes")
        if kind is dict:
            return {
                _key(key, path): copy(item, f"{path}/{_escape(key)}") for key, item in value.items()
            }
        if kind is list:
            return [copy(item, f"{path}/{index}") for index, item in enumerate(value)]
        if value is None or kind in (str, bool) or (kind is float and math.isfinite(value)):
            return value
        if kind is int and abs(value) < _MAX_INTEGER:  # custom resources may have over 64 bits
            return value
        what = "an integer of more than 4300 digits" if kind is int else f"a {kind.__name__}"
        raise ValueError(f"{path} is {value if kind is float else what}: not JSON")

    return copy(value, "")


_MAX_INTEGER = 10**4300  # Python converts no larger one to text


def _key(key: Any, path: str) -> str:
    if type(key) is not str:
        kind = type(key).__name__
        raise ValueError(f"{path or '/'} has a key of type {kind}: JSON's keys are strings")
    return key


def _escape(key: str) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _item_keys(items: list[Any], places: range) -> list[tuple[object, int]]:
    """Return a key for each item that distinguishes it from the others: its name, or else its
    content, and its ordinal among items of the same name or content."""
    seen: collections.Counter[object] = collections.Counter()
    keys = []
    for place in places:
        key = _name(items[place]) or _canonical(items[place])
        seen[key] += 1
        keys.append((key, seen[key]))
    return keys


def _name(item: Any) -> str:
    name = item.get("name") if type(item) is dict else None
    return name if type(name) is str else ""


# ---------------------------------------------------------------------------- 6 evaluation

Verb = Literal["mutate", "validate", "warn"]


class PolicyError(HTTPError):
    """A policy failed: whook answers 500, and the webhook's failurePolicy decides.

    `cause` is "exception", "return", "patch" or "time". The message is for the user; the log gets
    `summary` instead, because the text of a policy's exception may quote an object."""

    def __init__(self, policy: Policy, cause: str, reason: str, summary: str = "") -> None:
        super().__init__(500, truncate(f'policy "{policy.name}" failed: {reason}', MAX_MESSAGE))
        self.policy, self.cause, self.summary = policy, cause, summary or reason


def evaluate(request: Request, policies: Iterable[Policy], verb: Verb = "mutate") -> Response:
    """Run the policies on the request, in their order, and return the verdict.

    With "mutate" and "validate" the first policy that denies ends the review. With "warn" all
    policies run validate(), and their denials become warnings. Apart from what a policy does
    itself, nothing but `request.response` is changed, and the same request can be evaluated again.

    Policies and whook's own work for them, which includes rendering `response.body`, have
    TIME_LIMIT together, or what is left until the deadline. Raises PolicyError if a policy fails or
    the time is over, and HTTPError 504 if the deadline has passed before."""
    response = request.response = Response()
    left = request.deadline - time.monotonic()
    if left <= 0:
        raise HTTPError(504, "the deadline passed while the review was queued")
    try:
        time_limit.run(min(TIME_LIMIT, left), _evaluate, request, response, policies, verb)
    except PolicyTimeout as error:
        if response.policy is None:
            raise HTTPError(500, "the time limit expired before a policy ran") from None
        reason = describe(error, response.policy.path)
        raise PolicyError(response.policy, "time", reason) from error
    return response


def _evaluate(request: Request, response: Response, policies: Iterable[Policy], verb: Verb) -> None:
    try:
        run = _mutate if verb == "mutate" else _validate
        run(request, response, policies, verb)
    except Denied:
        response.patch, response.changed_by = [], {}
    except BaseException as error:
        each: BaseException | None = error
        while each:  # free what a policy has made: finalizers have the time limit, too
            traceback.clear_frames(each.__traceback__)
            each = each.__context__
        raise
    response.body = render_review(request, response)


# The fields of an object as bytes; a field that is an object itself has the bytes of each of its
# own fields (metadata.labels, spec.containers), so that only what has changed is compared closely.
_Fields = dict[str, Any]


def _encode_fields(obj: dict[str, Any]) -> _Fields:
    """Return bytes (strings as they are) that differ if a policy has changed the object, or keeps a
    reference to an object or list below its first two levels.

    That is because marshal's version 4 records which values have more than one reference. Raises
    ValueError if the object is not JSON or is nested too deeply."""
    return {field: _encode_field(value) for field, value in obj.items()}


def _encode_field(value: Any) -> Any:
    if type(value) is not dict:
        return marshal.dumps(value, 4)
    return {k: v if type(v) is str else marshal.dumps(v, 4) for k, v in value.items()}


def _mutate(request: Request, response: Response, policies: Iterable[Policy], verb: Verb) -> None:
    chosen = [policy for policy in policies if policy.mutate is not None]
    if not chosen or not request.has_object:  # on DELETE there is nothing to patch
        return
    obj, size = request.take_object(), 0
    before = _encode_sent(_encode_fields, obj)
    for policy in chosen:
        references = _reference_counts([obj])
        _run(policy, policy.mutate, obj, request, response)
        try:
            after = _encode_result(obj)
            if after != before:
                patch = diff(*_changed_fields(before, after, obj))
                size += len(_ENCODE(patch)) if patch else 0
                if size > MAX_PATCH:
                    raise ValueError(f"the patch is larger than {MAX_PATCH} bytes")
                response.patch += patch
                response.changed_by |= {policy.name: len(patch)} if patch else {}
        except Exception as error:  # not JSON, too large, nested too deeply
            deep = isinstance(error, RecursionError)
            reason = f"its result can't be sent: {_TOO_DEEP if deep else _text_of(error)}"
            raise PolicyError(policy, "patch", reason, type(error).__name__) from None
        if policy is not chosen[-1]:  # the next policy gets an object that shares nothing with it
            if _reference_counts([obj]) != references:
                obj = copy_json(obj)
                after = _encode_fields(obj)
            else:
                _copy_changed(obj, before, after)
            before = after


def _copy_changed(obj: dict[str, Any], before: _Fields, after: _Fields) -> None:
    """Replace what a policy has changed by copies, and its bytes by theirs."""
    for field, value in obj.items():
        one, other = before.get(field), after[field]
        if type(one) is dict and type(other) is dict:
            copies = copy_json({k: value[k] for k in other if other[k] != one.get(k)})
            value.update(copies)
            other.update(_encode_field(copies))
        elif one != other:
            obj[field] = copy_json(value)
            after[field] = _encode_field(obj[field])


def _reference_counts(objects: list[Any]) -> list[int]:
    """Return the reference counts of the only object, and of the objects and lists on its first two
    levels. They grow if a policy keeps one of these, or replaces it by something that it keeps;
    for the levels below, _encode_fields() tells that."""
    obj = objects[0]  # in a list, because the count of an argument depends on the call
    counts = [sys.getrefcount(obj)]
    for value in (obj or {}).values():
        if type(value) is dict or type(value) is list:
            counts.append(sys.getrefcount(value))
        if type(value) is dict:
            counts += [sys.getrefcount(v) for v in value.values() if type(v) in (dict, list)]
    return counts


_TOO_DEEP = "the object is nested too deeply"


def _encode_sent(encode: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return encode(*arguments)
    except ValueError:
        raise HTTPError(400, _TOO_DEEP) from None


def _encode_result(obj: dict[str, Any]) -> _Fields:
    try:
        return _encode_fields(obj)
    except ValueError:
        _copy(obj)  # raises an error that names the place
        raise ValueError(_TOO_DEEP) from None


def _changed_fields(before: _Fields, after: _Fields, obj: _Fields) -> tuple[_Fields, _Fields]:
    """Return the fields that differ, as they were before a policy and as they are in `obj`."""
    old: _Fields = {}
    new: _Fields = {}
    for field in {**before, **after}:
        one, other = before.get(field), after.get(field)
        if type(one) is dict and type(other) is dict:
            old[field] = {k: _decoded(v) for k, v in one.items() if other.get(k) != v}
            new[field] = {k: obj[field][k] for k, v in other.items() if one.get(k) != v}
        elif one != other:
            old |= {} if one is None else {field: _decoded(one)}
            new |= {} if other is None else {field: obj[field]}
    return old, new


def _decoded(encoded: Any) -> Any:
    if type(encoded) is dict:
        return {key: _decoded(value) for key, value in encoded.items()}
    return encoded if type(encoded) is str else _loads(encoded)


def _validate(request: Request, response: Response, policies: Iterable[Policy], verb: Verb) -> None:
    chosen = [policy for policy in policies if policy.validate is not None]
    obj = request.take_object()
    sent = _encode_sent(marshal.dumps, obj, 4) if len(chosen) > 1 else b""
    for policy in chosen:
        references = _reference_counts([obj])
        try:
            _run(policy, policy.validate, obj, request, response)
        except Denied:
            if verb != "warn":
                raise
            response.allowed, response.would_deny[policy.name] = True, response.message
            request.warn(response.message)
        if policy is not chosen[-1]:
            with contextlib.suppress(ValueError):  # the policy made it invalid JSON
                if marshal.dumps(obj, 4) == sent and _reference_counts([obj]) == references:
                    continue
            obj = _loads(sent)  # the next policy sees the object as it was sent
    if response.would_deny:
        denials = [f"{name}: {message}" for name, message in response.would_deny.items()]
        response.audit["would-deny"] = "; ".join(denials)


def _run(policy: Policy, function: Any, obj: Any, request: Request, response: Response) -> None:
    """Call a policy's function. Raises Denied or PolicyError."""
    response.policy, returned = policy, None
    started = time.monotonic()
    if response.spent:  # the policy before may have changed the timer or its handler
        time_limit.arm()
    try:
        returned = function(obj, request.view())
    except Denied as error:
        if response.allowed:
            reason = "it called deny() of a request that was answered before"
            raise PolicyError(policy, "exception", reason) from error
    except PolicyTimeout:
        raise
    except BaseException as error:
        if time_limit.expired:
            raise PolicyTimeout from error
        raise PolicyError(
            policy, "exception", describe(error, policy.path), type(error).__name__
        ) from error
    finally:
        response.spent[policy.name] = time.monotonic() - started
    late = time_limit.running and time.monotonic() > time_limit.end + ALARM_INTERVAL
    if time_limit.expired or late:  # the policy swallowed the interruption or changed the timer
        raise PolicyTimeout
    if not response.allowed:  # also if the policy swallowed Denied
        raise Denied
    if returned is not None:
        remedy = "edit obj in place" if function is policy.mutate else "call request.deny(message)"
        reason = f"it returned a {type(returned).__name__}; {remedy} and return nothing"
        raise PolicyError(policy, "return", reason)


# ---------------------------------------------------------------------------- 7 HTTP
#
# request                                                 response                  then
# a review that policies allow, patch or deny             200 AdmissionReview       next request
# a review on which a policy fails                        500 Status                next request
# a body that is no AdmissionReview                       400 Status                next request
# an unknown path or policy; another method or type       404, 405, 415 Status      next request
# a limit is reached                                      503 Status, Retry-After   closed
# an ambiguous or malformed head                          400 Status                closed
# no length, or chunked; too large; long or many lines    411, 413, 431 Status      closed
# a timeout expires; bytes that are not TLS               none                      closed
#
# The API server sends a request again, within its deadline, if the response is a 503 with
# Retry-After; if the connection is closed without a response, the call has failed.


class Head(NamedTuple):
    """The request line and the headers of a request; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


class Answer(NamedTuple):
    """An HTTP response: status, body and headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.1").fullmatch
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t -~\x80-\xff]*)").fullmatch
_SINGLE = {"host", "content-length", "transfer-encoding", "content-type", "expect", "connection"}
_REASONS = {400: "BadRequest", 404: "NotFound", 405: "MethodNotAllowed", 500: "InternalError"}
_REASONS |= {413: "RequestEntityTooLarge", 415: "UnsupportedMediaType", 504: "Timeout"}
_REASONS |= {503: "ServiceUnavailable"}


def status_answer(error: HTTPError) -> Answer:
    """Return an error as a metav1.Status, whose message the API server shows to the user."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body |= {"message": error.message, "reason": _REASONS.get(error.status, "")}
    content = _ENCODE(body | {"code": error.status}).encode()
    return Answer(error.status, content, error.headers)


def read_head(data: bytes) -> Head:
    """Return the head of a request, given with its blank line.

    Raises HTTPError 400 or 431 for anything that two readers could understand differently, as
    that is how request smuggling works."""
    first, *lines = data.decode("latin-1").split("\r\n")
    if len(data) > MAX_HEAD:
        raise HTTPError(431, f"the head is longer than {MAX_HEAD} bytes")
    if max(map(len, [first, *lines])) > MAX_LINE - 2:
        raise HTTPError(431, f"a line of the head is longer than {MAX_LINE} bytes")
    match = _REQUEST_LINE(first)
    if not match:
        raise HTTPError(400, "the request line is not like POST /mutate HTTP/1.1")
    if match[1] not in ("GET", "POST"):  # the response to HEAD has no body
        raise HTTPError(405, f"{match[1]} is not supported: use GET or POST", Allow="GET, POST")
    if lines[-2:] != ["", ""]:
        raise HTTPError(400, "the head does not end in a blank line")
    if len(lines) > MAX_HEADERS + 2:
        raise HTTPError(431, f"there are more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines[:-2]:
        if not (header := _HEADER(line)):
            raise HTTPError(400, "a header is malformed, folded, or has a space before its colon")
        name = header[1].lower()
        if name in headers and name in _SINGLE:
            raise HTTPError(400, f"the header {name} is given twice")
        headers[name] = header[2].rstrip("\t ")
    if "host" not in headers:
        raise HTTPError(400, "the header host is missing")
    return Head(match[1], match[2], headers)


def body_length(head: Head, limit: int) -> int:
    """Return the length of the body in bytes. Raises HTTPError 400, 411 or 413."""
    text = head.headers.get("content-length")
    if "transfer-encoding" in head.headers:
        if text is not None:
            raise HTTPError(400, "content-length and transfer-encoding exclude each other")
        raise HTTPError(411, "send a content-length; transfer-encoding is not supported")
    if text is None:
        if head.method == "POST":
            raise HTTPError(411, "send a content-length")
        return 0
    if not re.fullmatch("[0-9]{1,18}", text):
        raise HTTPError(400, f"the content-length {truncate(text, 40)!r} is not a number")
    if int(text) > limit:
        raise HTTPError(413, f"the body of {text} bytes is over the limit of {limit} (--max-body)")
    return int(text)


# state      the connection waits for                       next state
# handshake  the client's part of the TLS handshake         new
# new        the first byte of its first request            head
# head       the blank line that ends the head              body, waiting; writing (an error)
# body       as many bytes as content-length says           waiting
# waiting    its turn in the loop, and the evaluation       writing
# writing    the socket to accept the whole response        idle; lingering (the last response)
# idle       the first byte of the next request             head
# lingering  the client to close, after reading the response closed
# closed     nothing
#
# Each state has one deadline (TIMEOUTS), at which the connection is closed; so does an error of
# the socket or of TLS in any state.


class Connection(http.server.BaseHTTPRequestHandler):
    """A client's connection: a state machine that the loop moves by one bounded step at a time.

    Of BaseHTTPRequestHandler it uses the table of status phrases (`responses`). A TLS connection
    is an SSLObject between two memory buffers, so both kinds of connection read and write their
    socket in the same way, and no call into OpenSSL gets more than STEP bytes of ciphertext.
    """

    server: Server

    def __init__(self, server: Server, client: socket.socket, peer: str) -> None:
        # The base class would handle the request here, blocking; so its __init__ is not called.
        self.server, self.loop, self.socket, self.peer = server, server.loop, client, peer
        self.received = bytearray()  # decrypted bytes of requests
        self.response = b""  # the whole response, not encrypted yet
        self.unsent, self.sent = b"", 0  # bytes for the socket; how many of them it has accepted
        self.head: Head | None = None  # of the current request, and the length of its body
        self.length = 0
        self.handshake_size = 0  # bytes received for the TLS handshake
        self.counted = 0  # bytes of this connection in server.buffered
        self.events = 0  # for which the socket is registered with the selector
        self.closing = False  # after the current response
        self.completed_at = 0.0  # when the current request was complete, by time.monotonic()
        self.tls: Any = None
        if server.context:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = server.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.state, self.urgent = "", server.urgent
        self.set_state("handshake" if self.tls else "new")
        server.peers[peer] += 1
        self.max_age = self.since + MAX_CONNECTION_AGE * random.uniform(0.75, 1.25)
        self.set_events(selectors.EVENT_READ)

    # -- steps: called by the loop

    def step(self) -> None:
        """Read or write once. An error closes this connection and no other."""
        try:
            if self.state == "closed":  # evicted in this turn
                return
            if self.state == "waiting":
                self.set_events(0)  # the client's next bytes stay in the kernel
            elif self.unsent or self.state == "writing":
                self.write_step()
            else:
                self.read_step()
        except BlockingIOError:
            pass  # the socket is not ready after all
        except HTTPError as error:
            self.send(self.server.refuse(error, self.peer), last=True)
        except OSError as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self.server.count("connection", peer=self.peer, error=f"{reason}: {error}")
            self.close()
        except Exception as error:
            log_bug(error)
            self.close()
        self.count_bytes()

    def respond(self) -> None:
        """Evaluate the complete request; the loop sends the response at the end of its turn."""
        head, body = self.head, self.received  # the body is not copied
        self.received, self.head = body[self.length :], None
        del body[self.length :]
        options = head.headers.get("connection", "").lower().split(",")  # type: ignore[union-attr]
        self.closing = "close" in map(str.strip, options)
        self.count_bytes()
        try:
            answer = self.server.respond(head, body, self)  # type: ignore[arg-type]
        except HTTPError as error:
            answer = self.server.refuse(error, self.peer)
        except BaseException as error:  # nothing ends the process but signals and the watchdog
            log_bug(error)
            answer = self.server.refuse(HTTPError(500, "whook failed: see its log"), self.peer)
        if answer:  # else the server calls send() later
            self.send(answer)
        self.count_bytes()

    def flush(self) -> None:
        """Begin to send the response."""
        if self.state == "waiting":
            self.set_state("writing")
            self.step()

    # -- reading

    def read_step(self) -> None:
        """Read once, and parse what was received. Raises HTTPError and OSError."""
        if self.state == "handshake":
            self.loop.handshakes += 1
            if self.loop.handshakes > HANDSHAKES_PER_TURN:
                return None  # in a later turn: the bytes stay in the kernel
        data = self.socket.recv(STEP)
        if not data:
            return self.close()
        if self.state == "lingering":
            return None
        self.received += self.decrypt(data) if self.tls else data
        return self.parse()

    def decrypt(self, data: bytes) -> bytes:
        """Return the decrypted bytes, and send the records that TLS produces."""
        self.incoming.write(data)
        chunks = []
        try:
            if self.state == "handshake":
                self.handshake_size += len(data)
                if self.handshake_size > MAX_HEAD:
                    raise ConnectionError("the TLS handshake is too large")
                self.tls.do_handshake()
                self.set_state("new")
            while self.incoming.pending:
                chunk = self.tls.read(STEP)
                if not chunk:  # the client has closed its side: discard what follows
                    self.incoming.read()
                chunks.append(chunk)
        except ssl.SSLWantReadError:  # the rest of a record or of the handshake
            pass
        finally:
            if self.outgoing.pending:  # also an alert that tells the client what is wrong
                self.unsent, self.sent = self.unsent[self.sent :] + self.outgoing.read(), 0
                self.write_step()
        return b"".join(chunks)

    def parse(self) -> None:
        """Look for a complete request in the received bytes. Raises HTTPError."""
        if self.head is None:
            end = self.received.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(self.received) > MAX_HEAD:
                    raise HTTPError(431, f"the head is longer than {MAX_HEAD} bytes")
                if self.received and self.state != "head":
                    self.set_state("head")
                return self.check_buffers(0)
            self.head = read_head(bytes(self.received[:end]))
            del self.received[:end]
            self.length = body_length(self.head, self.server.max_body)
        missing = self.length - len(self.received)
        self.check_buffers(max(missing, 0))
        if missing <= 0:
            self.completed_at = time.monotonic()
            self.set_state("waiting")
            self.loop.add_request(self, self.length)
        elif self.state != "body":
            self.set_state("body")
        return None

    def check_buffers(self, more: int) -> None:
        """Raise HTTPError 503 if the server's buffers have no place for so many more bytes.

        Before that, discard incomplete requests and unread responses of other connections, so that
        no client can keep the buffers full."""
        self.count_bytes()
        while self.server.buffered + more > self.server.max_buffered:
            if not self.server.release_buffers(self):
                raise _at_limit()

    # -- writing

    def send(self, answer: Answer, last: bool = False) -> None:
        """Set the response to the current request. The loop sends it at the end of its turn.

        The connection closes after it if `last`, if the client asks for that, while draining, and
        after MAX_CONNECTION_AGE. A 503 replaces a response that does not fit into the buffers."""
        if self.state == "closed":
            return
        if last:  # the rest of this request is not read
            self.received.clear()
        else:
            try:
                self.check_buffers(len(answer.body))
            except HTTPError as error:
                answer, last = self.server.refuse(error, self.peer), True
        self.closing |= last or self.server.draining or self.loop.clock > self.max_age
        self.response = _head_of(answer, self.closing) + answer.body
        self.set_state("waiting")
        self.loop.responses.append(self)

    def write_step(self) -> None:
        """Send as much as the socket accepts. Raises OSError."""
        if self.state == "writing" and self.response:
            response, self.response = self.response, b""
            self.unsent, self.sent = self.unsent[self.sent :] + self.encrypt(response), 0
        with contextlib.suppress(BlockingIOError):
            self.sent += self.socket.send(memoryview(self.unsent)[self.sent :])
        if self.sent == len(self.unsent):
            self.unsent, self.sent = b"", 0
        self.set_events(selectors.EVENT_WRITE if self.unsent else selectors.EVENT_READ)
        if self.state == "writing" and not self.unsent:
            self.end_response()

    def encrypt(self, data: bytes) -> bytes:
        if not self.tls:
            return data
        records = []
        for start in range(0, len(data), STEP):  # so that the memory buffer stays small
            self.tls.write(memoryview(data)[start : start + STEP])
            records.append(self.outgoing.read())
        return b"".join(records)

    def end_response(self) -> None:
        """The response is sent: go on with the next request, or close."""
        if self.closing:
            self.received.clear()
            self.set_state("lingering")
            with contextlib.suppress(OSError):  # the client has closed already
                self.socket.shutdown(socket.SHUT_WR)
        else:
            self.set_state("idle")
            if self.received:
                self.parse()

    # -- book-keeping

    def set_state(self, state: str) -> None:
        self.server.states.get(self.state, {}).pop(self, None)
        self.state, self.since = state, self.loop.clock
        if state != "closed":
            self.server.states[state][self] = None

    def set_events(self, events: int) -> None:
        """Register the socket for reading or writing; 0 unregisters it."""
        if events != self.events:
            if self.events:
                self.loop.selector.unregister(self.socket)
            if events:
                self.loop.selector.register(self.socket, events, self)
            self.events = events

    def count_bytes(self) -> None:
        """Bring this connection's share of server.buffered up to date."""
        size = len(self.received) + len(self.response) + len(self.unsent)
        self.server.buffered += size - self.counted
        self.counted = size

    def close(self) -> None:
        """Close the connection and release its buffers."""
        if self.state != "closed":
            self.set_events(0)
            self.set_state("closed")
            self.server.peers[self.peer] -= 1
            if not self.server.peers[self.peer]:
                del self.server.peers[self.peer]
            self.received, self.response, self.unsent = bytearray(), b"", b""
            self.count_bytes()
            self.socket.close()


def log_bug(error: BaseException) -> None:
    log("ERROR", "bug", error=type(error).__name__, at=traceback_summary(error))


def _at_limit() -> HTTPError:
    return HTTPError(503, "whook is at its limit", **{"Retry-After": "1"})


def _head_of(answer: Answer, closing: bool) -> bytes:
    phrase = Connection.responses[http.HTTPStatus(answer.status)][0]
    head = (
        f"HTTP/1.1 {answer.status} {phrase}\r\n"
        f"Date: {_http_date(int(time.time()))}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
    )
    for name, value in answer.headers.items():
        head += f"{name}: {value}\r\n"
    return (head + ("Connection: close\r\n\r\n" if closing else "\r\n")).encode("latin-1")


@functools.lru_cache(maxsize=4)
def _http_date(second: int) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second))


Respond = Callable[[Head, "bytes | bytearray", Connection], "Answer | None"]


class Server(http.server.HTTPServer):
    """A listening socket, its connections, and their limits.

    `respond` returns the answer to a complete request, or None if Connection.send() is called
    later; it may raise HTTPError. Of HTTPServer it uses server_activate(), server_close() and, of
    its base class, server_bind(). The loop calls step() when clients connect.
    """

    request_queue_size = BACKLOG
    context: ssl.SSLContext | None = None  # for the next connections; None is plain HTTP
    max_body, max_connections = MAX_BODY, MAX_CONNECTIONS
    max_buffered = MAX_BUFFERED_BODIES * MAX_BODY
    urgent = False  # the loop evaluates its requests first
    draining = False  # each answer closes its connection

    def __init__(self, host: str, port: int, flag: str, respond: Respond, loop: Loop) -> None:
        """Listen on an address, or on all of IPv4 and IPv6 if `host` is empty. Raises ConfigError
        that names the `flag` for the port."""
        self.dual_stack = host in ("", "::") and socket.has_dualstack_ipv6()
        ipv6 = self.dual_stack or ":" in host
        self.address_family = socket.AF_INET6 if ipv6 else socket.AF_INET
        super().__init__((host, port), Connection, bind_and_activate=False)  # type: ignore[arg-type]
        try:
            self.server_bind()
            self.server_activate()
        except OSError as error:
            self.server_close()
            what = f"can't listen on {host or 'any address'}, port {port}: {error.strerror}"
            hint = f"choose another port or address with {flag} or --host, or stop what uses it"
            raise ConfigError(what, hint) from None
        self.socket.setblocking(False)
        self.respond, self.loop, self.server, self.peer = respond, loop, self, ""
        self.states: dict[str, dict[Connection, None]] = {state: {} for state in TIMEOUTS}
        self.peers: collections.Counter[str] = collections.Counter()  # connections by address
        self.buffered = 0  # bytes in memory for requests and responses of all connections
        self.on_refusal: Callable[[str], None] = lambda reason: None
        self.listening, self.last_logged = False, dict[str, float]()  # by reason
        loop.servers.append(self)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self.dual_stack)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask the DNS

    def step(self) -> None:
        """Accept some connections. At max_connections, evict one for each."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                client, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue  # the client has gone
                self.evict()
                self.listen(False)  # until the next tick, as the socket stays readable
                return
            if self.connection_count() >= self.max_connections and not self.evict():
                client.close()
                self.count("overfull")
                continue
            with contextlib.suppress(OSError):  # the client is gone already
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                Connection(self, client, str(address[0]))

    def connection_count(self) -> int:
        return sum(map(len, self.states.values()))

    def evict(self) -> bool:
        """Close the first connection in the order of EVICTION, and the oldest one of these; if one
        peer has more than a quarter of all places, then one of its connections.

        Return False if the requests of all connections are waiting for an answer."""
        evictable = [each for state in EVICTION for each in self.states[state]]
        for peer, count in self.peers.most_common(1):
            if count > self.max_connections // 4:
                its_own = [each for each in evictable if each.peer == peer]
                evictable = its_own or evictable
        if evictable:
            min(evictable, key=lambda each: (EVICTION[each.state], each.since)).close()
        return bool(evictable)

    def release_buffers(self, newcomer: Connection) -> bool:
        """Refuse the oldest incomplete request, or else close the connection that has been
        receiving its response for the longest time. Return False if there is no other one."""
        states = self.states
        for connection in [*states["body"], *states["head"], *states["writing"]]:
            if connection is not newcomer:
                if connection.state != "writing":
                    connection.send(self.refuse(_at_limit(), connection.peer), last=True)
                else:
                    connection.close()
                connection.count_bytes()
                return True
        return False

    def close_expired(self) -> None:
        """Close the connections that have been in their state for longer than TIMEOUTS allows."""
        for state, connections in self.states.items():
            while connections:
                oldest = next(iter(connections))
                if self.loop.clock - oldest.since <= TIMEOUTS[state]:
                    break
                oldest.close()

    def listen(self, listening: bool) -> None:
        """Begin or stop to accept connections."""
        if listening != self.listening:
            self.listening = listening
            if listening:
                self.loop.selector.register(self.socket, selectors.EVENT_READ, self)
            else:
                self.loop.selector.unregister(self.socket)

    def refuse(self, error: HTTPError, peer: str) -> Answer:
        """Return the answer for an error, and count it."""
        self.count(str(error.status), peer=peer, error=error.message)
        return status_answer(error)

    def count(self, reason: str, **fields: object) -> None:
        """Count a request without a verdict. Log one a second of each reason, not a flood."""
        self.on_refusal(reason)
        if time.monotonic() - self.last_logged.get(reason, -math.inf) > 1:
            self.last_logged[reason] = time.monotonic()
            log("WARN", "refused", what=reason, **fields)


# ---------------------------------------------------------------------------- 8 TLS


class ServingCertificate(NamedTuple):
    """A TLS context, and the facts of its certificate for the log, the metrics and /readyz."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    not_after: float  # seconds since 1970; of the certificate in the chain that expires first

    def facts(self) -> dict[str, object]:
        end = _utc_second(int(self.not_after)) + "Z"
        return {"names": ",".join(self.names), "not_after": end}


def read_tls(options: argparse.Namespace) -> dict[str, bytes]:
    """Return the contents of the TLS files by path. Raises ConfigError."""
    files = [file for file in (options.tls_cert, options.tls_key, options.client_ca) if file]
    return read_files(files, f"`{_certs_command(files[0])}` makes a certificate and its key")


def load_tls(options: argparse.Namespace, files: Mapping[str, bytes]) -> ServingCertificate:
    """Return a new context for the certificate, tested by a handshake. Raises ConfigError.

    The context is always new, as a failed load_cert_chain() breaks one that is in use."""
    cert, key = options.tls_cert, options.tls_key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0  # the API server resumes no sessions
    _check_pem(cert, key, files)
    subject, hint = f"{cert} with {key}", "take both from the same Secret, and use no password"
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        subject, hint = cert, f"make a new one: {_certs_command(cert)}"
        names, not_after = _prove(context, cert)
        if not names:
            raise ValueError("it has no subject alternative name, which the API server needs")
        if not_after < time.time():
            raise ValueError("an intermediate certificate in it has expired")
        subject, hint = options.client_ca, "give the CA's certificates as PEM"
        if options.client_ca:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # as Go does
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"can't serve with {subject}: {reason}", hint) from None
    if read_files(files, "") != files:
        raise ConfigError("the TLS files changed while they were read", "whook reads them again")
    return ServingCertificate(context, names, not_after)


def _no_password() -> NoReturn:
    raise ValueError("the key has a password")


def _certs_command(path: str) -> str:
    """Return the command that makes the certificate files in the folder of `path`."""
    local = "local" in os.path.dirname(path)
    return "python certs.py local" if local else "python certs.py"


def _check_pem(cert: str, key: str, files: Mapping[str, bytes]) -> None:
    """Raise ConfigError for mistakes that OpenSSL reports without their cause."""
    if b"PRIVATE KEY-----" in files[cert] and b"PRIVATE KEY-----" not in files[key]:
        what = f"{cert} holds a private key and {key} does not: they are swapped"
        raise ConfigError(what, "--tls-cert is the certificate, --tls-key its private key")
    for path, label in ((cert, b"CERTIFICATE-----"), (key, b"PRIVATE KEY-----")):
        content = files[path]
        if content[:1] == b"\x30":
            kind = "x509" if path == cert else "pkey"
            hint = f"convert it: openssl {kind} -inform der -in {path} -out NEW.pem"
            raise ConfigError(f"{path} is in DER format, not PEM", hint)
        if re.search(rb"-----BEGIN [A-Z ]*" + label + rb"[^\r\n]", content):
            hint = "keep the line breaks; a shell needs quotes around a variable that holds them"
            raise ConfigError(f"{path} is PEM without line breaks", hint)


def _prove(context: ssl.SSLContext, cert: str) -> tuple[tuple[str, ...], float]:
    """Return the names of the certificate, and when the first one in its chain expires.

    For that, make a handshake in memory with a client that trusts just this file: the certificate
    must match the key, and be valid now, for a server. Raises ssl.SSLError."""
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
    leaf: dict[str, Any] = client.getpeercert() or {}
    names = (name for _, name in leaf.get("subjectAltName", ()) if isinstance(name, str))
    chain: list[dict[str, Any]] = [leaf, *trusting.get_ca_certs()]
    return tuple(names), min(ssl.cert_time_to_seconds(each["notAfter"]) for each in chain)


# ---------------------------------------------------------------------------- 9 metrics

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 10, 30)

# Name, type and labels, help text.
_METRICS = """\
whook_reviews_total counter:path,operation,kind,outcome Reviews evaluated.
whook_review_duration_seconds histogram:path Seconds from the complete request to the response.
whook_policy_duration_seconds histogram:policy Seconds spent in each policy.
whook_policy_errors_total counter:policy,cause Reviews that a policy failed on.
whook_patch_operations_total counter:policy JSON Patch operations sent.
whook_refusals_total counter:reason Requests that got no verdict.
whook_connections gauge: Open connections on the admission port.
whook_buffered_bytes gauge: Bytes of requests and responses in memory, admission port.
whook_ready gauge: 1 if whook is ready for reviews.
whook_log_lines_dropped_total counter: Log lines dropped because standard error would block.
whook_reload_errors_total counter:what Changed files that failed to load.
whook_reload_failing gauge:what 1 if the current files failed to load.
whook_reload_timestamp_seconds gauge:what When the files in use were loaded, seconds since 1970.
whook_policies_info gauge:hash The hash of the policies in use.
whook_certificate_not_after_timestamp_seconds gauge: When the certificate chain expires.
whook_build_info gauge:version,python The versions in use."""
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {}  # by name: type, help text, labels
for _line in _METRICS.splitlines():
    _metric, _type, _help = _line.split(" ", 2)
    _type, _, _labels = _type.partition(":")
    METRICS[_metric] = _type, _help, tuple(filter(None, _labels.split(",")))

_KIND = re.compile(r"[A-Za-z0-9]{1,63}").fullmatch


class Metrics:
    """Numbers by metric and label values: one number for a counter or gauge; for a histogram a
    count for each bucket, then the sum."""

    def __init__(self) -> None:
        self.series: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in METRICS}
        self.kinds: set[str] = set()

    def add(self, name: str, *labels: str, amount: float = 1) -> None:
        self.numbers(name, labels, 1)[0] += amount

    def set(self, name: str, *labels: str, value: float) -> None:
        self.series[name][labels] = [value]

    def observe(self, name: str, *labels: str, seconds: float) -> None:
        numbers = self.numbers(name, labels, len(BUCKETS) + 2)
        numbers[bisect.bisect_left(BUCKETS, seconds)] += 1
        numbers[-1] += seconds

    def numbers(self, name: str, labels: tuple[str, ...], count: int) -> list[float]:
        series = self.series[name]
        if labels not in series:
            if len(series) >= MAX_SERIES:
                labels = ("other",) * len(labels)
            series.setdefault(labels, [0] * count)
        return series[labels]

    def review(self, path: str, request: Request, outcome: str, seconds: float) -> None:
        """Count one review."""
        kind, response = request.kind.kind, request.response
        if kind not in self.kinds:
            kind = kind if len(self.kinds) < MAX_KINDS and _KIND(kind) else "other"
            self.kinds.add(kind)
        self.add("whook_reviews_total", path, request.operation, kind, outcome)
        self.observe("whook_review_duration_seconds", path, seconds=seconds)
        for policy, spent in response.spent.items():
            self.observe("whook_policy_duration_seconds", policy, seconds=spent)
        for policy, count in response.changed_by.items():
            self.add("whook_patch_operations_total", policy, amount=count)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4. Label values need no escapes: they
        are names that whook defines or has checked."""
        lines = []
        for name, (kind, text, keys) in METRICS.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for labels, (*counts, total) in sorted(self.series[name].items()):
                pairs = [f'{key}="{value}"' for key, value in zip(keys, labels, strict=True)]
                if not counts:
                    lines.append(f"{name}{{{','.join(pairs)}}} {total:.15g}")
                    continue
                bounds = zip((*BUCKETS, "+Inf"), itertools.accumulate(counts), strict=True)
                for bound, count in bounds:
                    below = ",".join([*pairs, f'le="{bound}"'])
                    lines.append(f"{name}_bucket{{{below}}} {count}")
                lines.append(f"{name}_sum{{{','.join(pairs)}}} {total:.15g}")
                lines.append(f"{name}_count{{{','.join(pairs)}}} {sum(counts)}")
        return "\n".join([*lines, ""]).encode()


# ---------------------------------------------------------------------------- 10 the process


class FairQueue:
    """Connections with complete requests. Their peers take turns, so that a client which sends many
    requests delays its own."""

    def __init__(self) -> None:
        self.queues: dict[str, collections.deque[Connection]] = {}  # by peer; the next one first

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def append(self, connection: Connection) -> None:
        self.queues.setdefault(connection.peer, collections.deque()).append(connection)

    def popleft(self) -> Connection:
        peer = next(iter(self.queues))
        queue = self.queues.pop(peer)
        connection = queue.popleft()
        if queue:
            self.queues[peer] = queue
        return connection


class Loop:
    """The event loop: one select() for all sockets of all servers.

    In a turn, every ready socket takes one bounded step, then complete requests are evaluated for
    a short time, then the responses are sent together. Each of the three ends after a slice of
    time; what is left is done in the next turn. Requests on a server that is `urgent` (health) are
    evaluated first. Large bodies have a queue of their own: after one of them, all smaller ones
    that are waiting come before the next.
    """

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.servers: list[Server] = []
        self.begin_turn: Callable[[], None] = lambda: None  # arms the watchdog, if there is one
        self.tasks: list[Callable[[], object]] = []  # called each TICK
        self.responses: list[Connection] = []  # to be sent at the end of the turn
        self.health, self.small, self.large = FairQueue(), FairQueue(), FairQueue()
        self.owed = 0  # smaller requests to evaluate before the next large one, at most until ...
        self.large_due = 0.0
        self.large_done = False  # a large one was evaluated in this turn
        self.left_over: list[Server | Connection] = []  # ready sockets without a step in this turn
        self.handshakes = 0  # steps of handshakes in this turn
        self.clock = self.last = self.next_tick = 0.0

    def run(self, ended: Callable[[], bool]) -> None:
        """Make turns until `ended` returns True."""
        self.last = time.monotonic()
        while not ended():
            try:
                self.turn()
            except Exception as error:  # nothing ends the process but signals and the watchdog
                log_bug(error)

    def turn(self) -> None:
        busy = self.health or self.small or self.large or self.responses
        ready = self.selector.select(0 if busy else max(self.next_tick - time.monotonic(), 0))
        self.begin_turn()
        # The clock of timeouts advances by a second at most in a turn, so that no client loses its
        # time while the process is stopped or a policy runs.
        now = time.monotonic()
        self.clock, self.last = self.clock + min(now - self.last, 1.0), now
        self.take_steps([key.data for key, _ in ready])
        self.evaluate()
        responses, self.responses = self.responses, []
        for connection in responses:
            connection.flush()
        if log.pending:
            log.flush()
        if time.monotonic() >= self.next_tick:
            self.next_tick = time.monotonic() + TICK
            self.tick()

    def take_steps(self, ready: list[Server | Connection]) -> None:
        """Let each ready socket take a step, for at most STEP_SLICE.

        Health comes first, then the sockets that had no time in the turn before, then those of
        the clients with the fewest connections."""
        self.handshakes = 0
        if len(ready) > 1:
            random.shuffle(ready)
            ready.sort(key=lambda each: each.server.peers[each.peer])
            still_ready = {*ready} if self.left_over else set()
            waited = dict.fromkeys(each for each in self.left_over if each in still_ready)
            ready = [*waited, *(each for each in ready if each not in waited)]
            ready.sort(key=lambda each: not each.urgent)
        end, taken = time.monotonic() + STEP_SLICE, 0
        for each in ready:
            each.step()
            taken += 1
            if time.monotonic() > end and not each.urgent:
                break
        self.left_over = ready[taken:]

    def add_request(self, connection: Connection, length: int) -> None:
        """Put the connection's complete request, whose body has this length, into a queue."""
        queue = self.large if length > LARGE_BODY else self.small
        (self.health if connection.urgent else queue).append(connection)

    def evaluate(self) -> None:
        """Evaluate requests until both slices are over or no request is left."""
        now = time.monotonic()
        end = now + HEALTH_SLICE
        while self.health and time.monotonic() < end:
            self.health.popleft().respond()
        if self.large_done:
            self.owed, self.large_due, self.large_done = len(self.small), now + LARGE_WAIT, False
        end = time.monotonic() + WORK_SLICE
        while connection := self.next_request():
            if connection.state == "waiting":
                connection.respond()
            if time.monotonic() > end:
                break

    def next_request(self) -> Connection | None:
        """Remove and return the connection whose request is evaluated next."""
        may_be_large = not self.owed or time.monotonic() > self.large_due
        if self.large and not self.large_done and (may_be_large or not self.small):
            self.large_done = True
            return self.large.popleft()
        if self.small:
            self.owed = max(self.owed - 1, 0)
            return self.small.popleft()
        return None

    def tick(self) -> None:
        """Do what is due every TICK."""
        for server in self.servers:
            server.close_expired()
            server.listen(True)
        for task in self.tasks:
            task()


def collect_garbage() -> None:
    """Run the garbage collector within the time limit, as finalizers are code of policies."""
    with contextlib.suppress(PolicyTimeout):
        time_limit.run(TIME_LIMIT, gc.collect)


def start_watchdog() -> None:
    """Let SIGPROF end the process, after printing a traceback.

    arm_watchdog() sets its timer, which counts processor time: so a call into C that never returns
    is ended, but not a process that is stopped for a while. A call that blocks without using the
    processor is detected by the liveness probe only."""
    faulthandler.unregister(signal.SIGPROF)  # a policy may have set another handler
    faulthandler.register(signal.SIGPROF, file=2, chain=True)


def arm_watchdog(seconds: float = 0) -> None:
    """Give the process so many seconds of processor time (WATCHDOG) until the next call."""
    signal.setitimer(signal.ITIMER_PROF, seconds or WATCHDOG)


_PROCESS_1 = "as process 1, whook also ends if it is paused for 15 seconds"
_PROCESS_1_HINT = "set shareProcessNamespace: true in the pod, or start the container with --init"
Evaluate = Callable[[Request, Sequence[Policy], Verb], Response]

_TARGET = re.compile(r"/(mutate|validate|warn)(?:/([A-Za-z0-9._-]{1,200}))?(?:\?(.*))?").fullmatch
_TIMEOUT = re.compile(r"(?:^|&)timeout=([^&]*)").search


def route(head: Head) -> tuple[Verb, str, float]:
    """Return the verb, the policy's name or "" for all, and the timeout in seconds of a request.

    Raises HTTPError 400, 404, 405 or 415."""
    target = _TARGET(head.target)
    if not target:
        raise HTTPError(404, "the paths are /mutate, /validate, /warn; for one policy /mutate/NAME")
    if head.method != "POST":
        raise HTTPError(405, f"{head.method} is not allowed: POST an AdmissionReview", Allow="POST")
    content_type = head.headers.get("content-type", "").partition(";")[0].strip(" \t").lower()
    if content_type != "application/json":
        raise HTTPError(415, f"the content-type {truncate(content_type)!r} is not application/json")
    timeout = _TIMEOUT(target[3] or "")
    verb: Verb = target[1]  # type: ignore[assignment]
    if not timeout:
        return verb, target[2] or "", DEFAULT_REVIEW_TIMEOUT
    if not re.fullmatch("[0-9]{1,4}s", timeout[1]):
        text = truncate(timeout[1])
        raise HTTPError(400, f"the timeout {text!r} is not in whole seconds, as in 5s")
    return verb, target[2] or "", min(float(timeout[1][:-1]), MAX_REVIEW_TIMEOUT)


class Process:
    """All of whook: two servers in one loop, the policies and certificate they use, and the drain.

    `evaluate` may be another function of the same signature. Signal handlers only set attributes;
    the loop reads them within a TICK.
    """

    def __init__(self, evaluate: Evaluate = evaluate) -> None:
        self.evaluate = evaluate
        self.drain_deadline = math.inf  # by time.monotonic(); finite while draining
        self.finish_deadline = math.inf  # finite when the grace period is over
        self.grace_period, self.interrupted = GRACE_PERIOD, False
        self.idle_since = 0.0  # while draining: when the last client was connected
        self.metrics, self.loop = Metrics(), Loop()

    def handle_signals(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.drain(self.grace_period))
        signal.signal(signal.SIGINT, self.interrupt)
        if hasattr(signal, "SIGHUP"):  # whook reads its files again without it
            signal.signal(signal.SIGHUP, lambda *_: None)

    def drain(self, grace_period: float) -> None:
        """Begin to drain. A second SIGTERM changes nothing, as some tools send it twice."""
        if self.drain_deadline == math.inf:
            self.drain_deadline = time.monotonic() + grace_period

    def interrupt(self, *_: object) -> None:
        """Handle Ctrl-C: answer the requests that were received, then exit. Twice: exit at once."""
        if self.interrupted:
            os._exit(1)
        self.interrupted, self.drain_deadline = True, time.monotonic()

    def set_up(self, options: argparse.Namespace) -> None:
        """Load the policies and the certificate, and bind the ports. Raises ConfigError."""
        self.grace_period = options.grace_period
        python = sys.version.split()[0]
        log("INFO", "start", version=__version__, python=python, process=os.getpid())
        if time_limit.enabled:  # else a policy may stop at a breakpoint
            start_watchdog()
            arm_watchdog(START_TIME_LIMIT + WATCHDOG)
            self.loop.begin_turn = arm_watchdog
            self.loop.tasks.append(start_watchdog)
            if os.getpid() == 1:  # for which the kernel ignores SIGPROF
                log("WARN", "watchdog", error=_PROCESS_1, hint=_PROCESS_1_HINT)
                later = functools.partial(faulthandler.dump_traceback_later, 15, exit=True)
                self.loop.tasks.append(later)
        self.policies = Reloadable(
            "policies",
            lambda: read_sources(options.policy),
            functools.partial(load_policies, seconds=START_TIME_LIMIT),
            PolicySet.facts,
        )
        self.policies.make = load_policies
        self.tls = Reloadable(
            "tls",
            lambda: read_tls(options),
            functools.partial(load_tls, options),
            ServingCertificate.facts,
            retry=True,
        )
        self.handle_signals()  # again: a module that a policy imports may have set others
        self.admission = Server(options.host, options.port, "--port", self.review, self.loop)
        self.admission.context = self.tls.value.context
        self.admission.max_body = options.max_body
        self.admission.max_buffered = MAX_BUFFERED_BODIES * options.max_body
        self.admission.max_connections = options.max_connections
        port = options.health_port
        self.health = Server(options.host, port, "--health-port", self.answer_health, self.loop)
        self.health.urgent, self.health.max_body = True, 0
        self.health.max_connections = MAX_HEALTH_CONNECTIONS
        for server in (self.admission, self.health):
            server.on_refusal = functools.partial(self.metrics.add, "whook_refusals_total")
        _raise_file_limit(options.max_connections + MAX_HEALTH_CONNECTIONS + 100)
        if options.reload:
            self.loop.tasks.append(self.policies.refresh)
        self.loop.tasks.append(self.refresh_tls)
        gc.collect()
        gc.freeze()  # collections skip the objects that exist now, and are made each TICK:
        gc.disable()  # while a large body is parsed they would take most of the time
        self.loop.tasks += [collect_garbage, self.handle_signals]  # policies may set handlers

    def run(self) -> None:
        """Serve until a signal ends it."""
        admission, health = [_address(each.socket) for each in (self.admission, self.health)]
        host = re.sub(r"^(0\.0\.0\.0|\[::\])", "localhost", admission)
        log("INFO", "ready", admission=admission, health=health, reviews=f"https://{host}/mutate")
        log.batched = True
        self.loop.run(self.ended)
        log.batched = False
        log("INFO", "end", dropped=log.dropped)

    def refresh_tls(self) -> None:
        self.tls.refresh()
        self.admission.context = self.tls.value.context

    def ended(self) -> bool:
        """Return True when the drain is over: no client is connected or the grace period is over,
        and the requests received until then are answered."""
        if self.drain_deadline == math.inf:
            return False
        now, admission = time.monotonic(), self.admission
        if not admission.draining:
            admission.draining, self.idle_since = True, now
            log("INFO", "drain", connections=admission.connection_count())
        if admission.connection_count():
            self.idle_since = now
        if self.finish_deadline == math.inf:
            if now < min(self.drain_deadline, self.idle_since + SETTLE_TIME):
                return False
            self.finish_deadline = now + FINISH_TIME
        admission.listen(False)
        unanswered = any(admission.states[state] for state in ("waiting", "writing", "lingering"))
        return now > self.finish_deadline or not unanswered

    # -- reviews

    def review(self, head: Head, body: bytes | bytearray, connection: Connection) -> Answer | None:
        """Answer a request on the admission port. Raises HTTPError."""
        verb, name, timeout = route(head)
        policies = self.policies.value.find(verb, name)
        if time.monotonic() > connection.completed_at + timeout:
            raise HTTPError(504, "the deadline passed while the review was queued")
        request = parse_review(body, connection.completed_at + timeout)
        path = f"/{verb}/{name}" if name else f"/{verb}"
        return self.conclude(request, policies, verb, path, connection.completed_at)

    def conclude(
        self, request: Request, policies: Sequence[Policy], verb: Verb, path: str, since: float
    ) -> Answer:
        """Evaluate a review that was complete at `since`, count it and log it."""
        outcome = "error"
        try:
            response = self.evaluate(request, policies, verb)
            answer = Answer(200, response.body)
            outcome = "allowed" if response.allowed else "denied"
            outcome = "would_deny" if response.would_deny else outcome
        except PolicyError as error:
            answer = status_answer(error)
            name, at = error.policy.name, traceback_summary(error.__cause__ or error)
            log("ERROR", "policy", uid=request.uid, policy=name, error=error.summary, at=at)
            self.metrics.add("whook_policy_errors_total", name, error.cause)
        duration = time.monotonic() - since
        self.metrics.review(path, request, outcome, duration)
        log(
            "ERROR" if outcome == "error" else "INFO",
            "review",
            uid=request.uid,
            path=path,
            operation=request.operation,
            kind=request.kind.kind,
            object=f"{request.namespace}/{request.name}" if request.namespace else request.name,
            user=_user_name(request),
            allowed={"allowed": True, "denied": False}.get(outcome, outcome),
            patch=len(request.response.patch),
            duration=f"{duration * 1000:.2f}ms",
        )
        return answer

    # -- health

    def answer_health(self, head: Head, body: bytes | bytearray, connection: Connection) -> Answer:
        """Answer a request on the health port. Raises HTTPError."""
        if head.method != "GET":
            raise HTTPError(405, f"{head.method} is not allowed: GET it", Allow="GET")
        path = head.target.partition("?")[0]
        if path == "/metrics":
            return Answer(200, self.all_metrics(), {}, "text/plain; version=0.0.4")
        if path not in ("/livez", "/readyz"):
            raise HTTPError(404, "the paths are /livez, /readyz and /metrics")
        reason = self.not_ready_reason() if path == "/readyz" else ""
        text = f"not ok: {reason}\n" if reason else "ok\n"
        return Answer(503 if reason else 200, text.encode(), {}, "text/plain")

    def not_ready_reason(self) -> str:
        """Return why the API server should send no review here, or "" if it may."""
        if self.drain_deadline < math.inf:
            return "draining"
        expired = time.time() > self.tls.value.not_after
        return "the serving certificate has expired" if expired else ""

    def all_metrics(self) -> bytes:
        """Return the metrics, with the gauges as they are now."""
        put = self.metrics.set
        put("whook_connections", value=self.admission.connection_count())
        put("whook_buffered_bytes", value=self.admission.buffered)
        put("whook_ready", value=not self.not_ready_reason())
        put("whook_log_lines_dropped_total", value=log.dropped)
        put("whook_certificate_not_after_timestamp_seconds", value=self.tls.value.not_after)
        self.metrics.series["whook_policies_info"].clear()
        put("whook_policies_info", self.policies.value.digest, value=1)
        put("whook_build_info", __version__, sys.version.split()[0], value=1)
        for each in (self.policies, self.tls):
            put("whook_reload_timestamp_seconds", each.what, value=each.loaded_at)
            put("whook_reload_errors_total", each.what, value=each.errors)
            put("whook_reload_failing", each.what, value=bool(each.last_error))
        return self.metrics.render()


def _user_name(request: Request) -> str:
    name = request._fields["user_info"].get("username")
    return name if type(name) is str else ""


# ---------------------------------------------------------------------------- 11 command line

LOCAL_HINT = "`python certs.py local` makes a certificate and its key for this machine"
EXAMPLES = """\
examples:
  python certs.py local                     # certificates for this machine
  python whook.py --tls-cert local-certs/server-cert.pem \\
                  --tls-key local-certs/server-key.pem --policy policies --reload
  python whook.py --check --policy policies

SIGTERM: whook becomes not ready, keeps serving, and exits when no client is connected (status 0).
Ctrl-C: it answers the requests that it has received, and exits. Twice: it exits at once."""


def main(argv: Sequence[str] | None = None, process: Process | None = None) -> int:
    """Run the command line, and return the exit status: 0 done, 1 failed, 2 wrong usage."""
    _open_standard_streams()
    process = process or Process()
    process.handle_signals()  # first: process 1 has no default action that would end it
    options = parse_arguments(argv)
    log.format = options.log_format
    if options.debug_policies:
        time_limit.enabled = False
        log("WARN", "debug", error="--debug-policies: policies have no time limit")
    try:
        if options.check:
            return check(options)
        process.set_up(options)
        process.run()
    except ConfigError as error:
        if options.check and error.__cause__:
            traceback.print_exception(error.__cause__)
        print(f"whook: error: {error.message}\nwhook: hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


def check(options: argparse.Namespace) -> int:
    """Load and print the policies, and the TLS files if they are given. Raises ConfigError."""
    loaded = load_policies(read_sources(options.policy), START_TIME_LIMIT)
    for policy in loaded.policies:
        functions = {"mutate": policy.mutate, "validate": policy.validate}
        defined = [name for name, function in functions.items() if function is not None]
        print(f"{policy.name}: {', '.join(defined)} ({policy.path})")
    print(f"{len(loaded.policies)} policies, hash {loaded.digest}")
    if options.tls_cert:
        facts = load_tls(options, read_tls(options)).facts()
        print(f"certificate for {facts['names']}, expires {facts['not_after']}")
    return 0


def _open_standard_streams() -> None:
    """Open the standard streams that are closed, so that no other file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="whook",
        description="A Kubernetes admission webhook: it runs plain Python policies on objects.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM; read again when it changes")
    add("--tls-key", metavar="FILE", help="its private key, PEM; read again when it changes")
    add("--policy", metavar="FILE|DIR", action="append", default=[],
        help="policies, read at start; repeatable")  # fmt: skip
    add("--host", metavar="ADDR", default="", help="address to listen on (default: all)")
    add("--port", type=_whole(0, 65535), default=8443,
        help="HTTPS port for the API server (default: %(default)s)")  # fmt: skip
    add("--health-port", type=_whole(0, 65535), default=8080,
        help="HTTP port for /livez, /readyz and /metrics (default: %(default)s)")  # fmt: skip
    add("--client-ca", metavar="FILE", help="demand a client certificate that this CA has issued")
    add("--max-body", metavar="BYTES", type=_whole(1024, 2**30), default=MAX_BODY,
        help="largest review accepted (default: %(default)s)")  # fmt: skip
    add("--max-connections", metavar="N", type=_whole(1, 100_000), default=MAX_CONNECTIONS,
        help="connections at a time (default: %(default)s)")  # fmt: skip
    add("--grace-period", metavar="SECONDS", type=_whole(0, 3600), default=GRACE_PERIOD,
        help="time to drain after SIGTERM, at most (default: %(default)g)")  # fmt: skip
    add("--log-format", choices=("text", "json"), default="text", help="(default: %(default)s)")
    add("--reload", action="store_true",
        help="load policies again when they change; for development: an import that hangs in C or "
        "exits the process ends whook")  # fmt: skip
    add("--debug-policies", action="store_true",
        help="give policies no time limit, so that they can stop at a breakpoint; never in "
        "production")  # fmt: skip
    add("--check", action="store_true", help="load the policies, print them, and exit with 0 or 1")
    add("--version", action="version", version=f"whook {__version__}")
    options = parser.parse_args(argv)
    missing = [flag for flag in ("tls_cert", "tls_key") if not getattr(options, flag)]
    if missing and not (options.check and len(missing) == 2):
        flags = ", ".join("--" + flag.replace("_", "-") for flag in missing)
        message = f"the following arguments are required: {flags}"
        parser.error(f"{message}\nwhook: hint: {LOCAL_HINT}, in local-certs/")
    if options.port and options.port == options.health_port:
        parser.error("--port and --health-port must differ")
    return options


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return number


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _raise_file_limit(count: int) -> None:
    """Raise this process's limit of open files to `count`, as far as the hard limit allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    os._exit(exit_status)  # without waiting for threads that a policy has started
