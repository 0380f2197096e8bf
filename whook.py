#!/usr/bin/env python3
"""whook: a Kubernetes admission webhook that one person can audit in one sitting.

The API server posts an AdmissionReview over HTTPS; whook runs plain Python policies on the object
in it and answers with a verdict and a base64 JSON Patch. Standard library only.

Trust boundary: the bytes from the network are hostile until parse_review has accepted them. The
policies, the certificate files and the command line are the operator's own and are trusted: a
policy is code that runs with whook's rights. whook needs no right at all in the cluster.

What it will not do: call the API server, read a Secret, write a file, log an object, follow a URL,
decide between fail-open and fail-closed (the webhook configuration's failurePolicy does that).

What waits: one process with one thread has one loop, and the loop's select is all that waits.
What is shared: nothing; there is no thread, no fork and no lock.
What a stranger can size: nothing; section 2 has a bound for all that comes from outside.

Sections, each using only what stands above it: 1 this text, 2 limits and log, 3 the review,
4 policies, 5 JSON Patch, 6 evaluation, 7 HTTP, 8 TLS, 9 metrics, 10 the process, 11 command line.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  for who tries
    sys.exit("whook: error: it needs Python 3.11 or later")

import argparse
import base64
import bisect
import collections
import contextlib
import errno
import faulthandler
import functools
import gc
import hashlib
import http.server
import itertools
import json
import marshal
import math
import os
import random
import re
import select
import selectors
import signal
import socket
import ssl
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

__version__ = "1.0.0"

# ---------------------------------------------------------------------------- 2 limits and log
# Sizes are bytes, times are seconds.

MAX_BODY = 7 * 1024 * 1024  # a user's body may be 3 MiB, and a review can hold object and oldObject
MAX_LINE = 8 * 1024  # of a request line or a header; the API server's longest is under 100
MAX_HEAD = 32 * 1024  # of all lines before a body
MAX_HEADERS = 64  # the API server sends six
BODIES_HELD = 8  # bodies of full size that all connections together may have waiting
MAX_CONNECTIONS = 1000
MAX_REFUSING = 64  # connections over that bound that are told 503; past them they are closed
BACKLOG = 1024
RECORD = 16 * 1024  # what one TLS record holds at most: one recv() takes it whole
# A phase that a connection is in, how long it may take, and how long while whook is half full.
PATIENCE = {
    "handshake": (10.0, 3.0),
    "fresh": (100.0, 3.0),  # connected, and nothing was asked yet
    "idle": (100.0, 100.0),  # longer than the 90 s after which the API server drops it
    "head": (10.0, 3.0),
    "body": (10.0, 10.0),  # a large one may be slow because we are
    "waiting": (math.inf, math.inf),  # for us; its review has a deadline of its own
    "write": (10.0, 3.0),
    "linger": (2.0, 2.0),  # what still comes is thrown away, so that its sender sees the answer
}
LIFETIME = 60.0  # of a connection, about; then an answer closes it, so that new pods get some
MAX_ANSWERS = 200  # on one connection: a client that prefers the last used keeps few, and busy
MAX_TIMEOUT = 30.0  # of a review: admissionregistration.k8s.io/v1 allows no more
DEFAULT_TIMEOUT = 10.0  # of a review without ?timeout=, as there
BUDGET = 1.0  # what all policies of a review may take together, and loading after a change
START_BUDGET = 10.0  # what loading may take at the start, when imports are cold
RING = 0.05  # between two attempts to stop a policy
STUCK_AFTER = 15.0  # a call into C that can't be stopped ends the process
SLICE = 0.01  # of work, until the loop looks at its sockets again: health must be quick
ACCEPTS = 32  # connections taken at a time
READS = 16  # records, which may hold a byte each, taken from one connection at a time
TICK = 0.5  # how often the loop looks after time-outs, files and its end
SETTLE_TIME = 5.0  # while draining without connections, late ones are waited for
GRACE_PERIOD = 95.0  # longer than those 90 s: no connection is cut that may still be used
LOG_WRITE = 4096  # bytes that a pipe takes in one piece (PIPE_BUF)
MAX_LOGGED = 256  # characters of a value in a log line
MAX_MESSAGE = 4096  # characters of a denial, a warning or an error
MAX_UID = 253
MAX_WARNINGS = 4096  # how many are kept; the API server takes as many characters in all, or ...
MAX_WARNING = 256  # ... that many of each
MAX_SERIES = 1000  # label combinations of a metric; what comes later is counted as "other"


class Log:
    """Writes one line an event to standard error, as text or JSON.

    A line holds names, counts and messages, never an object: a Secret is an object. Values are cut
    and escaped, so that nothing from outside can size a line or forge one. Nothing waits for who
    reads: lines that can't be written at once are dropped and counted. While the loop runs, they
    go out together, once a turn.
    """

    def __init__(self) -> None:
        self.format = "text"
        self.together = False
        self.dropped = 0
        self.waiting: list[str] = []
        self.torn = False  # the last line that went out lacks its end

    def __call__(self, level: str, event: str, **fields: object) -> None:
        now = time.time()
        stamp = f"{_utc_second(int(now))}.{int(now % 1 * 1000):03d}Z"
        if self.format == "json":
            cut = {k: v if type(v) in _SMALL else str(v)[:MAX_LOGGED] for k, v in fields.items()}
            line = json.dumps({"time": stamp, "level": level, "event": event, **cut})
        else:
            pairs = [f"{key}={_quote(value)}" for key, value in fields.items()]
            line = " ".join([stamp, level, event, *pairs])
        self.waiting.append(line + "\n")
        if not self.together:
            self.flush()

    def flush(self) -> None:
        """Write what waits, in pieces that another process can't write into."""
        text, self.waiting = "".join(self.waiting), []
        data, start = ("\n" * self.torn + text).encode(), 0
        with contextlib.suppress(OSError):  # a full disk, a closed pipe
            while start < len(data) and _writable():
                end = data.rfind(b"\n", start, start + LOG_WRITE) + 1 or start + LOG_WRITE
                start += os.write(2, data[start:end])
        self.torn = data[:start][-1:] != b"\n" if start else self.torn
        self.dropped += data.count(b"\n", start)


_SMALL = (int, float, bool)


def _writable() -> bool:
    """Whether standard error takes LOG_WRITE bytes at once. Windows can't tell."""
    return os.name == "nt" or bool(select.select((), (2,), (), 0)[1])


@functools.lru_cache(maxsize=4)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


_PLAIN = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII but space, quote, equals, \


def _quote(value: object) -> str:
    text = str(value).lower() if type(value) is bool else str(value)[:MAX_LOGGED]
    return text if _PLAIN(text) else json.dumps(text)


log = Log()


class Refusal(Exception):
    """A request that gets no verdict: the HTTP status, and what the Status body says."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def cut(text: str, limit: int = 100) -> str:
    """A text from outside, short enough to be quoted in a message."""
    return text if len(text) <= limit else text[:limit] + "…"


def where(error: BaseException) -> str:
    """Where it was raised, innermost first, for the log: no text of the error, which may quote an
    object, and no lines of source."""
    calls, step = [], error.__traceback__
    while step:
        code = step.tb_frame.f_code
        calls.append(f"{os.path.basename(code.co_filename)}:{step.tb_lineno} {code.co_name}")
        step = step.tb_next
    return " < ".join(reversed(calls))


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
    maps a policy's name to the seconds that it took, `changed_by` to its number of operations,
    `would_deny` to the message with which it would have denied, were this not /warn."""

    def __init__(self) -> None:
        self.allowed = True
        self.code, self.reason, self.message = 200, "", ""
        self.warnings: dict[str, None] = {}
        self.audit: dict[str, str] = {}
        self.patch: list[dict[str, Any]] = []
        self.spent: dict[str, float] = {}
        self.changed_by: dict[str, int] = {}
        self.would_deny: dict[str, str] = {}


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

    def __init__(self, obj: dict[str, Any] | None, again: Callable[[], Any]) -> None:
        """`again` makes another copy of the object, as it was sent; few policies ask for one."""
        self.response = Response()
        self.has_object = obj is not None  # False on DELETE
        self._parsed, self._again = obj, again
        self._object: dict[str, Any] | None = None

    @property
    def object(self) -> Any:
        """The object as the API server sent it; None on DELETE. Not what a policy edits."""
        if self._object is None and self.has_object:
            self._object = self._again()
        return self._object

    def own_object(self) -> Any:
        """The object, for the caller alone: what was parsed, or that parsed once more."""
        parsed, self._parsed = self._parsed, None
        return self._again() if parsed is None and self.has_object else parsed

    def deny(self, message: str, code: int = 403, reason: str = "Forbidden") -> NoReturn:
        """End the review: the API server refuses the user's request with this message, which
        continues its sentence: lower case, no full stop. ValueError if code is no HTTP error."""
        if type(code) is not int or not 400 <= code <= 599:
            raise ValueError(f"deny code {code!r} is not between 400 and 599")
        response, text = self.response, cut(str(message), MAX_MESSAGE)
        response.reason, response.message = str(reason), text
        response.allowed, response.code = False, code
        raise Denied(text)

    def warn(self, text: str) -> None:
        """Show the user a line (kubectl: `Warning: …`). Control characters become spaces, as the
        API server would drop the whole warning for one."""
        line = _CONTROL.sub(" ", str(text)[:MAX_MESSAGE]).strip()
        if line and len(self.response.warnings) < MAX_WARNINGS:
            self.response.warnings[line] = None

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
_TYPE_NAMES: dict[type, str] = {dict: "an object", str: "a string", bool: "true or false"}
_TYPE_NAMES |= {list: "a list", tuple: "a list", set: "a list", frozenset: "a list"}
_TYPE_NAMES |= {int: "a whole number", float: "a number"}


