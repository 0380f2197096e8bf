#!/usr/bin/env python3
"""The debugging desk: whook on this machine, and a page that shows what the API server asks and
what the policies answer. For developers; never in the production image.

    python debug.py --policy policies                the webhook, the page, the recordings
    python debug.py try --policy policies pod.yaml   local manifests, no cluster at all
    python debug.py replay FOLDER --policy policies  recordings, cases: 1 if an answer differs
    python debug.py up --address 192.0.2.7           lets a cluster call this desk
    python debug.py doctor                           follows that call, hop by hop
    python debug.py down                             takes out of the cluster all that `up` made

What it holds to: the page listens on loopback alone, answers no other Host or Origin, tells nothing
without the token in the terminal's link, and treats every object as hostile text. Neither the page
nor a recording shows a Secret's data, a token or an env value, unless --unredacted. The cluster
calls with failurePolicy Ignore, so it goes on without the desk; nothing is held past its deadline.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - nothing above or below is newer syntax than 3.8
    sys.exit(f"whook: error: Python 3.11 or later is needed, this is {sys.version.split()[0]}")

with contextlib.suppress(ModuleNotFoundError):  # main() says so; --help needs no package
    import yaml  # the kubernetes client needs it too

HERE = os.path.dirname(os.path.realpath(__file__))
if HERE not in sys.path:  # with PYTHONSAFEPATH
    sys.path.insert(0, HERE)

import certs  # noqa: E402
import review  # noqa: E402
import whook  # noqa: E402
from workbench import cases, documents  # noqa: E402
from workbench.redaction import NoRedaction, Redaction  # noqa: E402

Json = dict[str, Any]

MAX_KEPT = 1000  # reviews, on the page and in the folder (--keep)
MAX_KEPT_BYTES = 256 * 1024 * 1024  # of all these together
MAX_PAGE_BODY = 16 * 1024 * 1024  # an edited object as YAML is larger than the object was
POLL = 20.0  # seconds that the page's request for news waits
MARGIN = 1.0  # seconds before its deadline at which a held review is answered anyway
EXPIRES = "whook.local/expires"  # annotation: when `up` meant its work to end
DOCTOR, ARRIVED = "whook.local/doctor", "whook.local/arrived"  # annotations of its dry runs
MANAGED, INSTANCE = "app.kubernetes.io/managed-by", "app.kubernetes.io/instance"
MANAGER = "whook-debug"  # value of that label

# ---------------------------------------------------------------------------- one run


@dataclasses.dataclass
class Result:
    """What one call came to. `answer` is the decoded body, a patch in it as a list; `spent` and
    `changed_by` as in whook.Response, `duration` in seconds. What judge() finds is added: `kubectl`
    the lines a person would see, `remarks` what kubectl would not say, `again` the operations
    that the policies make on their own result, by policy."""

    status: int
    answer: Json
    duration: float
    spent: dict[str, float] = dataclasses.field(default_factory=dict)
    changed_by: dict[str, int] = dataclasses.field(default_factory=dict)
    kubectl: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    again: dict[str, whook.Patch] = dataclasses.field(default_factory=dict)
    rejected: bool = False  # an API server would refuse what the patch makes

    @property
    def response(self) -> Json:
        return self.answer.get("response") or {}

    @property
    def patch(self) -> whook.Patch:
        return self.response.get("patch") or []

    @property
    def outcome(self) -> str:
        if self.status != 200:
            return "failed"
        if not self.response.get("allowed"):
            return "denied"
        return "rejected" if self.rejected else "patched" if self.patch else "allowed"

    def said(self, field: str) -> Any:
        """A field of the Status, or of the response; None where it is empty."""
        status = self.response.get("status") if self.status == 200 else self.answer
        return (status or {}).get(field) or self.response.get(field) or None

    @property
    def steps(self) -> dict[str, whook.Patch]:
        """The patch by the policy that made each part; what a person made is "by hand"."""
        return split(self.patch, self.changed_by)


def split(patch: whook.Patch, changed_by: Mapping[str, int]) -> dict[str, whook.Patch]:
    parts, rest = {}, patch
    for policy, count in changed_by.items():
        if count:
            parts[policy], rest = rest[:count], rest[count:]
    return parts | ({"by hand": rest} if rest else {})


def result_of(answer: whook.Answer, response: whook.Response | None, duration: float) -> Result:
    """A Result from what goes over the wire, so that it shows what was really sent."""
    document = json.loads(answer.body)
    if patch := (document.get("response") or {}).get("patch"):
        document["response"]["patch"] = json.loads(base64.b64decode(patch))
    result = Result(answer.status, document, duration)
    if response:
        result.spent, result.changed_by = response.spent, response.changed_by
    return result


def _post(path: str) -> whook.Head:
    return whook.Head("POST", path, {"content-type": "application/json"})


def call(path: str, body: bytes, policies: whook.PolicySet) -> whook.Request:
    """Evaluate a review as the server does; the request has the response. whook.HTTPError."""
    verb, name, timeout = whook.route(_post(path))
    request = whook.parse_review(body, time.monotonic() + timeout)
    review.evaluate(request, policies.find(verb, name), verb)
    return request


def run(path: str, body: bytes, policies: whook.PolicySet) -> Result:
    """Answer a review, and judge the answer."""
    started, response = time.monotonic(), None
    try:
        request = call(path, body, policies)
        response = request.response
        answer = whook.Answer(200, response.body)
    except whook.HTTPError as refusal:
        answer = whook.status_answer(refusal)
    result = result_of(answer, response, time.monotonic() - started)
    judge(result, path, body, policies)
    return result


def judge(result: Result, path: str, body: bytes, policies: whook.PolicySet) -> None:
    """Find what a person would see of it, what an API server would do with it, and what a second
    pass changes (reinvocationPolicy: IfNeeded)."""
    verb: whook.Verb = "mutate"
    if match := re.match("/(validate|warn)", path):
        verb = match[1]  # type: ignore[assignment]
    try:
        request = whook.parse_review(body)
    except whook.HTTPError as refusal:
        result.remarks = [f"no review: {refusal.message}"]
        return
    before = request.object
    after = review.apply(before, result.patch) if result.patch else before
    outcome = review.Outcome(request, before, after, [], {}, None, review.refusals(before, after))
    if result.status == 200:
        outcome.responses[verb] = _response_of(result)
    else:
        outcome.fault = whook.HTTPError(result.status, str(result.said("message")))
        if verb != "mutate":
            outcome.responses["mutate"] = whook.Response()
    if result.patch:
        with contextlib.suppress(whook.HTTPError):
            second = call(path, with_object(body, after), policies).response
            result.again = split(second.patch, second.changed_by)
        outcome.steps = [review.Step(name, [], patch) for name, patch in result.again.items()]
    result.rejected = bool(outcome.refusals)
    result.kubectl, result.remarks = review.as_kubectl(outcome), review.remarks(outcome)


def _response_of(result: Result) -> whook.Response:
    response = whook.Response()
    response.allowed = result.response.get("allowed", False)
    response.message, response.reason = (result.said(key) or "" for key in ("message", "reason"))
    response.warnings = dict.fromkeys(result.response.get("warnings") or [])
    return response


def with_object(body: bytes, obj: Any) -> bytes:
    document = json.loads(body)
    document["request"]["object"] = obj
    return json.dumps(document).encode()


def _object_in(document: Any) -> Any:
    request = document.get("request") if type(document) is dict else None
    return request.get("object") if type(request) is dict else None


def difference(one: Result, other: Result, obj: Any) -> list[str]:
    """How the two answers to one object differ in what they mean; [] if they do not.

    Patches are compared by what they make of the object, not by how."""
    lines = [] if one.outcome == other.outcome else [f"was {one.outcome}, is {other.outcome}"]
    for field in ("message", "code", "reason", "warnings", "auditAnnotations"):
        was, now = one.said(field), other.said(field)
        if was != now:
            lines.append(f"{field} was {json.dumps(was)}, is {json.dumps(now)}")
    if obj is not None and one.patch != other.patch:
        for step in whook.diff(*(review.apply(obj, result.patch) for result in (one, other))):
            value = f" {json.dumps(step['value'])}" if "value" in step else ""
            lines.append(f"{step['op']} {step['path']}{value}")
    return lines


# ---------------------------------------------------------------------------- entries


@dataclasses.dataclass
class Entry:
    """One review on the desk. `body` is what came, byte by byte; `result` what was answered, None
    while it is at work; `replayed` what the policies of now would answer, to `edited` if the object
    was edited. Times are seconds since 1970; `held_until` is 0 unless a person may answer."""

    number: int
    path: str
    body: bytes
    origin: str  # "cluster", "file" or "recording"
    time: float
    redacted: bool = False  # holds placeholders: it was recorded
    result: Result | None = None
    replayed: Result | None = None
    edited: bytes | None = None
    request: whook.Request | None = None  # while it is at work
    changes: list[str] = dataclasses.field(default_factory=list)  # from result to replayed
    held_until: float = 0.0
    file: Path | None = None
    version: int = 0

    @functools.cached_property
    def facts(self) -> Json:
        """What the list shows of the request; works on anything that is no review, too."""
        try:
            request = whook.parse_review(self.body)
        except whook.HTTPError as refusal:
            return {"operation": "", "kind": "no review:", "name": refusal.message, "user": ""}
        name = f"{request.namespace}/{request.name}" if request.namespace else request.name
        kind = request.kind.kind + (f"/{request.sub_resource}" if request.sub_resource else "")
        user, dry_run = str(request.user_info.get("username", "")), request.dry_run
        facts = {"operation": request.operation, "kind": kind, "name": name, "user": user}
        return facts | {"dry_run": dry_run}

    @property
    def timeout(self) -> float:
        match = re.search(r"[?&]timeout=(\d{1,4})s", self.path)
        return float(match[1]) if match else whook.DEFAULT_REVIEW_TIMEOUT

    def text(self) -> str:
        """What filters look in."""
        words = [str(self.facts[key]) for key in ("operation", "kind", "name", "user")]
        words.append("dry-run" if self.facts.get("dry_run") else "")
        return " ".join([*words, self.path.partition("?")[0]]).lower()


def matches(words: str, text: str) -> bool:
    """Whether the text has every word, and none of those with a minus before them."""
    return all(
        (word[1:] not in text) if word[0] == "-" and word[1:] else (word in text)
        for word in words.lower().split()
    )


def summary(entry: Entry) -> Json:
    """A row of the page's list."""
    row: Json = {
        "number": entry.number,
        "version": entry.version,
        "time": entry.time,
        "path": entry.path.partition("?")[0],
        "timeout": entry.timeout,
        "origin": entry.origin,
        "text": entry.text(),
        "edited": entry.edited is not None,
        "held_until": entry.held_until,
        "outcome": "held" if entry.held_until else "waiting",
        **entry.facts,
    }
    if result := entry.result:
        row |= {
            "outcome": result.outcome,
            "operations": len(result.patch),
            "warnings": len(result.response.get("warnings") or []),
            "seconds": result.duration,
            "again": bool(result.again),
        }
    row["differs"] = bool(entry.changes)
    return row


