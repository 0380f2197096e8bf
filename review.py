#!/usr/bin/env python3
"""review: the same policies as whook's, offline: what would they do to this object?

Reads AdmissionReviews, or any Kubernetes objects as JSON, runs every mutate and then every
validate on each, as the API server would have them run, and shows the difference, the warnings
and the denial as kubectl shows them. Every policy runs once more on its own result, as the API
server may (reinvocationPolicy: IfNeeded): one that changes it again is not idempotent.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import whook

WEBHOOKS: dict[whook.Verb, str] = {
    "mutate": "mutate.whook.local",
    "validate": "validate.whook.local",
    "warn": "warn.whook.local",
}

# ---------------------------------------------------------------------------- JSON Patch


def apply(document: Any, patch: whook.Patch) -> Any:
    """A copy of `document` with a patch of add, remove and replace applied, as strictly as RFC 6902
    and RFC 6901 say; ValueError names the operation that does not fit."""
    result = whook.thaw(whook.freeze(document))
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
        target[place:place] = [whook.thaw(whook.freeze(step["value"]))]
    elif op == "add":
        target[place] = whook.thaw(whook.freeze(step["value"]))
    elif op == "replace":
        target[place]  # must be there
        target[place] = whook.thaw(whook.freeze(step["value"]))
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


def read_reviews(text: str, source: str) -> list[dict[str, Any]]:
    """The AdmissionReviews in a text of one or more JSON documents: reviews, objects, or Lists of
    objects; whook.SetupError if it is none of these."""
    reviews = [as_review(document) for document in _documents(text, source)]
    if not reviews:
        raise whook.SetupError(f"{source} holds nothing", HINT)
    return reviews


HINT = "give AdmissionReviews or Kubernetes objects as JSON"


def _documents(text: str, source: str) -> Iterator[dict[str, Any]]:
    decoder, position = json.JSONDecoder(), 0
    while text := text[position:].lstrip():
        try:
            document, position = decoder.raw_decode(text)
        except ValueError as error:
            raise whook.SetupError(
                f"{source} is not JSON: {error}",
                "YAML becomes JSON by: kubectl create --dry-run=client -o json -f FILE",
            ) from None
        a_list = type(document) is dict and document.get("kind") == "List"
        for item in document.get("items", []) if a_list else [document]:
            if type(item) is not dict or not {"apiVersion", "kind"} <= item.keys():
                raise whook.SetupError(
                    f"{source} holds something without apiVersion and kind", HINT
                )
            yield item


def as_review(document: dict[str, Any]) -> dict[str, Any]:
    """An AdmissionReview as it is, or the one that the API server would send when the object is
    created. The resource's plural is a guess from its kind, as kubectl makes it."""
    if document["kind"] == "AdmissionReview":
        return document
    group, _, version = document["apiVersion"].rpartition("/")
    kind, metadata = document["kind"], document.get("metadata") or {}
    request = {
        "uid": "00000000-0000-0000-0000-000000000000",
        "kind": {"group": group, "version": version, "kind": kind},
        "resource": {"group": group, "version": version, "resource": plural(kind)},
        "name": metadata.get("name", ""),
        "namespace": "" if kind in CLUSTER_SCOPED else metadata.get("namespace", "default"),
        "operation": "CREATE",
        "userInfo": {"username": "local", "groups": []},
        "object": document,
        "oldObject": None,
        "dryRun": True,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


CLUSTER_SCOPED = {"Namespace", "Node", "PersistentVolume", "StorageClass", "ClusterRole"}
CLUSTER_SCOPED |= {"ClusterRoleBinding", "CustomResourceDefinition", "PriorityClass"}


def plural(kind: str) -> str:
    word = kind.lower()
    if word.endswith("endpoints"):
        return word
    if word.endswith(("s", "x", "ch")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


# ---------------------------------------------------------------------------- running


@dataclasses.dataclass
class Step:
    """One policy's part in a review: its patch, and its patch on its own result."""

    policy: str
    patch: whook.Patch
    again: whook.Patch


@dataclasses.dataclass
class Outcome:
    """What became of one review. `fault` is why a policy failed, `responses` holds the answer to
    each call that was made, `refusals` what an API server would not take."""

    request: whook.Request
    before: Any
    after: Any
    steps: list[Step]
    responses: dict[whook.Verb, whook.Response]
    fault: whook.Refusal | None
    refusals: list[str]

    @property
    def denied(self) -> tuple[whook.Verb, whook.Response] | None:
        return next(((v, r) for v, r in self.responses.items() if not r.allowed), None)

    @property
    def not_idempotent(self) -> list[str]:
        return [step.policy for step in self.steps if step.again]

    @property
    def good(self) -> bool:
        return not (self.denied or self.fault or self.refusals or self.not_idempotent)


def run(review: dict[str, Any], policies: Sequence[whook.Policy]) -> Outcome:
    """Run the policies on an AdmissionReview: mutate, mutate again, validate what came of it."""
    request = whook.parse_review(json.dumps(review).encode())
    before = request.object
    outcome = Outcome(request, before, before, [], {}, None, [])
    try:
        outcome.responses["mutate"] = whook.evaluate(request, policies, "mutate")
        if not outcome.denied and before is not None:
            outcome.steps = list(_steps(review, policies))
            outcome.after = apply(before, outcome.responses["mutate"].patch)
        if not outcome.denied:
            mutated = _with_object(review, outcome.after)
            outcome.responses["validate"] = whook.evaluate(mutated, policies, "validate")
    except whook.Refusal as fault:
        outcome.fault = fault
    outcome.refusals = refusals(before, outcome.after)
    return outcome


def _with_object(review: dict[str, Any], obj: Any) -> whook.Request:
    changed = review | {"request": review["request"] | {"object": obj}}
    return whook.parse_review(json.dumps(changed).encode())


def _steps(review: dict[str, Any], policies: Sequence[whook.Policy]) -> Iterator[Step]:
    obj = review["request"]["object"]
    for policy in policies:
        patch = whook.evaluate(_with_object(review, obj), [policy], "mutate").patch
        obj = apply(obj, patch)
        second = whook.evaluate(_with_object(review, obj), [policy], "mutate")
        if policy.mutate:
            yield Step(policy.name, patch, second.patch)


# ---------------------------------------------------------------------------- the verdict


def refusals(before: Any, after: Any) -> list[str]:
    """What an API server would not take in the patched object, as far as this can be told without
    the type's schema. It answers these with an error that no failurePolicy saves."""
    if before is None:
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
    lines = [
        f'policy "{step.policy}" is not idempotent: on its own result it makes '
        f"{json.dumps(step.again)}"
        for step in outcome.steps
        if step.again
    ]
    lines += [f"an API server would refuse the result: {what}" for what in outcome.refusals]
    if outcome.fault:
        lines.append("with failurePolicy: Ignore the object passes as it was sent")
    return lines


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
    name = f"{request.namespace}/{request.name}" if request.namespace else request.name
    changed = show_diff(outcome.before, outcome.after, colour) or "  (unchanged)"
    return f"{request.operation} {request.kind.kind} {name}\n{changed}"


# ---------------------------------------------------------------------------- command line

EXAMPLES = """\
examples:
  kubectl create --dry-run=client -o json -f pod.yaml | python review.py --policy policies -
  kubectl get deployments -A -o json | python review.py --policy policies -
  python review.py --policy policies -o patch review.json

Exit status: 0 all allowed; 1 denied, failed, not idempotent or not acceptable; 2 wrong usage."""


COMMANDS = {
    "test": ("workbench.cases", "main"),
    "new": ("workbench.cases", "new"),
    "rules": ("workbench.rules", "main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in COMMANDS:
        module, function = COMMANDS[arguments[0]]
        return int(getattr(importlib.import_module(module), function)(arguments[1:]))
    return review_objects(arguments)


def review_objects(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="review",
        usage="python review.py [--policy FILE|DIR]... [-o diff|patch|object|review] FILE|-...",
        description="Run whook's policies on reviews or objects, without a server or a cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", metavar="FILE|DIR", action="append", default=[])
    formats = ("diff", "patch", "object", "review")
    parser.add_argument("-o", "--output", choices=formats, default="diff")
    parser.add_argument("--webhooks", metavar="FILE", action="append", help="who would be asked?")
    parser.add_argument("--namespace-label", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("file", metavar="FILE", nargs="+", help="JSON; - is standard input")
    options = parser.parse_args(argv)
    try:
        policies = whook.load_policies(whook.read_sources(options.policy)).policies
        reviews = [review for file in options.file for review in read_reviews(_read(file), file)]
        if options.webhooks:
            webhooks = importlib.import_module("workbench.webhooks")
            return int(webhooks.show_asked(reviews, options.webhooks, options.namespace_label))
        outcomes = [run(review, policies) for review in reviews]
    except (whook.SetupError, whook.Refusal) as error:
        hint = getattr(error, "hint", "the file must hold what an API server sends")
        print(f"whook: error: {error}\nwhook: hint: {hint}", file=sys.stderr)
        return 1
    for outcome in outcomes:
        print(show(outcome, options.output, sys.stdout.isatty()))
        for line in as_kubectl(outcome) + remarks(outcome):
            print(line, file=sys.stdout if options.output == "diff" else sys.stderr)
    return 0 if all(outcome.good for outcome in outcomes) else 1


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise whook.SetupError(f"can't read {file}: {error}", "give JSON files, or -") from None


if __name__ == "__main__":
    import review  # itself, once: what is in workbench/ imports it by this name

    sys.exit(review.main())