def freeze(value: Any) -> bytes:
    """A JSON value as bytes that differ where it does: true, 1 and 1.0 are three values, which ==
    says are one. Version 2 of the format has no back references, so equal values in equal order
    give equal bytes. ValueError for what is no plain JSON type, or over 2000 levels deep."""
    return marshal.dumps(value, 2)


thaw: Callable[[Any], Any] = marshal.loads  # only ever reads what was frozen here
Frozen = bytes | dict[str, bytes]  # a field of an object: an object's own fields one by one


def freeze_field(value: Any) -> Frozen:
    """A field of an object, with what is in it apart (metadata.labels, spec.containers), so that
    only what changes is looked at closely.

    Equal bytes mean equal values, but not the other way round: version 4 writes a value that is
    referred to twice in another way. It takes half the time of version 2. Refusal if too deep."""
    try:
        if type(value) is dict:
            return {key: marshal.dumps(item, 4) for key, item in value.items()}
        return marshal.dumps(value, 4)
    except ValueError:
        raise Refusal(400, "the object is nested too deeply") from None


def thaw_field(frozen: Frozen) -> Any:
    return {k: thaw(v) for k, v in frozen.items()} if type(frozen) is dict else thaw(frozen)


def parse_review(body: bytes | bytearray, deadline: float = math.inf) -> Request:
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
    request = Request(obj, lambda: _decode(body)["request"]["object"])
    request.api_version, request.deadline = review["apiVersion"], deadline
    request.uid = _field(fields, "uid", str, "")
    if not 0 < len(request.uid) <= MAX_UID:
        raise Refusal(400, "request.uid is " + ("too long" if request.uid else "missing"))
    request.operation = _field(fields, "operation", str, "")
    if request.operation not in _OPERATIONS:
        raise Refusal(400, f"request.operation must be one of {', '.join(_OPERATIONS)}")
    if obj is None and request.operation in ("CREATE", "UPDATE"):
        raise Refusal(400, f"request.object is missing, which {request.operation} needs")
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


def _decode(body: bytes | bytearray) -> Any:
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError is one; so is an integer of over 4300 digits
        reason = cut(str(error).partition(";")[0]) if body else "it is empty"
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
        answer["warnings"] = _fitting(list(response.warnings))
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


class TimeUp(BaseException):
    """Raised inside a policy that is to stop; not an Exception, so that few policies swallow it."""


set_handler: Any = signal.signal  # main() hides them from policies
set_timer: Any = getattr(signal, "setitimer", None)


class Budget:
    """The seconds that policies may take together; who is at work when they are over is stopped.

    A timer's signal raises TimeUp in it, again and again until it lets go. From the second time on
    every line that it still runs raises TimeUp too, as `while True:` around `try: sleep(9)` with a
    bare `except:` would be met inside its `try` for ever. whook's own code is never interrupted.
    Nothing is stopped where there is no such timer (Windows), in another thread than the first,
    and while a debugger is at work: somebody stands at a breakpoint.
    """

    def __init__(self) -> None:
        self.obeyed = False  # the signal's handler is set
        self.seconds = 0.0
        self.over = False  # the time is up
        self.lines: dict[str, int] = {}  # where, by file: filled when somebody had to be stopped

    def __call__(self, seconds: float) -> Budget:
        """To be entered with so many seconds from then on."""
        self.seconds, self.over, self.lines = seconds, False, {}
        return self

    def __enter__(self) -> Budget:
        try:
            if not self.obeyed:
                set_handler(signal.SIGALRM, self.ring)
                self.obeyed = True
            set_timer(signal.ITIMER_REAL, max(self.seconds, RING), RING)
        except (ValueError, AttributeError):
            pass  # another thread, Windows
        return self

    def __exit__(self, *_: object) -> None:
        if self.obeyed:
            set_timer(signal.ITIMER_REAL, 0)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns; TimeUp if it took too long, or the time was up before."""
        if self.over:
            raise TimeUp
        try:
            return function(*arguments)
        finally:
            if self.lines:
                sys.settrace(None)

    def ring(self, number: int, frame: types.FrameType | None) -> None:
        """The timer's signal: interrupt what call() called."""
        if sys.gettrace() not in (None, self.trace) or _monitored():
            self.__exit__()
            return faulthandler.cancel_dump_traceback_later()
        self.over, frames = True, []
        while frame and frame.f_code is not Budget.call.__code__:
            frames.append(frame)
            frame = frame.f_back
        if not frame or not frames or frames[0].f_code.co_filename == __file__:
            return None  # whook itself is at work
        if self.lines:
            for each in frames:
                each.f_trace = self.trace
            sys.settrace(self.trace)
        else:
            self.lines = {each.f_code.co_filename: each.f_lineno for each in reversed(frames)}
        raise TimeUp

    def trace(self, frame: types.FrameType, event: str, argument: object) -> Any:
        if event == "line":
            raise TimeUp
        return self.trace


def _monitored() -> bool:
    """Whether a debugger is at work that uses sys.monitoring, as pdb does from 3.14 on."""
    monitoring = getattr(sys, "monitoring", None)
    return bool(monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID))


budget = Budget()

PolicyFunction = Callable[[Any, Request], object]


class Policy(NamedTuple):
    """One policy file: its name is the file's, without `.py`."""

    name: str
    path: str
    mutate: PolicyFunction | None
    validate: PolicyFunction | None


class PolicySet(NamedTuple):
    """All policies in the order of their names, and the hash of their sources and parameters."""

    policies: tuple[Policy, ...] = ()
    digest: str = ""

    def find(self, verb: str, name: str) -> Sequence[Policy]:
        """The policies behind /verb or /verb/name; Refusal (404) where there is none."""
        if not name:
            return self.policies
        function = "mutate" if verb == "mutate" else "validate"
        for policy in self.policies:
            if policy.name == name and getattr(policy, function):
                return (policy,)
        raise Refusal(404, f'there is no policy "{name}" that defines {function}')

    def facts(self) -> dict[str, object]:
        return {"names": ",".join(policy.name for policy in self.policies), "hash": self.digest}


def read_files(paths: Iterable[str], hint: str) -> dict[str, bytes]:
    """The files' contents; SetupError names the one that can't be read."""
    try:
        return {path: Path(path).read_bytes() for path in paths}
    except OSError as error:
        raise SetupError(f"can't read {error.filename}: {error.strerror}", hint) from None


def read_sources(paths: Iterable[str]) -> dict[str, bytes]:
    """The content of every policy file behind `paths`, files or folders, by file, and of the
    NAME.json beside it that sets its constants; SetupError where there is no policy. A folder's
    names that start with a dot or an underscore are left out."""
    files: list[str] = []
    for path in paths:
        found = [path]
        if os.path.isdir(path):
            found = [str(p) for p in Path(path).glob("*.py") if p.name[0] not in "._"]
        if not found:
            raise SetupError(f"no policy (*.py) in folder {path}", "name a file, or leave it out")
        files += found
    files += [beside for beside in map(parameters_of, files) if os.path.exists(beside)]
    return read_files(files, "--policy takes a Python file, or a folder with some")


