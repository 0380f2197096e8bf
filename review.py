#!/usr/bin/env python3
"""review: the same policies as whook's, offline: what would they do to this object?

Reads AdmissionReviews, or any Kubernetes objects, as YAML or JSON, runs every mutate and then every
validate on each, as the API server would have them run, and shows the difference, the warnings
and the denial as kubectl shows them. All policies run once more on their own result, as the API
server may have them (reinvocationPolicy: IfNeeded): one that changes it again is not idempotent.

Sections: JSON Patch, reading, running, the verdict, showing, the command line. What goes beyond
has its own file in workbench/: reading YAML and JSON, cases, rules, lints, a cluster's schema.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import difflib
import importlib
import io
import itertools
import json
import os
import re
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

HERE = os.path.dirname(os.path.realpath(__file__))
if HERE not in sys.path:  # with PYTHONSAFEPATH
    sys.path.insert(0, HERE)

import whook  # noqa: E402
from workbench import documents, reports  # noqa: E402

WEBHOOKS: dict[whook.Verb, str] = {
    "mutate": "mutate.whook.local",
    "validate": "validate.whook.local",
    "warn": "warn.whook.local",
}

# ---------------------------------------------------------------------------- JSON Patch


def apply(document: Any, patch: whook.Patch) -> Any:
    """A copy of `document` with a patch of add, remove and replace applied, as strictly as RFC 6902
    and RFC 6901 say; ValueError names the operation that does not fit."""
    result = whook.copy_json(document)
    for step in patch:
        try:
            _apply(result, step)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{step} does not fit: {error}") from None
    return result


def _apply(target: Any, step: dict[str, Any]) -> None:
    path, op = step["path"], step["op"]
    if type(path) is not str or not re.fullmatch("(/([^~/]|~[01])*)+", path):
        raise ValueError("the path is no JSON Pointer to something below the root")
    *keys, last = [key.replace("~1", "/").replace("~0", "~") for key in path.split("/")[1:]]
    for key in keys:
        target = target[_place(target, key)]
    place = _place(target, last)
    if op == "add" and type(target) is list:
        target[place:place] = [whook.copy_json(step["value"])]
    elif op == "add":
        target[place] = whook.copy_json(step["value"])
    elif op == "replace":
        target[place]  # must be there
        target[place] = whook.copy_json(step["value"])
    elif op == "remove":
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


# ---------------------------------------------------------------------------- reading

Located = tuple[documents.Document, dict[str, Any]]  # where it stands, and the AdmissionReview
Key = tuple[str, str, str]  # an object's kind, namespace and name


def read_reviews(sources: Iterable[str], old: str = "", **given: Any) -> Iterator[Located]:
    """The AdmissionReview for each object in files, folders or "-". `old` is a source with what the
    objects were before; the rest is as as_review() takes it. ConfigError names what is wrong where.
    Of what is read, one object is held at a time."""
    before = _by_key(old) if old else {}
    for source in sources:
        for document in documents.read(source):
            was = before.get(_key(document.value))
            try:
                if old and not was:
                    raise ValueError(f"{old} holds no such object as it was before")
                yield document, as_review(document.value, old=was, **given)
            except ValueError as error:
                where = f"{document.source}, line {document.line}"
                raise whook.ConfigError(f"{where}: {error}", documents.HINT) from None


def _by_key(source: str) -> dict[Key, dict[str, Any]]:
    return {_key(document.value): document.value for document in documents.read(source)}


def _key(obj: dict[str, Any]) -> Key:
    metadata = obj.get("metadata")
    found = metadata if type(metadata) is dict else {}
    return str(obj.get("kind")), str(found.get("namespace", "")), str(found.get("name", ""))


def as_review(
    obj: dict[str, Any],
    *,
    operation: str = "",
    old: dict[str, Any] | None = None,
    sub_resource: str = "",
    user: str = "",
    groups: Sequence[str] = (),
    namespace: str | None = None,
    plurals: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The AdmissionReview that the API server would send for this object: a CREATE, or an UPDATE
    where there is an `old` one, unless `operation` says otherwise. An AdmissionReview stays as it
    is. `namespace` is for objects that name none. ValueError if it is no Kubernetes object."""
    group, version, kind, metadata = _identity(obj)
    if kind == "AdmissionReview":
        if operation or old or sub_resource or user or groups or namespace is not None:
            raise ValueError("an AdmissionReview says itself what is requested, and by whom")
        return obj
    operation = operation or ("UPDATE" if old else "CREATE")
    if operation == "UPDATE" and not old:
        raise ValueError("an UPDATE needs the object as it was before (--old)")
    options = {"kind": f"{operation.title()}Options", "apiVersion": "meta.k8s.io/v1"}
    request = {
        "uid": "00000000-0000-0000-0000-000000000000",
        "kind": {"group": group, "version": version, "kind": kind},
        "resource": resource_of(group, version, kind, plurals or {}),
        "subResource": sub_resource,
        "name": metadata.get("name", ""),
        "namespace": _namespace(kind, metadata, namespace),
        "operation": operation,
        "userInfo": {"username": user or "local", "groups": list(groups)},
        "object": None if operation == "DELETE" else obj,
        "oldObject": obj if operation == "DELETE" else old,
        "dryRun": True,
        "options": None if operation == "CONNECT" else options,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def _identity(obj: dict[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
    """Group, version, kind and metadata; ValueError where they are not what they must be."""
    for field in ("apiVersion", "kind"):
        if not obj.get(field):
            raise ValueError(f"{field} is missing, so this is no Kubernetes object")
        if type(obj[field]) is not str:
            raise ValueError(f"{field} must be a string")
    metadata = obj.get("metadata")
    if type(metadata) not in (dict, type(None)):
        raise ValueError("metadata must be an object")
    metadata = metadata or {}
    for field in ("name", "namespace", "generateName"):
        if type(metadata.get(field, "")) is not str:
            raise ValueError(f"metadata.{field} must be a string")
    group, _, version = obj["apiVersion"].rpartition("/")
    return group, version, obj["kind"], metadata


# What `kubectl api-resources --namespaced=false` lists, as far as webhooks are asked about it.
_SCOPED = """
    APIService CSIDriver CSINode CertificateSigningRequest ClusterRole ClusterRoleBinding
    ClusterTrustBundle CustomResourceDefinition DeviceClass FlowSchema IPAddress IngressClass
    MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration Node
    PersistentVolume PriorityClass PriorityLevelConfiguration ResourceSlice RuntimeClass ServiceCIDR
    StorageClass ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
    ValidatingWebhookConfiguration VolumeAttachment VolumeAttributesClass
"""
CLUSTER_SCOPED = set(_SCOPED.split())


def _namespace(kind: str, metadata: dict[str, Any], given: str | None) -> str:
    if kind == "Namespace":  # the API server's own exception
        return str(metadata.get("name", ""))
    if kind in CLUSTER_SCOPED:
        given = ""
    return metadata.get("namespace") or ("default" if given is None else given)


def resource_of(group: str, version: str, kind: str, plurals: Mapping[str, str]) -> dict[str, str]:
    """The resource that a kind is requested by. `plurals` says it as kubectl does, in the form
    plural or plural.version.group; else the plural is a guess, as kubectl makes it."""
    name, *rest = plurals.get(kind, plural(kind)).split(".", 2)
    if rest:
        version, group = [*rest, ""][:2]
    return {"group": group, "version": version, "resource": name}


def plural(kind: str) -> str:
    word = kind.lower()
    if word.endswith("endpoints"):
        return word
    if word.endswith(("s", "x", "ch")):
        return word + "es"
    ending = re.search("[^aeiou]y$", word)
    return word[:-1] + "ies" if ending else word + "s"


# ---------------------------------------------------------------------------- running


@dataclasses.dataclass
class Step:
    """One policy's part in a review: its patch, its patch on its own result, and with what message
    it denies that, or fails on it."""

    policy: str
    patch: whook.Patch
    again: whook.Patch
    denies: str = ""


@dataclasses.dataclass
class Outcome:
    """What became of one review. `fault` is why a policy failed, `responses` holds the answer to
    each call that was made, `refusals` what an API server would not take.

    `denials` and `failures` have a message for every policy that would deny or fail, as far as it
    was its turn: those of validate all, though the first one that denies ends a review. `lints`
    are warnings about the policies, `notes` what else is to be shown of this review.
    """

    request: whook.Request
    before: Any
    after: Any
    steps: list[Step]
    responses: dict[whook.Verb, whook.Response]
    fault: whook.HTTPError | None
    refusals: list[str]
    denials: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    lints: list[str] = dataclasses.field(default_factory=list)
    strict: bool = False  # lints are errors
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def denied(self) -> tuple[whook.Verb, whook.Response] | None:
        return next(((v, r) for v, r in self.responses.items() if not r.allowed), None)

    @property
    def not_idempotent(self) -> list[str]:
        return [step.policy for step in self.steps if step.again or step.denies]

    @property
    def good(self) -> bool:
        wrong = self.denied or self.fault or self.refusals or self.not_idempotent
        return not (wrong or (self.strict and self.lints))


def run(review: dict[str, Any], policies: Sequence[whook.Policy]) -> Outcome:
    """Run the policies on an AdmissionReview: mutate, mutate again, validate what came of it.
    whook.HTTPError if it is no AdmissionReview."""
    request = whook.parse_review(json.dumps(review).encode())
    before = request.object
    outcome = Outcome(request, before, before, [], {}, None, [])
    try:
        mutated = outcome.responses["mutate"] = evaluate(request, policies, "mutate")
        if mutated.allowed:
            outcome.steps = _steps(mutated, policies)
            outcome.after = apply(before, mutated.patch) if mutated.patch else before
            request = with_object(request, outcome.after)
            if mutated.patch:
                _mutate_again(outcome, request, policies)
            outcome.responses["validate"] = evaluate(request, policies, "validate")
    except whook.HTTPError as fault:
        outcome.fault = fault
    outcome.refusals = refusals(before, outcome.after)
    _blame(outcome, request, policies)
    return outcome


class TimeLimit(whook.TimeLimit):
    """whook's time limit, except that it interrupts no code that is being traced: the developer is
    at a breakpoint, or a lint or --cover counts lines, which takes longer."""

    def on_alarm(self, number: int, frame: types.FrameType | None) -> None:
        if sys.gettrace() is None and not _has_debugger():
            super().on_alarm(number, frame)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _has_debugger() -> bool:
    """Return True if a debugger uses sys.monitoring, as pdb does from Python 3.14 on."""
    monitoring = getattr(sys, "monitoring", None)
    return bool(monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID))


whook.time_limit = TimeLimit()


def evaluate(
    request: whook.Request, policies: Sequence[whook.Policy], verb: whook.Verb
) -> whook.Response:
    """Evaluate a request as the server does. Raises HTTPError, and KeyboardInterrupt if the user
    interrupts a policy."""
    try:
        return whook.evaluate(request, policies, verb)
    except whook.PolicyError as fault:
        if isinstance(fault.__cause__, KeyboardInterrupt):  # it was not the policy's fault
            raise KeyboardInterrupt from None
        raise


def with_object(request: whook.Request, obj: Any) -> whook.Request:
    """Return the same request about a copy of another object."""
    copy = whook.copy_json(obj)
    fields = {field: getattr(request, field) for field in whook.Request.__annotations__}
    changed = whook.Request(copy, lambda: whook.copy_json(obj), fields)
    vars(changed).update(fields)
    return changed


def _steps(response: whook.Response, policies: Sequence[whook.Policy]) -> list[Step]:
    """Each policy's part in the patch."""
    patches = iter(response.patch)
    return [
        Step(policy.name, list(itertools.islice(patches, count)), [])
        for policy in policies
        if policy.mutate
        for count in [response.changed_by.get(policy.name, 0)]
    ]


def _mutate_again(
    outcome: Outcome, request: whook.Request, policies: Sequence[whook.Policy]
) -> None:
    """Run all policies on the result. If that does anything, find which of them do something to
    what they made themselves; if none does, it is those that undo what another made."""
    again = _second(request, policies)
    if not again.patch and again.allowed:
        return
    by_name, obj = {policy.name: policy for policy in policies}, outcome.before
    for step in outcome.steps:
        if step.patch:
            obj = apply(obj, step.patch)
            response = _second(with_object(request, obj), [by_name[step.policy]])
            step.again, step.denies = response.patch, response.message
    if not outcome.not_idempotent:
        for step, second in zip(outcome.steps, _steps(again, policies), strict=True):
            step.again = second.patch
            if not again.allowed and step.policy == list(again.spent)[-1]:
                step.denies = again.message


def _second(request: whook.Request, policies: Sequence[whook.Policy]) -> whook.Response:
    """The answer to mutate; a failure counts as a denial."""
    try:
        return evaluate(request, policies, "mutate")
    except whook.PolicyError as fault:
        response = whook.Response()
        response.allowed, response.message = False, fault.message
        response.spent[fault.policy.name] = 0.0
        return response


def _blame(outcome: Outcome, request: whook.Request, policies: Sequence[whook.Policy]) -> None:
    """Find which policies it was that denied or failed."""
    mutated = outcome.responses.get("mutate")
    if mutated is None and isinstance(outcome.fault, whook.PolicyError):
        outcome.failures[outcome.fault.policy.name] = outcome.fault.message
    elif mutated and not mutated.allowed:
        *_, last = mutated.spent
        outcome.denials[last] = mutated.message
    elif outcome.denied or outcome.fault:
        for policy in policies:
            try:
                response = evaluate(request, [policy], "validate")
            except whook.HTTPError as fault:
                outcome.failures[policy.name] = fault.message
            else:
                outcome.denials |= {} if response.allowed else {policy.name: response.message}
    obj = outcome.before
    for step in outcome.steps if outcome.refusals else ():
        was, obj = obj, apply(obj, step.patch)
        if found := refusals(was, obj):
            outcome.failures[step.policy] = found[0]


# ---------------------------------------------------------------------------- the verdict


def refusals(before: Any, after: Any) -> list[str]:
    """What an API server would not take in the patched object, as far as this can be told without
    the type's schema. It answers these with an error that no failurePolicy saves."""
    if before is None or before is after:
        return []
    found = [
        f"{field} was changed from {_at(before, field)!r} to {_at(after, field)!r}"
        for field in ("apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.uid")
        if _at(before, field) != _at(after, field)
    ]
    return found + list(_wrong_types(before, after, ""))


def _at(obj: Any, path: str) -> Any:
    for key in path.split("."):
        obj = obj.get(key) if type(obj) is dict else None
    return obj


STRING_MAPS = ("labels", "annotations", "matchLabels", "nodeSelector", "data", "stringData")


def _wrong_types(before: Any, after: Any, path: str) -> Iterator[str]:
    """Values whose JSON type the policies changed, and what they put into maps of strings."""
    if before is not None and after is not None and _type(before) != _type(after):
        yield f"{path} was {_type(before)}, and is {_type(after)}"
    elif type(after) in (dict, list) and whook.same_json(before, after):
        return
    elif type(after) is dict:
        strings = path.rpartition("/")[2] in STRING_MAPS
        for key, value in after.items():
            old = before.get(key) if before else None
            if strings and type(value) is not str and value != old:
                yield f"{path}/{key} is {json.dumps(value)}, and must be a string"
            elif not strings:
                yield from _wrong_types(old, value, f"{path}/{key}")
    elif type(after) is list:
        pairs = itertools.zip_longest(before or [], after)
        for index, (old, new) in enumerate(pairs):
            yield from _wrong_types(old, new, f"{path}/{index}")


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "a number")


# ---------------------------------------------------------------------------- showing


def as_kubectl(outcome: Outcome) -> list[str]:
    """The lines that kubectl would show: warnings, then the error if there is one."""
    lines = [f"Warning: {w}" for r in outcome.responses.values() for w in r.warnings]
    if outcome.denied:
        verb, response = outcome.denied
        reason = f" ({response.reason})" if response.reason else ""
        lines.append(
            f'Error from server{reason}: admission webhook "{WEBHOOKS[verb]}" '
            f"denied the request: {response.message or response.reason}"
        )
    elif outcome.fault:
        verb = "validate" if "mutate" in outcome.responses else "mutate"
        lines.append(
            "Error from server (InternalError): Internal error occurred: failed calling webhook "
            f'"{WEBHOOKS[verb]}": failed to call webhook: {outcome.fault.message}'
        )
    return lines


def remarks(outcome: Outcome) -> list[str]:
    """What kubectl would not say."""
    lines = list(outcome.notes)
    for step in outcome.steps:
        start = f'policy "{step.policy}" is not idempotent: on its own result it'
        lines += [f"{start} makes {json.dumps(step.again)}"] if step.again else []
        lines += [f"{start} says: {step.denies}"] if step.denies else []
    lines += [f"an API server would not take the result: {what}" for what in outcome.refusals]
    if outcome.fault:
        lines.append("with failurePolicy: Ignore the object passes as it was sent")
    return lines + [f"lint: {lint}" for lint in outcome.lints]


def show_diff(before: Any, after: Any, colour: bool) -> str:
    """A unified diff of the two as indented JSON; "" if they are equal."""
    one, other = (json.dumps(x, indent=2, ensure_ascii=False).splitlines() for x in (before, after))
    lines = list(difflib.unified_diff(one, other, "sent", "answered", lineterm=""))
    if colour:
        paint = {"-": "\033[31m", "+": "\033[32m", "@": "\033[36m"}
        lines = [f"{paint[x[0]]}{x}\033[0m" if x[0] in paint else x for x in lines]
    return "\n".join(lines)


def show(outcome: Outcome, output: str, colour: bool) -> str:
    """One outcome as text in the form that `-o` asks for."""
    if output == "object":
        return json.dumps(outcome.after, indent=2, ensure_ascii=False)
    if output == "patch":
        patches = [step for r in outcome.responses.values() for step in r.patch]
        return json.dumps(patches, indent=2, ensure_ascii=False)
    if output == "review":
        answers = outcome.responses.values()
        return "\n".join(whook.render_review(outcome.request, r).decode() for r in answers)
    request = outcome.request
    heading = f"{request.operation} {request.kind.kind} {full_name(request)}"
    if request.sub_resource:
        heading += f" ({request.sub_resource})"
    changed = show_diff(outcome.before, outcome.after, colour) or "  (unchanged)"
    return f"{heading}\n{changed}"


def full_name(request: whook.Request) -> str:
    return f"{request.namespace}/{request.name}" if request.namespace else request.name


class Report:
    """Shows each outcome when it is there, or what came of all of them at the end; meanwhile a
    terminal has a line that says how far it is."""

    def __init__(self, output: str) -> None:
        self.output, self.count, self.next = output, 0, 0.0
        self.summary = reports.Summary()
        self.results: list[tuple[str, str, list[str]]] = []
        silent = output in ("summary", "junit") or (output == "json" and not sys.stdout.isatty())
        self.progress = silent and sys.stderr.isatty()

    def add(self, document: documents.Document, outcome: Outcome) -> None:
        self.count += 1
        if self.progress and time.monotonic() > self.next:
            self.next = time.monotonic() + 0.1
            print(f"\r{self.count} reviewed", end="", file=sys.stderr, flush=True)
        if self.output == "summary":
            self.summary.add(outcome)
            for lint in outcome.lints:
                print("\r\033[K" * self.progress + f"lint: {lint}", file=sys.stderr)
        elif self.output == "junit":
            request = outcome.request
            wrong = [] if outcome.good else as_kubectl(outcome) + remarks(outcome)
            self.results.append((request.kind.kind, full_name(request), wrong))
        elif self.output == "json":
            entry = json.dumps(reports.as_entry(document, outcome))
            print("[\n" if self.count == 1 else ",\n", entry, sep="", end="")
        else:
            self.show(outcome)

    def show(self, outcome: Outcome) -> None:
        print(show(outcome, self.output, sys.stdout.isatty()))
        for line in as_kubectl(outcome) + remarks(outcome):
            result = self.output == "diff" and not line.startswith("lint: ")
            print(line, file=sys.stdout if result else sys.stderr)

    def end(self) -> None:
        if self.progress:
            print("\r\033[K", end="", file=sys.stderr)
        if self.output == "summary" and self.count:
            print(self.summary.render())
        elif self.output == "junit":
            print(reports.junit("review", self.results))
        elif self.output == "json":
            print("\n]" if self.count else "[]")


# ---------------------------------------------------------------------------- command line

USAGE = """\
python review.py --policy FILE|DIR... [options] FILE|DIR|-...
       python review.py test|rules|new --help"""
EXAMPLES = """\
examples:
  python review.py --policy policies pod.yaml
  python review.py --policy policies --old before.yaml after.yaml
  kubectl get deployments,pods -A -o json | python review.py --policy policies -o summary -

Exit status: 0 all allowed; 1 denied, failed, not idempotent or not acceptable, with --strict also
a lint; 2 wrong usage."""
COMMANDS = {
    "test": ("workbench.cases", "main"),
    "new": ("workbench.cases", "new"),
    "rules": ("workbench.rules", "main"),
}
FORMATS = ("diff", "patch", "object", "review", "summary", "json", "junit")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal can't show must not end it
            stream.reconfigure(errors="backslashreplace")
    try:
        if arguments and arguments[0] in COMMANDS:
            module, function = COMMANDS[arguments[0]]
            status = int(getattr(importlib.import_module(module), function)(arguments[1:]))
        else:
            status = review_objects(parse_arguments(arguments))
        sys.stdout.flush()
        return status
    except whook.ConfigError as error:
        message, hint = error.message, error.hint
    except KeyboardInterrupt:
        message, hint = "interrupted", "what was shown until then holds, and the rest was not run"
    except BrokenPipeError:  # as in "| head": nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    print(f"whook: error: {message}\nwhook: hint: {hint}", file=sys.stderr)
    return 1


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="review",
        usage=USAGE,
        description="Run whook's policies on reviews or objects, without a server or a cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE|DIR", nargs="+", help="YAML or JSON; - is standard input")
    add("--policy", metavar="FILE|DIR", action="append", help="repeatable")
    add("-o", "--output", choices=FORMATS, default="diff", help="(diff)")
    add("--schema", metavar="FILE|DIR", action="append", default=[],
        help="the cluster's own, for what policies change; repeatable")  # fmt: skip
    add("--strict", action="store_true", help="lints are errors")
    request = parser.add_argument_group("what is requested, where the files hold objects")
    add = request.add_argument
    add("--old", metavar="FILE|DIR", default="", help="an UPDATE of what is in there")
    operations = ("CREATE", "UPDATE", "DELETE", "CONNECT")
    add("--operation", choices=operations, type=str.upper, default="", help="(CREATE)")
    add("--sub-resource", metavar="NAME", default="", help="as ephemeralcontainers, resize, scale")
    add("--user", metavar="NAME", default="", help="who asks for it (local)")
    add("--group", metavar="NAME", action="append", default=[], help="of the user; repeatable")
    add("--namespace", metavar="NAME", help="of objects that name none (default)")
    add("--plural", metavar="KIND=PLURAL[.VERSION.GROUP]", type=_mapping, action="append",
        default=[], help="where the guess is wrong, as in Mouse=mice; repeatable")  # fmt: skip
    asking = parser.add_argument_group("instead of --policy: would the API server ask at all?")
    add = asking.add_argument
    add("--webhooks", metavar="FILE|DIR", action="append", help="configurations; repeatable")
    add("--namespace-label", metavar="KEY=VALUE", action="append", default=[], help="repeatable")
    options = parser.parse_args(argv)
    if options.webhooks and options.policy:
        parser.error("--webhooks runs no policy: leave --policy out")
    if not options.policy and not options.webhooks:
        hint = "--policy policies runs those that came with whook"
        parser.error(f"--policy is missing: without one nothing is judged\nwhook: hint: {hint}")
    if options.old and options.operation not in ("", "UPDATE"):
        parser.error(f"--old is for an UPDATE, not for {options.operation}")
    return options