def redaction_of(entry: Entry, unredacted: bool) -> tuple[Redaction, Json]:
    """The entry's redaction, and its review without secrets; fails closed."""
    try:
        document = json.loads(entry.body)
        if type(document) is not dict:
            raise ValueError
        redaction = (NoRedaction if unredacted else Redaction)(document)
        return redaction, redaction.clean(document)
    except (ValueError, RecursionError):
        return Redaction({}), {"withheld": "it is no review, or nested too deeply to be redacted"}


def show_result(result: Result, redaction: Redaction, before: Any, recorded: bool = False) -> Json:
    """A result for the page or the folder, without secrets. The patch is made anew from redacted
    objects, policy by policy: an operation's bare value would not show whether it is secret."""
    steps, state, shown = [], before, redaction.clean(before)
    for policy, patch in result.steps.items():
        state, was = review.apply(state, patch), shown
        shown = redaction.clean(state)
        steps.append({"policy": policy, "patch": whook.diff(was, shown)})
    answer = redaction.clean(result.answer)
    if result.patch:
        answer["response"]["patch"] = [operation for step in steps for operation in step["patch"]]
    kept = {
        "status": result.status,
        "answer": answer,
        "duration": result.duration,
        "spent": result.spent,
        "changed_by": {s["policy"]: len(s["patch"]) for s in steps if s["policy"] != "by hand"},
    }
    if recorded:
        return kept
    return kept | {
        "outcome": result.outcome,
        "steps": steps,
        "kubectl": [redaction.scrub(line) for line in result.kubectl],
        "remarks": [redaction.scrub(line) for line in result.remarks],
        "again": list(result.again),
    }


def compare(entry: Entry) -> None:
    """Find how the replay's answer differs from the one that was given, by the same redaction."""
    entry.changes, one, other = [], entry.result, entry.replayed
    if not one or not other or entry.edited is not None:
        return
    obj = _object_in(json.loads(entry.body)) if one.status == 200 else None
    if entry.redacted:
        redaction, _ = redaction_of(entry, unredacted=False)
        redacted = Result(**show_result(other, redaction, obj, recorded=True))
        other = dataclasses.replace(redacted, rejected=other.rejected)
    entry.changes = difference(one, other, obj)


# ---------------------------------------------------------------------------- the folder


RECORDED = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}\.json")  # what file_name() makes


def open_folder(path: str) -> Path:
    """The folder for recordings (0700), which keeps itself out of git unless it has other files."""
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            certs.write_file(folder / ".gitignore", b"*\n")
    except OSError as error:
        hint = "name another folder with --record"
        raise whook.ConfigError(f"can't write in {path}: {error.strerror}", hint) from None
    return folder


def file_name(entry: Entry) -> str:
    """Names that sort by time, with nothing in them from outside."""
    stamp = datetime.datetime.fromtimestamp(entry.time, datetime.UTC)
    return f"{stamp:%Y%m%dT%H%M%S.%f}Z-{hashlib.sha256(entry.body).hexdigest()[:8]}.json"