def parameters_of(path: str) -> str:
    """The file with the parameters of the policy in `path`: NAME.json beside NAME.py."""
    return str(Path(path).with_suffix(".json"))


def load_policies(sources: Mapping[str, bytes], seconds: float = BUDGET) -> PolicySet:
    """Run each source and take its functions; SetupError names the file that is no policy, or sets
    what its policy doesn't have. All of them together have so many seconds."""
    files = [path for path in sources if not path.endswith(".json")]
    files.sort(key=lambda path: (Path(path).stem, path))
    with budget(seconds):
        policies = [_load_policy(path, sources) for path in files]
    for one, other in itertools.pairwise(policies):
        if one.name == other.name:
            raise SetupError(
                f'two policies are named "{one.name}": {one.path} and {other.path}',
                "rename one of the files",
            )
    return PolicySet(tuple(policies), digest_of(sources))


def _load_policy(path: str, sources: Mapping[str, bytes]) -> Policy:
    name = Path(path).stem
    if not re.fullmatch("[A-Za-z0-9._-]{1,200}", name):
        raise SetupError(
            f"policy {path} can't be named in a path like /mutate/NAME",
            "use letters, digits, '-', '_' and '.'",
        )
    module = types.ModuleType(f"policy {name}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where a dataclass looks up its annotations
    given = sources.get(parameters_of(path))
    constants = None if given is None else Constants(parameters_of(path), vars(module), given)
    try:
        code = compile(sources[path], path, "exec", dont_inherit=True)
        budget.call(exec, code, vars(module), constants)
    except SetupError:
        raise
    except BaseException as error:  # an import may raise SystemExit, too
        raise SetupError(
            f"policy {path} does not load: {describe(error, path)}",
            "run it with python to see the whole error",
        ) from error
    if constants is not None and constants.unused:
        raise SetupError(
            f"{constants.path} sets {min(constants.unused)}, which {path} does not",
            "only upper-case names that the source sets can be set",
        )
    return Policy(name, path, *_functions(module, path))


def _functions(module: types.ModuleType, path: str) -> list[Any]:
    found = [getattr(module, verb, None) for verb in ("mutate", "validate")]
    functions = [function if callable(function) else None for function in found]
    if not any(functions):
        raise SetupError(
            f"policy {path} defines neither mutate nor validate",
            "a policy is a file with `def mutate(obj, request):`, or validate, or both",
        )
    for function in functions:
        if getattr(getattr(function, "__code__", None), "co_flags", 0) & _LATER:
            raise SetupError(
                f"policy {path}: a function that is async, or yields, would never run",
                "a policy is a plain function",
            )
    return functions


_LATER = 0x20 | 0x80 | 0x200  # flags of generators, coroutines, async generators; see inspect


class Constants(dict[str, Any]):
    """Where a policy's source sets its names, if there is a NAME.json: what that says of the
    upper-case ones takes the place of what the source says. SetupError if they differ in type."""

    def __init__(self, path: str, names: dict[str, Any], parameters: bytes) -> None:
        self.path, self.names = path, names
        try:
            self.given = json.loads(parameters)
        except (ValueError, RecursionError) as error:
            raise SetupError(f"{path} is not JSON: {error}", "an object, by constant") from None
        if type(self.given) is not dict:
            raise SetupError(f"{path} is not a JSON object", 'as in {"LIMIT": 5}')
        self.unused = {*self.given}

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.given and name.isupper():
            value = self.parameter(name, type(value))
        self.names[name] = value

    def __delitem__(self, name: str) -> None:
        del self.names[name]

    def parameter(self, name: str, kind: type) -> Any:
        """The value for a constant; a list may stand for a tuple or a set, 1 for 1.0."""
        value = self.given[name]
        self.unused.discard(name)
        if (type(value), kind) in _CONVERTED:
            with contextlib.suppress(TypeError):  # a set of lists
                return kind(value)
        if type(value) is not kind:
            wanted = _TYPE_NAMES.get(kind, f"left out: JSON has no {kind.__name__}")
            raise SetupError(f"{name} in {self.path} must be {wanted}", "as in the policy's source")
        return value


_CONVERTED = {(list, tuple), (list, set), (list, frozenset), (int, float)}


def describe(error: BaseException, path: str) -> str:
    """What went wrong in the file at `path`, and on which of its lines."""
    line, step = 0, error.__traceback__
    while step:
        line = step.tb_lineno if step.tb_frame.f_code.co_filename == path else line
        step = step.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno or line
    if budget.over and (budget.lines or isinstance(error, TimeUp)):
        line, text = budget.lines.get(path, line), f"stopped: it had {budget.seconds:.3g} s"
    else:
        text = f"{type(error).__name__}: {_text_of(error)}"
    return f"line {line}: {text}" if line else text


def _text_of(error: BaseException) -> str:
    try:
        return str(budget.call(str, error))[:500]
    except BaseException:  # the policy's own __str__ failed
        return "?"


def digest_of(contents: Mapping[str, bytes]) -> str:
    """A short hash over file names and contents: equal exactly where nothing changed."""
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(f"{path}\0{len(contents[path])}\0".encode("utf-8", "surrogateescape"))
        digest.update(contents[path])
    return digest.hexdigest()[:12]


# ---------------------------------------------------------------------------- 5 JSON Patch

Patch = list[dict[str, Any]]
Trail = tuple[Any, Any, int]  # to a place in a document: its parent's trail, its key, how deep
ROOT: Trail = (None, "", 0)
LEVELS = 10  # of a document, in which values are compared as a whole before they are walked
MATCHED = 10_000  # items of a list: more aren't looked for elsewhere, nor patched one by one
CHUNK = 1000  # items of a list that are first compared together


def diff(before: Any, after: Any) -> Patch:
    """The JSON Patch (RFC 6902) that turns `before` into `after`: add, remove and replace only,
    below the root, each parent there when its turn comes. This is the part on which the API
    server's patch library and the RFC agree. Types count: true, 1 and 1.0 differ.

    Items of lists that are equal, or objects of the same `name`, are the same item, wherever they
    stand. The time is linear in the size, but for n log n in the items of a list.

    Neither argument is changed, and the patch shares nothing with them. ValueError where the root
    itself would be replaced, or `after` holds what JSON can't: the message names the path.
    """
    patch: Patch = []
    if type(before) is type(after) and type(after) in (dict, list):
        _diff(before, after, ROOT, patch)
    elif freeze(before) != freeze(after):
        raise ValueError("the whole document can't be replaced by a patch")
    return patch


def _diff(before: Any, after: Any, trail: Trail, patch: Patch) -> None:
    """Add to `patch` what makes `after` of `before`, which stand where `trail` leads."""
    if type(before) is list and type(after) is list:
        return _diff_lists(before, after, trail, patch)
    if type(before) is not dict or type(after) is not dict:
        return _put("replace", trail, after, patch)
    for key in before:
        if key not in after:
            patch.append({"op": "remove", "path": _pointer((trail, key, 0))})
    for key, value in after.items():
        place = (trail, _string(key, trail), trail[2] + 1)
        if key not in before:
            _put("add", place, value, patch)
        elif not _same(before[key], value, place[2]):
            _diff(before[key], value, place, patch)
    return None


def _same(one: Any, other: Any, depth: int) -> bool:
    """Whether two values are known to be equal; far down, that is left to the walk: to compare a
    large one as a whole again at each level would cost its size times its depth."""
    if type(one) is not type(other):
        return False
    if type(one) is not dict and type(one) is not list:
        return bool(one == other)
    # == is the quickest to see a difference, but says true of [1] and [True]
    return depth <= LEVELS and one == other and _label(one, depth) == _label(other, depth)


def _label(value: Any, depth: int) -> object:
    """What is equal for values known to be equal."""
    if depth <= LEVELS or (type(value) is not dict and type(value) is not list):
        with contextlib.suppress(ValueError):  # no JSON: the walk finds out where
            return freeze(value)
    return object()


def _diff_lists(before: list[Any], after: list[Any], trail: Trail, patch: Patch) -> None:
    """What both lists start and end with stays. Of what is between, the same items stay, as far as
    they are in order. Between those, items are changed in pairs, and the rest is added or removed
    (from the end, so that the indices before it hold). Too many changes are one replacement."""
    depth, first, shorter = trail[2] + 1, len(patch), min(len(before), len(after))
    start = next(_unequal(before, after, range(shorter), 0, depth), shorter)
    rest = range(shorter - start)
    end = next(_unequal(before[::-1], after[::-1], rest, 0, depth), len(rest))
    old, new = range(start, len(before) - end), range(start, len(after) - end)
    pairs: list[tuple[range, int]] = []  # places in `before`, and how far off those in `after` are
    removed: list[range] = []
    added: list[range] = []
    i = j = start
    for next_i, next_j in [*_matched(before, after, old, new, depth), (old.stop, new.stop)]:
        count = min(next_i - i, next_j - j)
        pairs += [(range(i, i + count), j - i), (range(next_i, next_i + 1), next_j - next_i)]
        removed.append(range(i + count, next_i))
        added.append(range(j + count, next_j))
        i, j = next_i + 1, next_j + 1
    if sum(map(len, [*removed, *added])) > MATCHED and trail != ROOT:
        return _put("replace", trail, after, patch)
    for i in reversed([*itertools.chain(*removed)]):
        patch.append({"op": "remove", "path": _pointer((trail, i, depth))})
    for j in itertools.chain(*added):
        _put("add", (trail, j, depth), after[j], patch)
    for places, shift in pairs[:-1]:
        for i in _unequal(before, after, places, shift, depth):
            place = (trail, i + shift, depth)
            if _name(before[i]) == _name(after[i + shift]):
                _diff(before[i], after[i + shift], place, patch)
            else:  # it is another thing that came in its place
                _put("replace", place, after[i + shift], patch)
            if len(patch) - first > MATCHED and trail != ROOT:
                del patch[first:]
                return _put("replace", trail, after, patch)
    return None


def _unequal(
    before: list[Any], after: list[Any], places: range, shift: int, depth: int
) -> Iterator[int]:
    """The places whose items, that far apart, aren't known to be equal; many at a time first."""
    for i in range(places.start, places.stop, CHUNK):
        end = min(i + CHUNK, places.stop)
        if end - i < 2 or not _same(before[i:end], after[i + shift : end + shift], depth):
            for n in range(i, end):
                if not _same(before[n], after[n + shift], depth):
                    yield n


def _matched(
    before: list[Any], after: list[Any], old: range, new: range, depth: int
) -> list[tuple[int, int]]:
    """Pairs of places at which the same items stand, in order; none if there are too many items."""
    if max(len(old), len(new)) > MATCHED:
        return []
    one, other = (
        {i: _label(before[i], depth) for i in old},
        {j: _label(after[j], depth) for j in new},
    )
    equal = {*one.values()} & {*other.values()}
    return _in_order(_keys(before, one, equal), _keys(after, other, equal))


def _keys(items: list[Any], labels: dict[int, object], equal: set[object]) -> dict[object, int]:
    """The places by what stands there: the item itself if the other list has it, else its name;
    and the how manieth such it is."""
    keys: dict[object, int] = {}
    seen: collections.Counter[object] = collections.Counter()
    for place, key in labels.items():
        if key not in equal:
            key = _name(items[place]) or key
        seen[key] += 1
        keys[key, seen[key]] = place
    return keys


def _name(item: Any) -> str:
    name = item.get("name") if type(item) is dict else None
    return name if type(name) is str else ""


def _in_order(old: dict[object, int], new: dict[object, int]) -> list[tuple[int, int]]:
    """The longest row of places in both with the same key, ascending in both (patience sorting)."""
    ends: list[int] = []  # where in `new` the row of each length ends that ends first ...
    rows: list[Any] = []  # ... and that row, linked from its end
    for key, i in old.items():
        if (j := new.get(key)) is not None:
            length = bisect.bisect_left(ends, j)
            ends[length : length + 1] = [j]
            rows[length : length + 1] = [(i, j, rows[length - 1] if length else None)]
    found, row = [], rows[-1] if rows else None
    while row:
        found.append(row[:2])
        row = row[2]
    return found[::-1]


def _put(op: str, trail: Trail, value: Any, patch: Patch) -> None:
    patch.append({"op": op, "path": _pointer(trail), "value": _plain(value, trail)})


def _plain(value: Any, trail: Trail) -> Any:
    """A copy of a JSON value; ValueError for anything else."""
    kind = type(value)
    if kind is dict:
        return {_string(key, trail): _plain(item, (trail, key, 0)) for key, item in value.items()}
    if kind is list:
        return [_plain(item, (trail, index, 0)) for index, item in enumerate(value)]
    if value is None or kind is str or kind is bool:
        return value
    if kind is int and not -(2**63) <= value < 2**64:
        raise ValueError(f"{_pointer(trail)} is an integer of more than 64 bits: not JSON")
    if kind is int or (kind is float and math.isfinite(value)):
        return value
    what = value if kind is float else f"a {kind.__name__}"
    raise ValueError(f"{_pointer(trail)} is {what}: not JSON")


def _string(key: Any, trail: Trail) -> str:
    if type(key) is not str:
        raise ValueError(f"{_pointer(trail) or '/'} has the key {key!r}: JSON's keys are strings")
    return key


def _pointer(trail: Trail) -> str:
    """A JSON Pointer (RFC 6901)."""
    keys = []
    while trail[0]:
        key = trail[1]
        keys.append(key.replace("~", "~0").replace("/", "~1") if type(key) is str else str(key))
        trail = trail[0]
    return "".join([f"/{key}" for key in reversed(keys)])


# ---------------------------------------------------------------------------- 6 evaluation

Verb = Literal["mutate", "validate", "warn"]


class PolicyFault(Refusal):
    """A policy failed: the API server gets a 500 and does as its failurePolicy says. The cause is
    "exception", "return", "patch" or "time"."""

    def __init__(self, policy: Policy, cause: str, reason: str) -> None:
        super().__init__(500, cut(f'policy "{policy.name}" failed: {reason}', MAX_MESSAGE))
        self.policy, self.cause = policy, cause


def evaluate(request: Request, policies: Iterable[Policy], verb: Verb = "mutate") -> Response:
    """Run the policies on the request, in their order, until one denies it; for "warn" all of
    them, and none does.

    Pure but for what a policy does itself: no socket, no file, no clock but the deadline's and the
    budget's. May be called again on the same request. PolicyFault if a policy fails or takes too
    long; Refusal (504) if the deadline is over.
    """
    request.response = response = Response()
    try:
        with budget(min(BUDGET, request.deadline - time.monotonic())):
            if verb == "mutate":
                _mutate(request, response, policies)
            else:
                _validate(request, response, policies, verb)
    except Denied:
        response.patch, response.changed_by = [], {}
    return response


class Object(dict[str, Any]):
    """What mutate edits: a dict that freezes each field before it hands it out for the first time.
    What nobody looked at can't have been changed, and most policies look at little."""

    __slots__ = ("frozen", "parsed")

    def __init__(self, parsed: dict[str, Any], frozen: dict[str, Frozen]) -> None:
        super().__init__(parsed)
        self.update({key: thaw_field(field) for key, field in frozen.items()})
        self.parsed, self.frozen = parsed, frozen

    def look(self, keys: Iterable[str]) -> None:
        for key in keys:
            if key in self.parsed:
                self.frozen[key] = freeze_field(self.parsed.pop(key))

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # a copy is a dict like any other


def _looks(everywhere: bool, method: Any) -> Any:
    """The dict's method, after a look at the field that it hands out, or at all of them."""

    def looks(self: Object, *arguments: Any) -> Any:
        self.look([*self.parsed] if everywhere else arguments[:1])
        return method(self, *arguments)

    return looks


for _name_of_method in ("__getitem__", "get", "pop", "setdefault"):
    setattr(Object, _name_of_method, _looks(False, getattr(dict, _name_of_method)))
for _name_of_method in ("__iter__", "__or__", "copy", "items", "popitem", "values"):
    setattr(Object, _name_of_method, _looks(True, getattr(dict, _name_of_method)))


def _mutate(request: Request, response: Response, policies: Iterable[Policy]) -> None:
    parsed: dict[str, Any] = request.own_object() or {}
    frozen: dict[str, Frozen] = {}
    for policy in policies:
        if policy.mutate is None or not request.has_object:  # on DELETE there is nothing to patch
            continue
        obj = Object(parsed, frozen)  # what is frozen is copied: it may be another's constant
        _run(policy, policy.mutate, obj, request, response)
        if steps := _steps(policy, obj, dict(dict.items(obj))):
            response.patch += steps
            response.changed_by[policy.name] = len(steps)


def _steps(policy: Policy, obj: Object, after: dict[str, Any]) -> Patch:
    """The patch for what differs of the fields that the policy looked at or set; `obj.frozen` is
    what it made of them, then."""
    obj.look([key for key, value in obj.parsed.items() if after.get(key, obj) is not value])
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    made: dict[str, Frozen | None] = {}
    for key in {**obj.frozen, **after}:
        if key in obj.parsed:
            continue
        one, other = obj.frozen.get(key), _frozen_or_none(after, key)
        if one == other and one is not None:
            continue
        made[key] = other
        if type(one) is dict and type(other) is dict:
            old[key] = {k: v for k, v in one.items() if other.get(k) != v}
            new[key] = {k: v for k, v in after[key].items() if one.get(k) != other[k]}
        else:
            old |= {} if one is None else {key: one}
            new |= {key: after[key]} if key in after else {}
    try:
        patch = diff({key: thaw_field(field) for key, field in old.items()}, new)
    except (ValueError, RecursionError) as error:
        raise PolicyFault(policy, "patch", f"what it made can't be sent: {error}") from None
    for key, field in made.items():
        obj.frozen.pop(key, None) if field is None else obj.frozen.update({key: field})
    return patch


def _frozen_or_none(fields: dict[str, Any], key: str) -> Frozen | None:
    try:
        return freeze_field(fields[key]) if key in fields else None
    except Refusal:
        return None  # what can't be frozen is no JSON: diff() says where


def _validate(request: Request, response: Response, policies: Iterable[Policy], verb: Verb) -> None:
    asked = [policy for policy in policies if policy.validate]
    obj = request.own_object()
    frozen = freeze_field(obj) if len(asked) > 1 else b""
    for policy in asked:
        obj = thaw_field(frozen) if frozen else obj  # a copy for each
        try:
            _run(policy, policy.validate, obj, request, response)  # type: ignore[arg-type]
        except Denied:
            if verb != "warn":
                raise
            response.allowed, response.would_deny[policy.name] = True, response.message
            request.warn(response.message)
    if response.would_deny:
        denials = [f"{name}: {message}" for name, message in response.would_deny.items()]
        response.audit["would-deny"] = "; ".join(denials)


def _run(
    policy: Policy,
    function: PolicyFunction,
    obj: Any,
    request: Request,
    response: Response,
) -> None:
    started, returned = time.monotonic(), None
    if started > request.deadline:
        raise Refusal(504, f'the deadline passed before policy "{policy.name}" ran')
    try:
        returned = budget.call(function, obj, request)
    except Denied:
        pass
    except Refusal:  # of the object
        raise
    except BaseException as error:
        cause = "time" if budget.lines or isinstance(error, TimeUp) else "exception"
        raise PolicyFault(policy, cause, describe(error, policy.path)) from error
    finally:
        response.spent[policy.name] = time.monotonic() - started
    if budget.lines:  # it swallowed what was to stop it
        raise PolicyFault(policy, "time", describe(TimeUp(), policy.path))
    if not response.allowed:  # a bare `except:` in the policy can't undo its denial
        raise Denied
    if returned is not None:
        kind = "dict" if isinstance(returned, dict) else type(returned).__name__
        raise PolicyFault(policy, "return", f"it returned a {kind}, not None: deny() refuses")


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


_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[!-~]*) HTTP/(1\.[01])").fullmatch
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)").fullmatch
_MAKES_ROOM = ("handshake", "fresh", "idle")  # phases in which nobody waits for an answer
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