def _mapping(text: str) -> tuple[str, str]:
    kind, equals, name = text.partition("=")
    if not (kind and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not like Mouse=mice")
    return kind, name


def load_policies(
    paths: Sequence[str], parameters: Mapping[str, bytes] | None = None
) -> Sequence[whook.Policy]:
    """The policies behind files and folders; `parameters` are the contents of NAME.json files by
    their paths. ConfigError, with the way to where it was raised."""
    try:
        sources = whook.read_sources(paths) | dict(parameters or {})
        return whook.load_policies(sources, whook.START_TIME_LIMIT).policies
    except whook.ConfigError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if error.__cause__ and not isinstance(error.__cause__, whook.ConfigError):
            error.hint = _way_to(error.__cause__)
        raise


def _way_to(error: BaseException) -> str:
    """A hint where an error came from. To run the policy with python would not show it: there it
    has no objects.py, and no NAME.json."""
    frames = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != whook.__file__ and frame.f_code.co_filename[0] != "<"
    ]
    return "mend it there" if len(frames) < 2 else "raised in " + ", called in ".join(frames[::-1])


def review_objects(options: argparse.Namespace) -> int:
    """Review what the files hold, each object when it is read, and show it."""
    policies = load_policies(options.policy or [])
    reviews = read_reviews(
        options.file,
        options.old,
        operation=options.operation,
        sub_resource=options.sub_resource,
        user=options.user,
        groups=options.group,
        namespace=options.namespace,
        plurals=dict(options.plural),
    )
    if options.webhooks:
        webhooks = importlib.import_module("workbench.webhooks")
        return int(webhooks.show_asked(reviews, options.webhooks, options.namespace_label))
    look = second_look(options, policies)
    report, good = Report(options.output), True
    try:
        for document, review in reviews:
            outcome = judge(document, review, policies, options)
            look(review, outcome)
            report.add(document, outcome)
            good = good and outcome.good
    finally:
        report.end()
    return 0 if good else 1