def recording(entry: Entry, result: Result | None, unredacted: bool) -> bytes:
    """A review and its answer, to be kept and replayed."""
    redaction, document = redaction_of(entry, unredacted)
    redacted = entry.redacted or not unredacted
    record: Json = {"time": entry.time, "path": entry.path, "redacted": redacted}
    record["review"] = document
    if result and "withheld" not in document:
        before = _object_in(json.loads(entry.body))
        record["result"] = show_result(result, redaction, before, recorded=True)
    return json.dumps(record, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def case_of(entry: Entry, result: Result, policies: Sequence[str], unredacted: bool) -> str:
    """Return a review and its answer as `review.py test` reads them, without the managedFields that
    the page does not show either. `policies` are paths relative to the file. Raises whook.HTTPError
    if the entry is not a review."""
    redaction, document = redaction_of(entry, unredacted)
    if "withheld" in document:
        raise whook.HTTPError(400, f"this can't be a test case: {document['withheld']}")
    before = _object_in(json.loads(entry.body))
    after = review.apply(before, result.patch) if result.patch else before
    said = {"warnings": "warnings", "audit": "auditAnnotations"}
    found = {key: result.said(field) for key, field in said.items() if result.said(field)}
    if result.outcome == "failed":
        found = {"failed": cases.failure(str(result.said("message")))}
    elif result.outcome == "denied":
        about = (result.said(key) for key in ("message", "code", "reason"))
        found |= cases.denial(*about)
    before, after, found = (redaction.clean(each) for each in (before, after, found))
    if after and not found.keys() & cases.REFUSED:
        found["object"] = after
    request = document["request"]
    for obj in (request.get("object"), request.get("oldObject"), before, after):
        if type(obj) is dict and type(obj.get("metadata")) is dict:
            obj["metadata"].pop("managedFields", None)
    return cases.to_yaml(
        " ".join(str(entry.facts[key]) for key in ("operation", "kind", "name")),
        document,
        cases.accept(found, before, after),
        policies=list(policies),
        verb=whook.route(_post(entry.path))[0],
        redacted=redaction.count > 0,
    )


def read_recordings(paths: Iterable[str]) -> Iterator[tuple[Path, Json]]:
    """Each recording in files or folders, in the order of their names; ConfigError for a file that
    is none. A bare AdmissionReview counts as one that nobody answered yet."""
    for path in paths:
        files = sorted(Path(path).glob("*.json")) if os.path.isdir(path) else [Path(path)]
        for file in files:
            try:
                record = json.loads(file.read_bytes())
            except (OSError, ValueError) as error:
                raise whook.ConfigError(f"can't read {file}: {error}", "give recordings") from None
            if type(record) is dict and record.get("kind") == "AdmissionReview":
                record = {"review": record, "path": "/mutate", "time": 0.0}
            if type(record) is not dict or not {"review", "path"} <= record.keys():
                raise whook.ConfigError(
                    f"{file} is no recording", "debug.py writes them into the folder of --record"
                )
            yield file, record


def entry_of(file: Path, record: Json) -> Entry:
    """An Entry from a recording."""
    body = json.dumps(record["review"]).encode()
    entry = Entry(0, record["path"], body, "recording", record.get("time") or 0.0)
    entry.redacted, entry.file = bool(record.get("redacted")), file
    if result := record.get("result"):
        try:
            entry.result = Result(**result)
        except TypeError as error:
            raise whook.ConfigError(f"{file}: {error}", "record it anew") from None
    return entry


# ---------------------------------------------------------------------------- the desk


@dataclasses.dataclass
class Decision:
    """What a person said of a held review: "policies", "allow" (unchanged), "deny" or "edit"."""

    kind: str
    message: str = ""
    obj: Any = None


Settle = Callable[[Decision], None]


class Desk:
    """All reviews, newest last, and who waits for what: a held review for a person, the page for
    news. Both are answered later, through the loop; nothing here blocks it."""

    def __init__(
        self,
        options: argparse.Namespace,
        policies: whook.Reloadable[whook.PolicySet],
        folder: Path | None = None,
        hold: str = "",
        loop: whook.Loop | None = None,
    ) -> None:
        self.loop = loop or whook.Loop()
        self.loop.tasks.append(self.look_after)
        self.keep, self.unredacted, self.paths = options.keep, options.unredacted, options.policy
        self.policies, self.folder, self.hold = policies, folder, hold
        self.entries: collections.OrderedDict[int, Entry] = collections.OrderedDict()
        self.version = self.last_number = self.size = 0
        self.watched: list[whook.Reloadable[Any]] = [policies]
        self.in_use = ("", "")  # the policies' digest, and what is wrong with files, when last seen
        self.unfinished: list[Entry] = []  # entries for finish()
        self.held: dict[int, tuple[float, Settle]] = {}  # until when, and what answers
        self.polls: list[tuple[float, int, Callable[[Json], None]]] = []  # the page's, likewise

    def look_after(self) -> None:
        """Answer whose time is up, and tell the page of changed policies, and of unusable files;
        due twice a second."""
        now = time.monotonic()
        for number, (until, _) in list(self.held.items()):
            if now >= until:
                text = "held by the debugging desk, and nobody answered in time: allowed unchanged"
                self.settle(number, Decision("timeout", text))
        if any(now >= until for until, _, _ in self.polls):
            self.tell()
        errors = [watched.last_error for watched in self.watched if watched.last_error]
        in_use = self.policies.value.digest, "; ".join(errors)
        if in_use != self.in_use:
            self.in_use = in_use
            self.touch()

    # -- reviews come and go

    def add(self, entry: Entry) -> Entry:
        self.last_number += 1
        entry.number = self.last_number
        self.entries[entry.number] = entry
        self.size += len(entry.body)
        self.trim()
        self.touch(entry)
        return entry

    def trim(self) -> None:
        """Forget the oldest, here and in the folder; never one that is still at work."""
        for number, entry in list(self.entries.items()):
            if len(self.entries) <= self.keep and self.size <= MAX_KEPT_BYTES:
                return
            if entry.result:
                del self.entries[number]
                self.size -= len(entry.body)
                if entry.file and RECORDED.fullmatch(entry.file.name):
                    entry.file.unlink(missing_ok=True)

    def touch(self, entry: Entry | None = None) -> None:
        """Show the new state, of an entry or of what stands above the list."""
        self.version += 1
        if entry:
            entry.version = self.version
        self.tell()

    def tell(self) -> None:
        """Answer the page's requests for news."""
        polls, self.polls = self.polls, []
        for _, after, send in polls:
            send(self.news(after))

    def answered(self, entry: Entry, answer: whook.Answer, duration: float) -> None:
        response = entry.request.response if entry.request else None
        entry.result, entry.request = result_of(answer, response, duration), None
        entry.held_until = 0.0
        self.touch(entry)
        self.unfinished.append(entry)

    def finish_all(self) -> None:
        """Do the work that delays no answer, for the reviews that were answered or held since the
        last call."""
        entries, self.unfinished = self.unfinished, []
        for entry in entries:
            self.finish(entry)

    def finish(self, entry: Entry) -> None:
        """Make the preview of a held review; or the second pass and the recording of an answered
        review."""
        try:
            if entry.result is None:
                entry.replayed = run(entry.path, entry.body, self.policies.value)
            else:
                judge(entry.result, entry.path, entry.body, self.policies.value)
                compare(entry)
                if self.folder and entry.number in self.entries:
                    file = self.folder / file_name(entry)
                    certs.write_file(file, recording(entry, entry.result, self.unredacted))
                    entry.file = file
        except Exception as error:
            trace = whook.traceback_summary(error)
            whook.log("ERROR", "recording", error=type(error).__name__, trace=trace)
        self.touch(entry)

    # -- evaluation, as the process calls it

    def evaluate(
        self,
        decision: Decision,
        request: whook.Request,
        policies: Sequence[whook.Policy],
        verb: whook.Verb,
    ) -> whook.Response:
        """whook's own, but that doctor's dry run and what a person decided is answered here."""
        if nonce := _asked_by_doctor(request):
            request.response = _answer_doctor(nonce, verb)
        elif decision.kind == "policies":
            return whook.evaluate(request, policies, verb)
        else:
            request.response = _by_hand(decision, request)
        request.response.body = whook.render_review(request, request.response)
        return request.response

    def holds(self, entry: Entry, request: whook.Request) -> bool:
        """Whether a person wants to answer this one."""
        return bool(self.hold and matches(self.hold, entry.text())) and not _asked_by_doctor(
            request
        )

    def park(self, entry: Entry, request: whook.Request, settle: Settle) -> None:
        """Let it wait for a person, until shortly before the deadline."""
        left = max(request.deadline - time.monotonic() - MARGIN, 0)
        entry.held_until = time.time() + left
        self.held[entry.number] = time.monotonic() + left, settle
        self.touch(entry)
        self.unfinished.append(entry)

    def settle(self, number: int, decision: Decision) -> None:
        _, settle = self.held.pop(number)
        self.entry(number).held_until = 0.0
        settle(decision)

    def decide(self, number: int, decision: Decision) -> None:
        entry = self.entry(number)
        if number not in self.held:
            raise whook.HTTPError(409, "this review is held no more")
        if decision.kind == "edit":
            decision.obj = self.restore(entry, decision.obj)
        self.settle(number, decision)

    # -- for the page

    def entry(self, number: int) -> Entry:
        try:
            return self.entries[number]
        except KeyError:
            raise whook.HTTPError(404, f"there is no review {number} any more") from None

    def news(self, after: int) -> Json:
        """What changed since a version, or all if there was none."""
        rows = [e for e in self.entries.values() if e.version > after or after > self.version]
        digest, error = self.in_use
        names = [policy.name for policy in self.policies.value.policies]
        state: Json = {"version": self.version, "first": next(iter(self.entries), 0)}
        state |= {"hold": self.hold, "policies": names, "digest": digest, "error": error}
        return state | {"reviews": [summary(entry) for entry in rows]}

    def details(self, number: int) -> Json:
        """All of one review, without its secrets."""
        return self.show(self.entry(number))[1]

    def show(self, entry: Entry) -> tuple[Redaction, Json]:
        redaction, document = redaction_of(entry, self.unredacted)
        withheld, request = document.get("withheld", ""), document.get("request")
        fields = dict(request) if type(request) is dict else {}
        shown: Json = summary(entry) | {"withheld": withheld, "query": entry.path}
        shown |= {key: fields.pop(key, None) for key in ("object", "oldObject")}
        shown["request"] = fields
        if withheld:
            return redaction, shown
        raw = _object_in(json.loads(entry.body))
        if entry.result:
            shown["result"] = show_result(entry.result, redaction, raw)
        if entry.replayed:
            edited = _object_in(json.loads(entry.edited)) if entry.edited else raw
            shown["replay"] = show_result(entry.replayed, redaction, edited) | {
                "object": redaction.clean(edited),
                "changes": [redaction.scrub(line) for line in entry.changes],
            }
        return redaction, shown

    def restore(self, entry: Entry, edited: Json) -> Any:
        """An object as the page showed it and a person edited it, with its secrets, and with the
        metadata.managedFields that the page does not show."""
        before, metadata = _object_in(json.loads(entry.body)), edited.get("metadata")
        edited = self.show(entry)[0].restore(edited)
        if type(metadata) is dict and "managedFields" in (before.get("metadata") or {}):
            edited["metadata"].setdefault("managedFields", before["metadata"]["managedFields"])
        return edited

    def replay(self, numbers: Sequence[int], edited: Any = None) -> None:
        """Run the policies of now on reviews again; `edited` takes the object's place in one."""
        for number in numbers:
            entry = self.entry(number)
            if edited is not None:
                entry.edited = with_object(entry.body, self.restore(entry, edited))
            elif len(numbers) == 1:
                entry.edited = None
            entry.replayed = run(entry.path, entry.edited or entry.body, self.policies.value)
            compare(entry)
            self.touch(entry)

    def save(self, number: int, name: str, folder: Path) -> Path:
        """Keep the review, and the newest answer to it, as a test case for `review.py test`."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,80}", name):
            raise whook.HTTPError(400, "a test case's name has a-z, 0-9, '-' and '.' only")
        entry = self.entry(number)
        if entry.edited:
            entry = dataclasses.replace(entry, body=entry.edited)
        result = entry.replayed or entry.result
        if result is None:
            raise whook.HTTPError(409, "this review has no answer yet")
        verb, policy, _ = whook.route(_post(entry.path))
        paths = [one.path for one in self.policies.value.find(verb, policy)]
        paths = paths if policy else self.paths or paths
        relative = [os.path.relpath(path, folder) for path in paths]
        relative = [path if path[0] == "." else f"./{path}" for path in relative]
        content = case_of(entry, result, relative, self.unredacted)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            certs.write_file(folder / f"{name}.yaml", content.encode())
        except OSError as error:
            raise whook.HTTPError(500, f"can't write {folder}: {error.strerror}") from None
        return folder / f"{name}.yaml"


def _asked_by_doctor(request: whook.Request) -> str:
    if not (request.dry_run and request.has_object):
        return ""
    metadata = request.object.get("metadata") or {}
    return str((metadata.get("annotations") or {}).get(DOCTOR, ""))


def _answer_doctor(nonce: str, verb: whook.Verb) -> whook.Response:
    """A mark on the dry run that this desk saw it; a validating webhook can only deny."""
    response = whook.Response()
    if verb == "validate":
        response.allowed, response.code, response.message = False, 403, f"{ARRIVED}: {nonce}"
    else:
        path = f"/metadata/annotations/{ARRIVED.replace('/', '~1')}"
        response.patch = [{"op": "add", "path": path, "value": nonce}]
    return response


def _by_hand(decision: Decision, request: whook.Request) -> whook.Response:
    response = whook.Response()
    if decision.kind == "deny":
        response.allowed, response.code, response.reason = False, 403, "Forbidden"
        response.message = decision.message or "denied at the debugging desk"
    elif decision.kind == "edit" and request.has_object:
        response.patch = whook.diff(request.object, decision.obj)
    elif decision.kind == "timeout":
        response.warnings = {decision.message: None}
    return response


# ---------------------------------------------------------------------------- the page


class Page:
    """Answers the browser: debug.html to anybody on this machine, all else with the token only.

    The token travels in the link's fragment, which no browser sends, and then in a header, which
    no other site's page can set."""

    def __init__(self, desk: Desk, port: int, cases: Path) -> None:
        self.desk, self.cases, self.token = desk, cases, secrets.token_urlsafe(24)
        self.html = Path(__file__).with_name("debug.html").read_bytes()
        self.headers = {
            "Content-Security-Policy": content_policy(self.html.decode()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        self.server = whook.Server("127.0.0.1", port, "--page-port", self.respond, desk.loop)
        self.server.max_body = MAX_PAGE_BODY
        self.port = self.server.socket.getsockname()[1]
        self.hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/#{self.token}"

    def respond(
        self, head: whook.Head, body: bytes | bytearray, connection: whook.Connection
    ) -> whook.Answer | None:
        self.check_sender(head)
        path, _, query = head.target.partition("?")
        if path == "/" and head.method == "GET":
            return whook.Answer(200, self.html, self.headers, "text/html; charset=utf-8")
        given = head.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise whook.HTTPError(401, "open the link that the terminal shows: it holds the token")
        if head.method == "GET" and path == "/api/news":
            found = re.fullmatch(r"after=(\d{1,12})", query)
            self.tell_news(int(found[1]) if found else -1, connection)
            return None
        return self.show(self.act(head.method, path, body))

    def show(self, found: Any) -> whook.Answer:
        return whook.Answer(200, json.dumps(found).encode(), self.headers)

    def tell_news(self, after: int, connection: whook.Connection) -> None:
        """Answer at once if there are some, else when there are, or after a while."""

        def send(news: Json) -> None:
            connection.send(self.show(news))

        self.desk.polls.append((time.monotonic() + POLL, after, send))
        if self.desk.version != after:
            self.desk.tell()

    def check_sender(self, head: whook.Head) -> None:
        """Refuse what another site's page may have sent here through this machine's browser."""
        if head.headers.get("host") not in self.hosts:
            raise whook.HTTPError(421, f"this is 127.0.0.1:{self.port}, and no other host")
        origin = head.headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            raise whook.HTTPError(403, "another site may not read or change what is here")

    def act(self, method: str, path: str, body: bytes | bytearray) -> Any:
        desk = self.desk
        if method == "GET" and (match := re.fullmatch(r"/api/reviews/(\d{1,12})", path)):
            return desk.details(int(match[1]))
        actions: dict[str, Callable[[Json], Any]] = {
            "/api/replay": self.replay,
            "/api/decide": self.decide,
            "/api/hold": self.hold,
            "/api/save": self.save,
        }
        if method != "POST" or path not in actions:
            raise whook.HTTPError(404, "there is nothing here")
        try:
            return actions[path](json.loads(body)) or {}
        except ValueError as error:
            raise whook.HTTPError(400, str(error)) from None
        except (KeyError, TypeError, RecursionError) as error:
            raise whook.HTTPError(400, f"the page does not send such a thing: {error!r}") from None

    def replay(self, asked: Json) -> None:
        edited = parse_object(asked["text"]) if "text" in asked else None
        numbers = [int(number) for number in asked["numbers"]]
        self.desk.replay([number for number in numbers if number in self.desk.entries], edited)

    def decide(self, asked: Json) -> None:
        decision = Decision(asked["kind"], str(asked.get("message", "")).strip())
        if decision.kind not in ("policies", "allow", "deny", "edit"):
            raise ValueError("there is no such decision")
        if decision.kind == "edit":
            decision.obj = parse_object(asked["text"])
        self.desk.decide(int(asked["number"]), decision)

    def hold(self, asked: Json) -> None:
        self.desk.hold = str(asked["words"]).strip()
        self.desk.touch()

    def save(self, asked: Json) -> Json:
        return {"file": str(self.desk.save(int(asked["number"]), asked["name"], self.cases))}


def content_policy(html: str) -> str:
    """Nothing from elsewhere; of scripts and styles just those in the page, by their hashes."""

    def digest(tag: str) -> str:
        text = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def parse_object(text: str) -> Json:
    try:
        found = list(documents.parse(str(text), "the edited object"))
    except whook.ConfigError as error:
        raise ValueError(error.message) from None
    if len(found) != 1:
        raise ValueError("the edited text must be one object")
    return found[0].value


# ---------------------------------------------------------------------------- serve, try, replay

Command = Callable[[argparse.Namespace], int]


def dns_name(options: argparse.Namespace) -> str:
    return f"{options.name}.{options.namespace}.svc"


def make_certificate(options: argparse.Namespace) -> certs.Pair:
    """The desk's own, made when there is none that is good; its CA's key is thrown away."""
    with contextlib.redirect_stdout(sys.stderr):
        flags = ["--cert-dir", options.cert_dir, "--host", dns_name(options)]
        certs.local(certs.arguments_of(["local", *flags]))
    return pair_of(options)


def pair_of(options: argparse.Namespace) -> certs.Pair:
    pair = certs.read_files(options.cert_dir)
    if not pair:
        raise certs.Fault(f"there is no certificate in {options.cert_dir}", "python debug.py up")
    return pair


class DeskProcess(whook.Process):
    """whook's process, which tells the desk of each review, and holds what is to be held."""

    desk: Desk

    def review(
        self, head: whook.Head, body: bytes | bytearray, connection: whook.Connection
    ) -> None:
        desk, since = self.desk, connection.completed_at
        entry = desk.add(Entry(0, head.target, bytes(body), "cluster", time.time()))
        try:
            verb, name, timeout = whook.route(head)
            self.policies.value.find(verb, name)
            entry.request = request = whook.parse_review(body, since + timeout)
        except whook.HTTPError as refusal:
            desk.answered(entry, whook.status_answer(refusal), time.monotonic() - since)
            raise

        def settle(decision: Decision) -> None:
            self.evaluate = functools.partial(desk.evaluate, decision)
            path = f"/{verb}/{name}" if name else f"/{verb}"
            try:  # the policies of now: they may have been edited while it was held
                policies = self.policies.value.find(verb, name)
                answer = self.conclude(request, policies, verb, path, since)
            except whook.HTTPError as refusal:
                answer = self.admission.refuse(refusal, connection.peer)
            except ValueError as error:
                wrong = whook.HTTPError(500, f"what was edited can't be sent: {error}")
                answer = self.admission.refuse(wrong, connection.peer)
            connection.send(answer)
            desk.answered(entry, answer, time.monotonic() - since)

        if desk.holds(entry, request):
            desk.park(entry, request, settle)
        else:
            settle(Decision("policies"))

    def ended(self) -> bool:
        """Return True when the drain is over. The loop calls this between two turns, when the
        answers of the last turn are sent, so this is the time for the desk's own work."""
        self.desk.finish_all()
        return super().ended()


def open_page(desk: Desk, options: argparse.Namespace) -> Page:
    page = Page(desk, options.page_port, Path(options.cases))
    print(f"the page: {page.link}", flush=True)
    return page


def serve(options: argparse.Namespace) -> int:
    """The webhook, the page and the recordings, those made earlier too, until Ctrl-C."""
    make_certificate(options)
    folder, process = open_folder(options.record), DeskProcess()
    flags = server_options(options)
    whook.time_limit.enabled = not flags.debug_policies
    process.handle_signals()
    process.set_up(flags)
    desk = process.desk = Desk(options, process.policies, folder, options.hold, process.loop)
    for file, record in read_recordings([options.record]):
        entry = desk.add(entry_of(file, record))
        if entry.result:
            judge(entry.result, entry.path, entry.body, desk.policies.value)
    open_page(desk, options)
    port = process.admission.socket.getsockname()[1]
    print(f"the webhook: https://{options.host}:{port}", flush=True)
    process.run()
    return 0


def server_options(options: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of whook.py for the desk: the policies are reloaded when they change and
    have no time limit, and no port is open on an address that was not asked for."""
    folder = Path(options.cert_dir)
    flags = ["--tls-cert", str(folder / "server-cert.pem")]
    flags += ["--tls-key", str(folder / "server-key.pem"), "--grace-period", "0"]
    flags += ["--host", options.host, "--port", str(options.port), "--health-port", "0"]
    flags += [word for path in options.policy for word in ("--policy", path)]
    flags += ["--reload", "--debug-policies"]
    return whook.parse_arguments(flags)


def try_files(options: argparse.Namespace) -> int:
    """Local manifests through the policies, on the page: anew when a manifest is saved, and beside
    the first answer when a policy is."""
    sources = functools.partial(whook.read_sources, options.policy)
    whook.time_limit.enabled = False  # a breakpoint in a policy is never interrupted
    desk = Desk(options, whook.Reloadable("policies", sources, whook.load_policies))
    hint = "name YAML or JSON files"
    files = whook.Reloadable("files", lambda: whook.read_files(options.file, hint), reviews_of)
    desk.watched.append(files)
    open_page(desk, options)
    shown: list[bytes] | None = None
    used, stopped = desk.policies.value, False

    def look() -> None:
        nonlocal shown, used
        desk.policies.refresh()
        files.refresh()
        if files.value is not shown:
            shown = files.value
            lay_out(desk, shown)
        elif desk.policies.value is not used:
            desk.replay(list(desk.entries))
        used = desk.policies.value

    def stop(*_: object) -> None:
        nonlocal stopped
        if stopped:  # a policy does not end
            os._exit(1)
        stopped = True

    desk.loop.tasks.insert(0, look)
    signal.signal(signal.SIGINT, stop)
    desk.loop.run(lambda: stopped)
    return 0


def reviews_of(files: Mapping[str, bytes]) -> list[bytes]:
    """The reviews that an API server would send for the objects in YAML or JSON files."""
    reviews = []
    for path, content in files.items():
        try:
            for document in documents.parse(content.decode(), path):
                reviews.append(json.dumps(review.as_review(document.value)).encode())
        except ValueError as error:
            raise whook.ConfigError(f"{path}: {error}", documents.HINT) from None
    if not reviews:
        raise whook.ConfigError(f"no object in {', '.join(files)}", documents.HINT)
    return reviews


def lay_out(desk: Desk, reviews: Sequence[bytes]) -> None:
    """Each review, and its answer, in the place of those that were there: /mutate, then
    /validate on what came of it, as the API server goes. The page opens on the one that comes last:
    what was refused, else what was changed."""
    desk.entries.clear()
    desk.size = 0
    validating = any(policy.validate for policy in desk.policies.value.policies)
    made = []
    for body in reviews:
        made.append(run_new(desk, "/mutate", body))
        mutated = made[-1][1]
        if validating and mutated.outcome in ("allowed", "patched"):
            obj = review.apply(_object_in(json.loads(body)), mutated.patch)
            made.append(run_new(desk, "/validate", with_object(body, obj)))
    weights = {"allowed": 0, "patched": 1}
    for entry, _ in sorted(reversed(made), key=lambda one: weights.get(one[1].outcome, 2)):
        desk.add(entry)


def run_new(desk: Desk, path: str, body: bytes) -> tuple[Entry, Result]:
    result = run(path, body, desk.policies.value)
    entry = Entry(0, path, body, "file", time.time(), result=result)
    for line in result.kubectl + result.remarks:
        print(f"{path} {entry.facts['kind']} {entry.facts['name']}: {line}", flush=True)
    return entry, result


def replay(options: argparse.Namespace) -> int:
    """Run recordings through the policies, and cases through their own; 1 if any answer would
    differ from the one that is kept."""
    policies = whook.load_policies(whook.read_sources(options.policy))
    files = [path for path in options.file if path.endswith((".yaml", ".yml"))]
    folders = [path for path in options.file if os.path.isdir(path)]
    results = list(cases.run_all(cases.read([*files, *folders])))
    changes = [result.diff() if result.differs else [] for result in results]
    titles = [f"{result.case.place}: {result.case.title}" for result in results]
    for file, record in read_recordings(path for path in options.file if path not in files):
        entry = entry_of(file, record)
        if entry.result is None:
            print(f"{file}: holds no answer to compare with")
            continue
        judge(entry.result, entry.path, entry.body, policies)
        entry.replayed = run(entry.path, entry.body, policies)
        compare(entry)
        changes.append(entry.changes)
        facts = " ".join(str(entry.facts[key]) for key in ("operation", "kind", "name"))
        titles.append(f"{file}: {facts}")
    for title, lines in zip(titles, changes, strict=True):
        print("".join(f"{line}\n" for line in [title, *(f"  {x}" for x in lines)] if lines), end="")
    if not changes:
        hint = "give what debug.py recorded (--record), or saved from its page"
        raise whook.ConfigError("there is nothing to compare", hint)
    differ = sum(map(bool, changes))
    print(f"{len(changes) - differ} as recorded, {differ} not")
    return 1 if differ else 0


# ---------------------------------------------------------------------------- up, down


def manifests(options: argparse.Namespace, bundle: bytes) -> Iterator[tuple[str, Json]]:
    """What `up` applies, as (resource, object), in order. All of it carries our label."""
    host, port = options.address
    end = f"{certs.now() + options.lifetime:%Y-%m-%dT%H:%M:%SZ}"
    family = "IPv6" if ":" in host else "IPv4"
    selector = {"kubernetes.io/service-name": options.name}

    def manifest(kind: str, group: str = "", extra: Json | None = None, **fields: Any) -> Json:
        labels = {MANAGED: MANAGER, INSTANCE: options.name} | (extra or {})
        metadata = {"name": options.name, "labels": labels, "annotations": {EXPIRES: end}}
        if kind == "Namespace":
            metadata["name"] = options.namespace
        elif "webhooks" not in fields:
            metadata["namespace"] = options.namespace
        return {"apiVersion": f"{group}v1", "kind": kind, "metadata": metadata, **fields}

    yield "namespaces", manifest("Namespace")
    ports = [{"name": "https", "port": 443, "targetPort": port}]
    yield "services", manifest("Service", spec={"ports": ports})
    yield "endpointslices", manifest("EndpointSlice", "discovery.k8s.io/", selector,
        addressType=family, ports=[{"name": "https", "port": port}],
        endpoints=[{"addresses": [host]}])  # fmt: skip
    for resource, kind in certs.CONFIGURATIONS.items():
        verb = "validate" if kind.startswith("Validating") else "mutate"
        if verb == "mutate" or options.validating:
            one = webhook(verb, options, bundle, options.resource or ["*.*"])
            if options.user:
                mine = f"request.userInfo.username == {json.dumps(options.user)}"
                one["matchConditions"].append({"name": "one-user", "expression": mine})
            yield resource, manifest(kind, "admissionregistration.k8s.io/", webhooks=[one])


def webhook(
    verb: str, options: argparse.Namespace, bundle: bytes, resources: Sequence[str] = ("*.*",)
) -> Json:
    """A webhook beside the production one: other name, other Service, other label. It asks for
    namespaced objects only, as a namespaceSelector lets everything through that is in none."""
    quiet = '!(request.resource.resource in ["events", "leases", "endpoints", "endpointslices"])'
    rule = {"apiVersions": ["*"], "operations": ["CREATE", "UPDATE", "DELETE"]}
    service = {"namespace": options.namespace, "name": options.name, "path": f"/{verb}"}
    return {
        "name": f"{verb}.{options.name}.local",
        "clientConfig": {"service": service, "caBundle": base64.b64encode(bundle).decode()},
        "rules": [
            rule | {"apiGroups": [group], "resources": [resource], "scope": "Namespaced"}
            for resource, _, group in (name.partition(".") for name in resources)
        ],
        "namespaceSelector": {"matchLabels": {"whook": "debug"}},
        "matchConditions": [{"name": "no-chatter", "expression": quiet}],
        "failurePolicy": "Ignore",
        "timeoutSeconds": 30,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }


def leftovers(cluster: certs.Cluster, options: argparse.Namespace) -> Iterator[tuple[str, Json]]:
    """What an `up` under this name left in the cluster, by its labels, in the order of removal."""
    selector = f"{MANAGED}={MANAGER},{INSTANCE}={options.name}"
    for resource in (*certs.CONFIGURATIONS, "endpointslices", "services", "namespaces"):
        for found in cluster.call("list", resource, label_selector=selector)["items"]:
            yield resource, found


def apply(cluster: certs.Cluster, resource: str, manifest: Json) -> Json:
    """Server-side apply. The desk's name is the field manager: a label that two desks set stays
    until both are down."""
    options: Json = {"field_manager": cluster.arguments.name, "force_conflicts": True}
    name, content_type = manifest["metadata"]["name"], "application/apply-patch+yaml"
    body = json.dumps(manifest)
    return cluster.call("PATCH", resource, name, body=body, content_type=content_type, **options)


def up(options: argparse.Namespace) -> int:
    """Make the cluster call this desk, and say how the call gets here."""
    found = list(manifests(options, make_certificate(options).bundle))
    if options.print:
        print(yaml.safe_dump_all([manifest for _, manifest in found], sort_keys=False), end="")
        return 0
    cluster = certs.Cluster(options)
    for namespace in options.opt_in:
        refuse_production(cluster, namespace)
    for resource, left in leftovers(cluster, options):
        until = (left["metadata"].get("annotations") or {}).get(EXPIRES, "an unknown time")
        print(f"{resource} {left['metadata']['name']}: left by an earlier run, until {until}")
        if resource not in dict(found):
            remove(cluster, resource, left["metadata"]["name"])
    for resource, manifest in found:
        name = manifest["metadata"]["name"]
        there = cluster.find(resource, name) if resource == "namespaces" else None
        if there and labels_of(there).get(MANAGED) != MANAGER:
            print(f"{resource} {name}: was there before, and stays as it is")
            continue
        apply(cluster, resource, manifest)
        print(f"{resource} {name}: applied")
    for namespace in options.opt_in:
        opt_in(cluster, namespace)
    host, port = options.address
    bind, flag = f"[{host}]" if ":" in host else host, f" --port {port}" * (port != 8443)
    print(HOW_TO.format(host=host, bind=bind, port=port, flag=flag), end="")
    return 0


HOW_TO = """
the API server now calls {host} port {port} for what is in namespaces with the label whook=debug:
  kubectl label namespace NAMESPACE whook=debug
where the cluster reaches this machine at that address, the desk listens there:
  python debug.py --host {host}{flag}
  python debug.py doctor --host {host}{flag}
else bring the calls from there to here, where its sshd has GatewayPorts clientspecified:
  ssh -N -R {bind}:{port}:127.0.0.1:8443 {host}
  python debug.py
  python debug.py doctor
in the end: python debug.py down
"""


def labels_of(manifest: Json) -> dict[str, str]:
    return manifest["metadata"].get("labels") or {}


def refuse_production(cluster: certs.Cluster, name: str) -> None:
    """A Fault if there is no such namespace, or production has it: whook=enabled is the same
    label."""
    namespace = cluster.find("namespaces", name)
    if not namespace:
        raise certs.Fault(f"there is no namespace {name}", f"kubectl create namespace {name}")
    label = labels_of(namespace).get("whook", "debug")
    if label != "debug":
        raise certs.Fault(
            f"namespace {name} has the label whook={label}",
            "production is not touched: take another namespace, or take that label away first",
        )


def opt_in(cluster: certs.Cluster, name: str) -> None:
    metadata = {"name": name, "labels": {"whook": "debug"}}
    apply(cluster, "namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    print(f"namespaces {name}: labelled whook=debug")


def down(options: argparse.Namespace) -> int:
    """Take out all that `up` put in, the configurations first. Needs nothing but the same names, so
    it works after a crash, and from another machine."""
    cluster = certs.Cluster(options)
    for resource, found in leftovers(cluster, options):
        remove(cluster, resource, found["metadata"]["name"])
    for found in cluster.call("list", "namespaces", label_selector="whook=debug")["items"]:
        name, managers = found["metadata"]["name"], found["metadata"]["managedFields"]
        if any(entry.get("manager") == options.name for entry in managers):  # then it is ours
            bare = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            found = apply(cluster, "namespaces", bare)
        kept = "whook" in labels_of(found)
        print(f"namespaces {name}: label whook=debug {'was set by others' if kept else 'removed'}")
    return 0


def remove(cluster: certs.Cluster, resource: str, name: str) -> None:
    with contextlib.suppress(certs.NotFound):
        cluster.call("delete", resource, name)
    if cluster.wait(f"{name} to go", lambda: not cluster.find(resource, name)) is None:
        raise certs.Fault(f"{resource} {name} is not gone yet", "its finalizers hold it")
    print(f"{resource} {name}: deleted")


# ---------------------------------------------------------------------------- doctor

Fault = certs.Fault


def doctor(options: argparse.Namespace) -> int:
    """Follow the API server's call hop by hop; the first that fails ends it, with its remedy."""
    cluster = certs.Cluster(options)
    for check in (check_certificate, check_desk, check_configuration, check_service, check_slice,
                  check_call, check_label, check_dry_run):  # fmt: skip
        hop = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            print(f"ok     {hop}: {check(options, cluster)}", flush=True)
        except Fault as fault:
            print(f"error  {hop}: {fault}\n       fix: {fault.hint}", flush=True)
            return 1
    return 0


def check_certificate(options: argparse.Namespace, _: certs.Cluster) -> str:
    pair = pair_of(options)
    if reason := certs.flaw(pair, [dns_name(options)], certs.now()):
        raise Fault(reason, "python debug.py up, then restart the desk")
    return f"names {dns_name(options)}, valid {certs.span(pair.leaf)}"


def check_desk(options: argparse.Namespace, _: certs.Cluster) -> str:
    where = f"{options.host} port {options.port}"
    try:
        address = (options.host, options.port)
        served = certs.dial(address, dns_name(options), pair_of(options).bundle)
    except ssl.SSLCertVerificationError as error:
        reason = f"what answers on {where} has another certificate: {error.verify_message}"
        raise Fault(reason, "restart python debug.py, or name its --host and --port") from None
    if served is None:
        hint = "start python debug.py, or name --host, --port as the desk has them"
        raise Fault(f"nothing listens on {where}", hint)
    return f"{where} serves that certificate"


def check_configuration(options: argparse.Namespace, cluster: certs.Cluster) -> str:
    pair, count = pair_of(options), 0
    for resource in certs.CONFIGURATIONS:
        found = cluster.find(resource, options.name) or {}
        for one in found.get("webhooks") or []:
            count += 1
            bundle = base64.b64decode(one["clientConfig"].get("caBundle") or "")
            trusting = dataclasses.replace(pair, bundle=bundle)
            if reason := certs.flaw(trusting, [dns_name(options)], certs.now()):
                message = f"{one['name']} does not trust the desk: {reason}"
                raise Fault(message, "python debug.py up once more")
        end = (found.get("metadata", {}).get("annotations") or {}).get(EXPIRES, "9999")
        if end < f"{certs.now():%Y-%m-%dT%H:%M:%SZ}":
            raise Fault(f"it was meant to end at {end}", "python debug.py up, or down")
    if not count:
        raise Fault(f'there is no webhook configuration "{options.name}"', "python debug.py up")
    return f"{count} webhook(s) trust the certificate"


def check_service(options: argparse.Namespace, cluster: certs.Cluster) -> str:
    service = cluster.find("services", options.name)
    if not service:
        raise Fault(f"there is no {options.namespace}/{options.name}", "python debug.py up")
    if service["spec"].get("selector"):
        raise Fault("it has a selector, so it leads to pods", "python debug.py down, then up")
    names = {port["port"]: port.get("name", "") for port in service["spec"]["ports"]}
    if names.get(443) != "https":
        raise Fault(f"port 443 is not named https: {names}", "python debug.py up")
    return "port 443 is named https"


def check_slice(options: argparse.Namespace, cluster: certs.Cluster) -> str:
    host, port = leads_to(options, cluster)
    return f"leads to {host} port {port}"


def leads_to(options: argparse.Namespace, cluster: certs.Cluster) -> tuple[str, int]:
    """Where the API server's calls end: what `up --address` said."""
    selector = f"kubernetes.io/service-name={options.name}"
    slices = cluster.call("list", "endpointslices", label_selector=selector)["items"]
    ports = {p.get("name", ""): p["port"] for one in slices for p in one.get("ports") or []}
    addresses = [a for s in slices for e in s.get("endpoints") or [] for a in e["addresses"]]
    if len(addresses) != 1:
        raise Fault(f"the service has {len(addresses)} addresses, not one", "down, then up")
    if "https" not in ports:
        raise Fault(f"no port is named https, as the service's is: {ports}", "python debug.py up")
    return addresses[0], ports["https"]


def is_here(host: str) -> bool:
    """Whether this machine has that address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def check_label(options: argparse.Namespace, cluster: certs.Cluster) -> str:
    names = labelled(cluster)
    if not names:
        raise Fault("no namespace has it", "kubectl label namespace NAMESPACE whook=debug")
    return f"whook=debug is on {', '.join(names)}"


def labelled(cluster: certs.Cluster) -> list[str]:
    found = cluster.call("list", "namespaces", label_selector="whook=debug")["items"]
    return [namespace["metadata"]["name"] for namespace in found]


def check_call(options: argparse.Namespace, cluster: certs.Cluster) -> str:
    """Have the API server call the desk in a way that tells what goes wrong: for one labelled
    object in the desk's own namespace, which is not stored, with failurePolicy Fail."""
    nonce, name, said = secrets.token_hex(8), f"doctor.{options.name}.local", ""
    one = webhook("validate", options, pair_of(options).bundle, ["configmaps"]) | {
        "name": name,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": options.namespace}},
        "objectSelector": {"matchLabels": {DOCTOR: nonce}},
        "failurePolicy": "Fail",
        "timeoutSeconds": 5,
    }
    labels = {MANAGED: MANAGER, INSTANCE: options.name}
    resource, version = "validatingwebhookconfigurations", "admissionregistration.k8s.io/v1"
    manifest = {"apiVersion": version, "kind": certs.CONFIGURATIONS[resource], "webhooks": [one]}

    def called() -> bool:
        nonlocal said
        said = knock(cluster, options.namespace, nonce)
        return name in said

    apply(cluster, resource, manifest | {"metadata": {"name": name, "labels": labels}})
    try:
        cluster.wait("the API server to take the configuration", called)
    finally:
        cluster.call("delete", resource, name)
    if nonce in said:
        return "the API server reaches the desk"
    host, port = leads_to(options, cluster)
    hint = "is the ssh tunnel up, does sshd allow GatewayPorts, is a firewall in between"
    if is_here(host):
        hint = f"{host} is this machine: does the desk listen there (python debug.py --host {host} "
        hint += f"--port {port}), is a firewall in between"
    raise Fault(said or "the API server does not call", hint)


def knock(cluster: certs.Cluster, namespace: str, nonce: str, kind: str = "ConfigMap") -> str:
    """Create an object that is not stored; returns what shows that the desk, which answers this
    one without any policy, saw it: the nonce, or the API server's error."""
    label = {DOCTOR: nonce}
    metadata = {"generateName": "whook-doctor-", "labels": label, "annotations": label}
    obj: Json = {"apiVersion": "v1", "kind": kind, "metadata": metadata}
    if kind == "Pod":
        obj["spec"] = {"containers": [{"name": "doctor", "image": "registry.invalid/doctor:1"}]}
    try:
        made = cluster.call(
            "create", f"{kind.lower()}s", body=obj, namespace=namespace, dry_run="All"
        )
    except Fault as fault:
        return str(fault)
    return str(made["metadata"].get("annotations", {}).get(ARRIVED, ""))


def check_dry_run(options: argparse.Namespace, cluster: certs.Cluster) -> str:
    """The whole way, as any object goes it: a dry-run create must come by the desk."""
    namespace, nonce = labelled(cluster)[0], secrets.token_hex(8)
    rules = [
        rule
        for resource in certs.CONFIGURATIONS
        for one in (cluster.find(resource, options.name) or {}).get("webhooks") or []
        for rule in one["rules"]
    ]
    any_kind = any({"*", "configmaps"} & set(rule["resources"]) for rule in rules)
    said = knock(cluster, namespace, nonce, "ConfigMap" if any_kind else "Pod")
    if nonce in said:
        return f"an object in namespace {namespace} came by the desk, and was not stored"
    raise Fault(
        f"an object in namespace {namespace} did not come by the desk: {said or 'no error'}",
        "do the configuration's rules and its matchConditions (up --user) fit; is it older "
        "than a few seconds; what does the desk's log say",
    )


# ---------------------------------------------------------------------------- command line

USAGE = """\
usage: python debug.py [serve]                the webhook, the page, the recordings
       python debug.py try FILE.yaml...       local manifests, no cluster at all
       python debug.py replay FOLDER|FILE...  recordings, cases: 1 if an answer differs
       python debug.py up --address ADDRESS   lets a cluster call this desk
       python debug.py doctor                 follows that call, hop by hop
       python debug.py down                   takes out of the cluster all that `up` made

serve, try, replay
  --policy FILE|DIR                 policies; may be repeated; loaded anew when they change
serve, try
  --page-port 8081                  the page's port, on 127.0.0.1; 0 takes any
  --cases cases                     the folder for test cases that are saved on the page
  --keep 1000                       reviews on the page and in the folder; at most 256 MiB of them
  --unredacted                      show and record secrets too
serve, doctor
  --host 127.0.0.1, --port 8443     where the desk listens, or is looked for
serve
  --record debug-reviews            the folder for recordings
  --hold WORDS                      hold the reviews that match, for a person to answer
serve, up, doctor, down
  --cert-dir webhook-certs/debug    the desk's certificate; made where there is none
  --name whook-debug, --namespace whook-debug
  --kubeconfig FILE, --context NAME, --timeout 60
up
  --address ADDRESS[:PORT]          where the cluster reaches this machine, or the tunnel's end
  --opt-in NAMESPACE                label it whook=debug; may be repeated
  --user NAME                       only what this user asks for
  --resource pods|deployments.apps  only these; may be repeated
  --validating                      the validating webhook too
  --for 8h                          when it is meant to end; only said, not done
  --print                           show the YAML, apply nothing

Exit status: 0 done, nothing differs; 1 failed, or something differs; 2 wrong usage.
"""


def address(text: str) -> tuple[str, int]:
    """ADDRESS[:PORT], with [ADDRESS]:PORT for IPv6; not one that no EndpointSlice may hold."""
    with_port = re.fullmatch(r"([^:]+|\[.+\]):([0-9]{1,5})", text)
    host, port = with_port.groups() if with_port else (text, "8443")
    try:
        found = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not like 192.0.2.7:8443') from None
    if found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast:
        raise argparse.ArgumentTypeError(
            f"{found} can't be an endpoint: name the address at which the cluster reaches you, "
            "or the node that holds the tunnel's end"
        )
    return str(found), whole(1, 65535)(port)


def whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f'"{text}" is no number from {least} to {most}')
        return int(text)

    return number


class Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return USAGE

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"whook: error: {message}\nwhook: hint: see python debug.py --help\n")


def parser() -> argparse.ArgumentParser:
    policy, page, desk, cluster = (Parser(add_help=False) for _ in range(4))
    policy.add_argument("--policy", action="append", default=[])
    page.add_argument("--page-port", type=whole(0, 65535), default=8081)
    page.add_argument("--cases", default="cases")
    page.add_argument("--keep", type=whole(1, 100_000), default=MAX_KEPT)
    page.add_argument("--unredacted", action="store_true")
    desk.add_argument("--host", default="127.0.0.1")
    desk.add_argument("--port", type=whole(0, 65535), default=8443)
    for flag in ("--name", "--namespace"):
        cluster.add_argument(flag, type=certs.dns_name, default="whook-debug")
    cluster.add_argument("--cert-dir", default="webhook-certs/debug")
    cluster.add_argument("--kubeconfig")
    cluster.add_argument("--context")
    cluster.add_argument("--timeout", type=certs.seconds, default="60")
    top = Parser(allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True)

    def command(run: Command, *parents: Parser) -> argparse.ArgumentParser:
        name = run.__name__.partition("_")[0]
        made = commands.add_parser(name, parents=parents, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    serving = command(serve, policy, page, desk, cluster)
    serving.add_argument("--hold", default="")
    serving.add_argument("--record", default="debug-reviews")
    command(try_files, policy, page).add_argument("file", nargs="+")
    command(replay, policy).add_argument("file", nargs="+")
    upping = command(up, cluster)
    upping.add_argument("--address", type=address, required=True)
    upping.add_argument("--user")
    upping.add_argument("--resource", action="append", default=[])
    upping.add_argument("--opt-in", action="append", default=[])
    upping.add_argument("--for", dest="lifetime", type=certs.duration, default="8h")
    upping.add_argument("--validating", action="store_true")
    upping.add_argument("--print", action="store_true")
    command(doctor, desk, cluster)
    command(down, cluster)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "serve")
    options = parser().parse_args(words)
    options.service = getattr(options, "name", "")  # certs.Cluster's word for it
    try:
        certs.require("cryptography")
        certs.require("yaml")
        return int(options.run(options))
    except (whook.ConfigError, Fault) as error:
        print(f"whook: error: {error}\nwhook: hint: {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