def read_head(data: bytes) -> Head:
    """A request's head, blank line and all, read strictly; Refusal (400, 431) for anything two
    readers could take in two ways."""
    first, *lines = data.decode("latin-1").split("\r\n")
    if max(map(len, [first, *lines])) > MAX_LINE - 2:
        raise Refusal(431, f"a line of the head is longer than {MAX_LINE} bytes")
    match = _REQUEST_LINE(first)
    if not match:
        raise Refusal(400, "the request line is not like POST /mutate HTTP/1.1")
    if len(lines) > MAX_HEADERS + 2:
        raise Refusal(431, f"there are more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        if not (header := _HEADER(line)):
            raise Refusal(400, "a header is malformed, folded, or has a space before its colon")
        name, value = header[1].lower(), header[2].strip()
        if name in _SINGLE and name in headers:
            raise Refusal(400, f"the header {name} stands there twice")
        headers[name] = value
    if lines[-2:] != ["", ""]:
        raise Refusal(400, "the head does not end in a blank line")
    if match[3] == "1.1" and "host" not in headers:
        raise Refusal(400, "the header host is missing")
    return Head(match[1], match[2], match[3], headers)


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
    """A client: its socket, the bytes that came and those to go, and the phase that it is in.

    live() is its whole life, top to bottom. The socket never blocks: live() yields the events that
    it waits for, and go_on() lets it go on.
    """

    __slots__ = ("closing", "ends", "events", "head", "left", "length", "life", "loop", "peer",
                 "phase", "received", "refused", "sending", "server", "since",
                 "socket")  # fmt: skip

    def __init__(self, server: Server, client: socket.socket, peer: str, refused: bool) -> None:
        self.server, self.loop, self.socket, self.peer = server, server.loop, client, peer
        self.refused = refused  # over the bound: it will be told so
        self.received, self.sending = bytearray(), memoryview(b"")
        self.head: Head | None = None  # of the request that is coming, and its body's length
        self.length = self.events = 0
        self.left = MAX_ANSWERS
        self.closing = False
        self.enter("handshake" if isinstance(client, ssl.SSLSocket) else "fresh")
        self.ends = self.since + LIFETIME * random.uniform(0.75, 1.25)
        self.life = self.live()

    def live(self) -> Iterator[int]:
        if self.phase == "handshake":
            yield selectors.EVENT_READ
            yield from self.io(self.socket.do_handshake, dear=True)  # type: ignore[attr-defined]
            self.enter("fresh")
        while not self.closing:
            try:
                for reads in itertools.count(1):
                    if self.whole():
                        break
                    data = yield from self.io(self.socket.recv, RECORD)
                    if not data:
                        return
                    self.received += data
                    self.loop.held += len(data)
                    if reads % READS == 0:  # not by the selector: TLS may hold what it can't see
                        self.queue()
                        yield 0
                self.enter("waiting")
                self.queue()
                yield self.events
                self.server.finish_request(self, self.peer)  # type: ignore[arg-type]
            except Refusal as refusal:  # the rest may not come: send() closes
                self.send(self.server.refuse(refusal, self.peer))
            yield self.events  # until the turn in which send() was called is over
            self.enter("write")
            while self.sending:
                sent = yield from self.io(self.socket.send, self.sending)
                self.sending = self.sending[sent:]
            self.enter("idle")
        self.drop(len(self.received))
        self.enter("linger")
        socket.socket.shutdown(self.socket, socket.SHUT_WR)  # below TLS: no more will come
        while (yield from self.io(socket.socket.recv, self.socket, 4 * RECORD)):
            pass

    def io(self, call: Callable[..., Any], *arguments: Any, dear: bool = False) -> Any:
        """What the call returns, when the socket lets it. A dear one waits for its turn, too."""
        while True:
            if dear:
                self.queue()
                yield 0
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                yield selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                yield selectors.EVENT_WRITE
            except BlockingIOError:  # without TLS
                write = self.phase == "write"
                yield selectors.EVENT_WRITE if write else selectors.EVENT_READ

    def queue(self) -> None:
        jobs = self.loop.jobs
        (jobs.appendleft if self.server.urgent else jobs.append)(self.go_on)

    def go_on(self) -> None:
        """Live on, to the next thing to wait for."""
        try:
            self.want(next(self.life))
        except StopIteration:
            self.close()
        except OSError as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self.server.count("connection", peer=self.peer, error=f"{reason}: {error}")
            self.close()

    def ready(self) -> None:
        """The socket can be read or written. What comes while a request waits stays there."""
        if self.phase == "waiting":
            self.want(0)
        else:
            self.go_on()

    def want(self, events: int) -> None:
        """Be called when the socket can be read, or written, or (0) not at all."""
        if events != self.events:
            if self.events:
                self.loop.selector.unregister(self.socket)
            if events:
                self.loop.selector.register(self.socket, events, self.ready)
            self.events = events

    def enter(self, phase: str) -> None:
        self.phase, self.since = phase, time.monotonic()

    def whole(self) -> bool:
        """Whether a whole request is here. Refusal if it may not come, or not to an end."""
        if self.head is None and not self.take_head():
            return False
        if self.loop.held + max(self.length - len(self.received), 0) > self.loop.bound:
            raise Refusal(503, "whook is at its limit", **{"Retry-After": "1"})
        return len(self.received) >= self.length

    def take_head(self) -> bool:
        """Whether a head is here; it is taken off, and what it announces is checked."""
        end = _END_OF_HEAD(self.received)
        if not end:
            if len(self.received) > MAX_HEAD:
                raise Refusal(431, f"the head is longer than {MAX_HEAD} bytes")
            if self.received and self.phase != "head":
                self.enter("head")
            return False
        self.head = read_head(bytes(self.received[: end.end()]))
        self.drop(end.end())
        self.length = body_length(self.head, self.server.max_body)
        if self.refused:
            raise Refusal(503, "whook is at its limit", **{"Retry-After": "1"})
        if len(self.received) < self.length:
            self.enter("body")
            if self.head.headers.get("expect", "").lower() == "100-continue":
                self.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def drop(self, count: int) -> None:
        self.loop.held -= count
        del self.received[:count]

    def take(self) -> tuple[Head, bytearray]:
        """The request that is whole, without a copy where nothing came after it."""
        body = self.received
        self.received = body[self.length :]
        del body[self.length :]
        self.loop.held -= self.length
        return self.head, body  # type: ignore[return-value]

    def send(self, answer: Answer) -> None:
        """Answer the request: at once, or whenever the answer has come. A request that did not
        come whole, a time to end or a full life close the connection."""
        if self.phase == "closed":
            return
        self.left -= 1
        head, late = self.head, time.monotonic() > self.ends or not self.left
        self.closing = self.phase != "waiting" or head is None or not head.keep_alive()
        self.closing |= late or self.server.draining
        body = b"" if head and head.method == "HEAD" else answer.body
        self.sending = memoryview(_head_of(answer, self.closing) + body)
        self.head, self.length = None, 0
        self.phase = "waiting"
        self.loop.answers.append(self)

    def close(self) -> None:
        """Let go of all it holds."""
        if self.phase != "closed":
            self.drop(len(self.received))
            self.enter("closed")
            self.want(0)
            self.life = iter(())
            self.server.connections.discard(self)
            self.server.close_request(self.socket)


_END_OF_HEAD = re.compile(rb"\n\r?\n").search


def _head_of(answer: Answer, closing: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
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


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one whole request, of a Connection, from memory: what the server's `respond` says,
    or nothing yet if that is None; then somebody calls the connection's send() later."""

    server: Server

    def setup(self) -> None:
        self.head, self.body = self.request.take()

    def handle(self) -> None:
        connection, server = self.request, self.server
        try:
            answer = server.respond(self.head, self.body, connection)
        except Refusal as refusal:
            answer = server.refuse(refusal, connection.peer)
        except Exception as error:
            log("ERROR", "bug", error=type(error).__name__, trace=where(error))
            answer = server.refuse(Refusal(500, "whook failed: see its log"), connection.peer)
        if answer:
            connection.send(answer)

    def finish(self) -> None:
        """There is nothing to flush."""


Respond = Callable[[Head, "bytes | bytearray", Connection], "Answer | None"]


class Server(http.server.HTTPServer):
    """A bounded HTTP/1.1 server within a loop, over TLS where it has a context. `respond` answers
    a whole request, or raises Refusal; `draining` closes each connection as it answers."""

    context: ssl.SSLContext | None = None
    max_body, max_connections = MAX_BODY, MAX_CONNECTIONS
    draining = False
    urgent = False  # its requests are answered before those of other servers
    last_logged = 0.0

    def __init__(self, listener: socket.socket, respond: Respond, loop: Loop) -> None:
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        listener.setblocking(False)
        self.respond, self.loop = respond, loop
        self.connections: set[Connection] = set()
        self.counted: Callable[[str], None] = lambda what: None  # told of each refusal
        self.accepting = False
        loop.servers.append(self)

    def accept(self) -> None:
        """Take who wants to connect. When all places are taken, the connection that has been idle
        longest makes room."""
        for _ in range(ACCEPTS):
            try:
                client, address = self.get_request()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self.make_room()
                    self.listen(False)  # till the next tick: it would stay readable
                    return
                continue  # it is gone already
            full = len(self.connections) >= self.max_connections and not self.make_room()
            if full and len(self.connections) >= self.max_connections + MAX_REFUSING:
                self.count("overfull")
                self.close_request(client)
            else:
                connection = Connection(self, client, str(address[0]), full)
                self.connections.add(connection)
                connection.go_on()

    def get_request(self) -> tuple[Any, Any]:
        client, address = self.socket.accept()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if self.context:
            wrap = functools.partial(self.context.wrap_socket, server_side=True)
            try:
                return wrap(client, do_handshake_on_connect=False), address
            except OSError:
                client.close()
                raise
        return client, address

    def make_room(self) -> bool:
        idle = [each for each in self.connections if each.phase in _MAKES_ROOM]
        if idle:
            min(idle, key=lambda each: each.since).close()
        return bool(idle)

    def listen(self, accepting: bool) -> None:
        """Accept, or no more."""
        if accepting != self.accepting:
            self.accepting = accepting
            if accepting:
                self.loop.selector.register(self.socket, selectors.EVENT_READ, self.accept)
            else:
                self.loop.selector.unregister(self.socket)

    def reap(self, late: float) -> None:
        """Cut each connection that takes longer than it may, but for the seconds that the loop was
        at work, or stopped, and so is itself late. Half full, there is less patience."""
        now, loop = time.monotonic(), self.loop
        full = 2 * loop.held > loop.bound or 2 * len(self.connections) > self.max_connections
        for connection in list(self.connections):
            if connection.phase != "waiting":
                connection.since += late
            if now - connection.since > PATIENCE[connection.phase][full]:
                connection.close()

    def refuse(self, refusal: Refusal, peer: str) -> Answer:
        self.count(str(refusal.status), peer=peer, error=refusal.message)
        return status_answer(refusal)

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

    def facts(self) -> dict[str, object]:
        end = _utc_second(int(self.not_after)) + "Z"
        return {"names": ",".join(self.names), "not_after": end}


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
    if b"PRIVATE KEY-----" in files[cert] and b"BEGIN CERTIFICATE" in files[key]:
        raise SetupError(
            f"can't serve with {at_fault}: they are swapped", "--tls-cert is the certificate"
        )
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
    changes. `value` is the last good one; SetupError if the first is none. What fails is tried
    again when it changes, or each time if `again`: a certificate may be valid a second later."""

    def __init__(
        self,
        what: str,
        read: Callable[[], Mapping[str, bytes]],
        make: Callable[[Mapping[str, bytes]], Made],
        facts: Callable[[Made], dict[str, object]] = lambda value: {},
        again: bool = False,
    ) -> None:
        self.what, self.read, self.make, self.facts, self.again = what, read, make, facts, again
        contents = read()
        self.value, self.seen = make(contents), digest_of(contents)
        self.errors, self.complaint, self.made_at = 0, "", time.time()
        log("INFO", what, **facts(self.value))

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
                log("INFO", "reloaded", what=self.what, **self.facts(self.value))
        except SetupError as error:
            self.seen = "" if self.again else seen
            if self.complaint != error.message:
                self.complaint, self.errors = error.message, self.errors + 1
                log("ERROR", "reload", what=self.what, error=error.message, hint=error.hint)


# ---------------------------------------------------------------------------- 9 metrics

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 10, 30)
KINDS = (  # that have a label of their own, whatever else comes
    "Pod Deployment ReplicaSet StatefulSet DaemonSet Job CronJob Service Ingress Secret ConfigMap "
    "ServiceAccount Namespace Node PersistentVolume PersistentVolumeClaim Role RoleBinding "
    "ClusterRole ClusterRoleBinding NetworkPolicy Event Lease HorizontalPodAutoscaler Scale "
    "PodDisruptionBudget Endpoints EndpointSlice Eviction Binding CustomResourceDefinition "
    "PodExecOptions PodAttachOptions PodPortForwardOptions"
)
MAX_KINDS = 100  # that have one at all; the rest is "other"

# name: type, help, labels
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "whook_reviews_total": ("counter", "Reviews.", ("path", "operation", "kind", "outcome")),
    "whook_review_duration_seconds": ("histogram", "From whole to answered.", ("path",)),
    "whook_policy_duration_seconds": ("histogram", "Time in each policy.", ("policy",)),
    "whook_policy_errors_total": ("counter", "Reviews a policy failed on.", ("policy", "cause")),
    "whook_patch_operations_total": ("counter", "JSON Patch operations.", ("policy",)),
    "whook_refusals_total": ("counter", "Requests without a verdict.", ("reason",)),
    "whook_connections": ("gauge", "Open connections on the admission port.", ()),
    "whook_held_bytes": ("gauge", "Bytes that came and wait.", ()),
    "whook_ready": ("gauge", "Whether reviews should come here.", ()),
    "whook_log_lines_dropped_total": ("counter", "Lines that nobody took.", ()),
    "whook_reload_errors_total": ("counter", "Changed files that can't be used.", ("what",)),
    "whook_reload_failing": ("gauge", "Whether the files of now can't be used.", ("what",)),
    "whook_reload_timestamp_seconds": ("gauge", "When the files in use were loaded.", ("what",)),
    "whook_policies_info": ("gauge", "The hash of the policies in use.", ("hash",)),
    "whook_certificate_not_after_timestamp_seconds": ("gauge", "The leaf's end.", ()),
    "whook_build_info": ("gauge", "The versions in use.", ("version", "python")),
}


class Metrics:
    """Numbers by metric and label values: one for a counter or gauge; for a histogram a count for
    each bucket, then the sum."""

    def __init__(self) -> None:
        self.series: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in METRICS}
        self.kinds = {*KINDS.split()}

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
        kind, response = request.kind.kind, request.response
        if kind not in self.kinds:
            known = len(self.kinds) < MAX_KINDS and len(kind) <= 63 and kind.isalnum()
            kind = kind if known else "other"
            self.kinds.add(kind)
        self.add("whook_reviews_total", path, request.operation, kind, outcome)
        self.observe("whook_review_duration_seconds", path, seconds=seconds)
        for policy, spent in response.spent.items():
            self.observe("whook_policy_duration_seconds", policy, seconds=spent)
        for policy, count in response.changed_by.items():
            self.add("whook_patch_operations_total", policy, amount=count)

    def render(self) -> bytes:
        """All of them in Prometheus' text format 0.0.4. Label values hold nothing that would have
        to be escaped: they are names that whook knows or has checked."""
        lines = []
        for name, (kind, text, keys) in METRICS.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for labels, (*counts, total) in sorted(self.series[name].items()):
                pairs = [f'{key}="{value}"' for key, value in zip(keys, labels, strict=True)]
                if not counts:
                    lines.append(f"{name}{{{','.join(pairs)}}} {total:.15g}")
                    continue
                for bound, count in zip(
                    (*BUCKETS, "+Inf"), itertools.accumulate(counts), strict=True
                ):
                    below = ",".join([*pairs, f'le="{bound}"'])
                    lines.append(f"{name}_bucket{{{below}}} {count}")
                lines.append(f"{name}_sum{{{','.join(pairs)}}} {total:.15g}")
                lines.append(f"{name}_count{{{','.join(pairs)}}} {sum(counts)}")
        return "\n".join([*lines, ""]).encode()


# ---------------------------------------------------------------------------- 10 the process


class Loop:
    """What waits: one select, for all sockets of all servers. Then each ready socket takes a step,
    and for a SLICE of time those at the head of the queue get what costs more."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.servers: list[Server] = []
        self.jobs: collections.deque[Callable[[], None]] = collections.deque()
        self.answers: list[Connection] = []  # whose answers go out at the end of the turn
        self.held = 0  # bytes that came and wait, of all connections
        self.bound = BODIES_HELD * MAX_BODY
        self.due: list[Callable[[], None]] = []  # what else is to be done each TICK
        self.quiet = False  # nothing came in the last turn, and nothing is to be done

    def run(self, ended: Callable[[], bool]) -> None:
        """Turn until it has ended."""
        watched, next_tick = False, 0.0
        while not ended():
            left = 0.0 if self.jobs or self.answers else max(next_tick - time.monotonic(), 0.0)
            ready = self.selector.select(left)
            for key, _ in ready:
                key.data()
            self.quiet = not ready and not self.jobs
            if self.jobs and not watched:
                watched = True
                _watch_for_stuck_calls()
            until = time.monotonic() + SLICE
            while self.jobs:
                self.jobs.popleft()()
                if time.monotonic() > until:
                    break
            answers, self.answers = self.answers, []
            for connection in answers:  # together: to wake a client for each costs more than all
                connection.go_on()
            log.flush()
            if (now := time.monotonic()) >= next_tick:
                faulthandler.cancel_dump_traceback_later()
                self.tick(now - next_tick if next_tick else 0.0)
                watched, next_tick = False, time.monotonic() + TICK

    def tick(self, late: float) -> None:
        for server in self.servers:
            server.reap(late)
            server.listen(True)
        for task in self.due:
            task()


def _watch_for_stuck_calls() -> None:
    """End the process if no tick comes for long: a call into C hangs, and can't be stopped. Anew
    each tick and only where there is work, as it costs 50 µs, and as who is stopped (SIGSTOP, a
    debugger) while nothing was to be done isn't stuck."""
    with contextlib.suppress(ValueError, OSError, AttributeError):  # no standard error
        faulthandler.dump_traceback_later(STUCK_AFTER, exit=True)


Evaluate = Callable[[Request, Sequence[Policy], Verb], Response]

_TARGET = re.compile(r"/(mutate|validate|warn)(?:/([A-Za-z0-9._-]{1,200}))?(?:\?(.*))?").fullmatch
_TIMEOUT = re.compile(r"(?:^|&)timeout=([^&]*)").search


def route(head: Head) -> tuple[Verb, str, float]:
    """Which policies a request is for ("" means all), and its time-out in seconds; Refusal (400,
    404, 405, 415) if it is for none."""
    target = _TARGET(head.target)
    if not target:
        raise Refusal(404, "there is nothing here but /mutate, /validate, /warn, or /mutate/POLICY")
    if head.method != "POST":
        raise Refusal(405, f"{head.method} is not allowed: POST an AdmissionReview", Allow="POST")
    content_type = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refusal(415, f"the content-type {cut(content_type)!r} is not application/json")
    timeout = _TIMEOUT(target[3] or "")
    verb: Verb = target[1]  # type: ignore[assignment]
    if not timeout:
        return verb, target[2] or "", DEFAULT_TIMEOUT
    if not re.fullmatch("[0-9]{1,4}s", timeout[1]):
        raise Refusal(400, f"the timeout {cut(timeout[1])!r} is not in whole seconds, as in 5s")
    return verb, target[2] or "", min(float(timeout[1][:-1]), MAX_TIMEOUT)


class Process:
    """All of whook: two servers in one loop, what they serve with, and the end.

    `evaluate` may be another function of the same shape. Signals only set `until`; the loop sees it
    within a TICK.
    """

    def __init__(self, evaluate: Evaluate = evaluate) -> None:
        self.evaluate = evaluate
        self.until = math.inf  # on the monotonic clock: when draining is over at the latest
        self.grace, self.interrupted = GRACE_PERIOD, False
        self.metrics, self.loop = Metrics(), Loop()

    def obey_signals(self) -> None:
        set_handler(signal.SIGTERM, lambda *_: self.end(self.grace))
        set_handler(signal.SIGINT, self.interrupt)

    def end(self, grace: float) -> None:
        """Begin to drain; a second SIGTERM changes nothing, as some send it twice."""
        if self.until == math.inf:
            self.until = time.monotonic() + grace

    def interrupt(self, *_: object) -> None:
        """Ctrl-C: finish what is in flight. Twice: end at once."""
        if self.interrupted:
            os._exit(1)
        self.interrupted, self.until = True, time.monotonic()

    def set_up(self, options: argparse.Namespace) -> None:
        """Load, prove and bind all that serving needs, and log what it is; SetupError."""
        self.grace = options.grace_period
        log(
            "INFO", "start", version=__version__, python=sys.version.split()[0], process=os.getpid()
        )
        files = [file for file in (options.tls_cert, options.tls_key, options.client_ca) if file]
        self.policies = Watched(
            "policies",
            lambda: read_sources(options.policy),
            functools.partial(load_policies, seconds=START_BUDGET),
            PolicySet.facts,
        )
        self.policies.make = load_policies
        self.tls = Watched(
            "tls",
            lambda: read_files(files, f"{LOCAL_HINT}, in local-certs/"),
            functools.partial(load_tls, options),
            Serving.facts,
            again=True,
        )
        self.admission = Server(
            listen(options.host, options.port, "--port"), self.review, self.loop
        )
        health = listen(options.host, options.health_port, "--health-port")
        self.health = Server(health, self.answer_health, self.loop)
        self.health.urgent = True
        self.admission.max_body = options.max_body
        self.admission.max_connections = options.max_connections
        self.loop.bound = BODIES_HELD * options.max_body
        for server in (self.admission, self.health):
            server.counted = functools.partial(self.metrics.add, "whook_refusals_total")
        _allow_files(options.max_connections + 2 * MAX_REFUSING + 100)
        self.loop.due.append(self.look_after)
        gc.collect()
        gc.freeze()  # what stands here stays: don't walk it again

    def run(self) -> None:
        """Serve until a signal says otherwise."""
        where = [_address(server.socket) for server in (self.admission, self.health)]
        log("INFO", "ready", admission=where[0], health=where[1])
        log.together = True
        self.loop.run(self.ended)
        log("INFO", "end", dropped=log.dropped)
        log.together = False
        log.flush()

    def look_after(self) -> None:
        """What is due every half second."""
        self.policies.refresh()
        self.tls.refresh()
        self.admission.context = self.tls.value.context

    def ended(self) -> bool:
        """Whether draining is over: nobody is connected, nor was for a while, or time is up; and no
        answer is due or on its way."""
        if self.until == math.inf:
            return False
        now, admission = time.monotonic(), self.admission
        if not admission.draining:
            admission.draining, self.alone_since = True, now
            log("INFO", "drain", connections=len(admission.connections))
        if admission.connections:
            self.alone_since = now
        if now < min(self.until, self.alone_since + SETTLE_TIME):
            return False
        admission.listen(False)
        busy = ("waiting", "write", "linger")
        return self.loop.quiet and not any(each.phase in busy for each in admission.connections)

    # -- reviews

    def review(self, head: Head, body: bytes | bytearray, connection: Connection) -> Answer | None:
        verb, name, timeout = route(head)
        policies = self.policies.value.find(verb, name)
        deadline = connection.since + timeout
        if time.monotonic() > deadline:
            raise Refusal(504, "the deadline passed before the review's turn came")
        request = parse_review(body, deadline)
        path = f"/{verb}/{name}" if name else f"/{verb}"
        return self.conclude(request, policies, verb, path, connection.since)

    def conclude(
        self, request: Request, policies: Sequence[Policy], verb: Verb, path: str, since: float
    ) -> Answer:
        """Evaluate a review that came at `since`, count it and log it."""
        outcome = "error"
        try:
            response = self.evaluate(request, policies, verb)
            answer = Answer(200, render_review(request, response))
            outcome = "allowed" if response.allowed else "denied"
            outcome = "would_deny" if response.would_deny else outcome
        except PolicyFault as fault:
            answer = status_answer(fault)
            trace = where(fault.__cause__) if fault.__cause__ else ""
            log("ERROR", "policy", uid=request.uid, error=fault.message, trace=trace)
            self.metrics.add("whook_policy_errors_total", fault.policy.name, fault.cause)
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
            user=request.user_info.get("username", ""),
            allowed={"allowed": True, "denied": False}.get(outcome, outcome),
            patch=len(request.response.patch),
            duration=f"{duration * 1000:.2f}ms",
        )
        return answer

    # -- health

    def answer_health(self, head: Head, body: bytes | bytearray, connection: Connection) -> Answer:
        if head.method not in ("GET", "HEAD"):
            raise Refusal(405, f"{head.method} is not allowed: GET it", Allow="GET")
        path = head.target.partition("?")[0]
        if path == "/metrics":
            return Answer(200, self.all_metrics(), {}, "text/plain; version=0.0.4")
        if path not in ("/livez", "/readyz"):
            raise Refusal(404, "there is nothing here but /livez, /readyz and /metrics")
        wrong = self.unready() if path == "/readyz" else ""
        text = f"not ok: {wrong}\n" if wrong else "ok\n"
        return Answer(503 if wrong else 200, text.encode(), {}, "text/plain")

    def unready(self) -> str:
        """Why no review should come here; "" if they may."""
        if self.until < math.inf:
            return "draining"
        expired = time.time() > self.tls.value.not_after
        return "the serving certificate has expired" if expired else ""

    def all_metrics(self) -> bytes:
        put = self.metrics.set
        put("whook_connections", value=len(self.admission.connections))
        put("whook_held_bytes", value=self.loop.held)
        put("whook_ready", value=not self.unready())
        put("whook_log_lines_dropped_total", value=log.dropped)
        put("whook_certificate_not_after_timestamp_seconds", value=self.tls.value.not_after)
        self.metrics.series["whook_policies_info"].clear()
        put("whook_policies_info", self.policies.value.digest, value=1)
        put("whook_build_info", __version__, sys.version.split()[0], value=1)
        for watched in (self.policies, self.tls):
            put("whook_reload_timestamp_seconds", watched.what, value=watched.made_at)
            put("whook_reload_errors_total", watched.what, value=watched.errors)
            put("whook_reload_failing", watched.what, value=bool(watched.complaint))
        return self.metrics.render()


# ---------------------------------------------------------------------------- 11 command line

LOCAL_HINT = "`python certs.py local` makes a certificate and its key for this machine"
EXAMPLES = """\
examples:
  python certs.py local                     # certificates for this machine
  python whook.py --tls-cert local-certs/server-cert.pem \\
                  --tls-key local-certs/server-key.pem --policy policies

SIGTERM: not ready, keep serving, end when nobody is connected any more (exit 0).
Ctrl-C: finish what is in flight, then end. Twice: end at once."""


def main(argv: Sequence[str] | None = None, process: Process | None = None) -> int:
    """The command line; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    process = process or Process()
    process.obey_signals()  # first of all: process 1 has no default that would end it
    options = parse_arguments(argv)
    log.format = options.log_format
    _keep_signals()
    try:
        process.set_up(options)
        process.run()
    except SetupError as error:
        print(f"whook: error: {error.message}\nwhook: hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


def _keep_signals() -> None:
    """Take from policies, and from what they import, what sets signals and timers: they are how a
    policy is stopped. They see what they would see in another thread: a ValueError."""

    def refuse(*_: object) -> NoReturn:
        raise ValueError("signals and timers belong to whook")

    for name in ("signal", "setitimer", "alarm", "pthread_sigmask", "siginterrupt"):
        setattr(signal, name, refuse)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="whook",
        description="A Kubernetes admission webhook: AdmissionReviews in, plain Python policies.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM; reloaded")
    add("--tls-key", metavar="FILE", help="its private key, PEM; reloaded")
    add("--policy", metavar="FILE|DIR", action="append", default=[], help="reloaded; repeatable")
    add("--host", metavar="ADDR", default="", help="address to listen on (default: all)")
    add("--port", type=_whole(0, 65535), default=8443, help="for the API server, HTTPS (8443)")
    add("--health-port", type=_whole(0, 65535), default=8080, help="HTTP: /livez ... (8080)")
    add("--client-ca", metavar="FILE", help="demand a client certificate from this CA")
    add("--max-body", metavar="BYTES", type=_whole(1024, 2**30), default=MAX_BODY,
        help="of a review (%(default)s)")  # fmt: skip
    add("--max-connections", metavar="N", type=_whole(1, 100_000), default=MAX_CONNECTIONS,
        help="at a time (%(default)s)")  # fmt: skip
    add("--grace-period", metavar="SECONDS", type=_whole(0, 3600), default=GRACE_PERIOD,
        help="of draining at most (%(default)g)")  # fmt: skip
    add("--log-format", choices=("text", "json"), default="text", help="(text)")
    add("--version", action="version", version=f"whook {__version__}")
    options = parser.parse_args(argv)
    missing = [flag for flag in ("tls_cert", "tls_key") if not getattr(options, flag)]
    if missing:
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


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket, on all addresses, IPv4 and IPv6, where host is empty; SetupError."""
    both = host in ("", "::") and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    listen_on = functools.partial(socket.create_server, family=family, dualstack_ipv6=both)
    try:
        socket.getaddrinfo(host or None, port)
        return listen_on((host, port), backlog=BACKLOG)
    except socket.gaierror:
        raise SetupError(f"--host {host} has no address here", "name an address") from None
    except OSError as error:
        raise SetupError(
            f"can't listen on {host or 'any address'}, port {port}: {error.strerror}",
            f"choose another with {flag} or --host, or end what uses it",
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _allow_files(count: int) -> None:
    """Raise this process's own limit of open files, as far as it may."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))


if __name__ == "__main__":
    exit_status = main()
    os._exit(exit_status)  # a thread that a policy started must not hold it up