def judge(
    document: documents.Document,
    review: dict[str, Any],
    policies: Sequence[whook.Policy],
    options: argparse.Namespace,
) -> Outcome:
    """Run the policies on one review; ConfigError if it is none."""
    try:
        return run(review, policies)
    except whook.HTTPError as refusal:
        where = f"{document.source}, line {document.line}"
        hint = "the file must hold what an API server sends"
        raise whook.ConfigError(f"{where}: {refusal.message}", hint) from None


def second_look(
    options: argparse.Namespace, policies: Sequence[whook.Policy]
) -> Callable[[dict[str, Any], Outcome], None]:
    """What --schema adds to an outcome's refusals, and the lints: each once, of however many
    objects it is true."""
    schemas = importlib.import_module("workbench.schema").load(options.schema)
    lints = importlib.import_module("workbench.lints")
    shown: set[str] = set()
    kinds: collections.Counter[whook.Kind] = collections.Counter()

    def look(review: dict[str, Any], outcome: Outcome) -> None:
        if options.schema and outcome.after != outcome.before:
            by_schema(schemas, outcome)
        if options.strict or options.output in LINTED:
            kinds[outcome.request.kind] += 1
            found = lints.find(review, policies, outcome, kinds[outcome.request.kind] <= GROWN)
            outcome.lints = [lint for lint in found if lint not in shown]
            outcome.strict = options.strict
            shown.update(found)

    return look


GROWN = 2  # objects of each kind with which is tried how a policy's time grows
LINTED = ("diff", "json", "junit")  # an inventory of a cluster is no time for them


def by_schema(schemas: Any, outcome: Outcome) -> None:
    """Judge by the type's schema what else is only known from the types that values had before;
    those findings are the ones with a JSON Pointer."""
    if not schemas.knows(outcome.after):
        kind = f"{_at(outcome.after, 'apiVersion')} {_at(outcome.after, 'kind')}"
        outcome.notes.append(f"none of the schemas is for {kind}: its fields are not judged")
        return
    obj, found = outcome.before, schemas.judge(outcome.before, outcome.after)
    outcome.refusals = [each for each in outcome.refusals if each[0] != "/"] + found
    for step in outcome.steps if found else ():
        before, obj = obj, apply(obj, step.patch)
        if wrong := schemas.judge(before, obj):
            outcome.failures[step.policy] = wrong[0]


if __name__ == "__main__":
    import review  # itself, once: what is in workbench/ imports it by this name

    sys.exit(review.main())
