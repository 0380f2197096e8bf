"""Cases: what policies are expected to do to an object, in YAML that a person reads and writes.

    case: a mutable tag is refused            what it shows, in a line
    policies: ../pinned-images.py             from this file on, or names; else the one named as it
    object: {apiVersion: v1, kind: Pod, …}    or `review:`, whole or the path of a file with one
    expect:
      denied: 'container "web": …'

`review.py test` runs each as it runs an object: mutate, then validate on what came of it, each
policy once more on its own result. What `expect` does not name must not happen: a case without
`warnings` has none, and without object, changes or fields the object stays as it was sent.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import review
import whook
from workbench import documents, reports
from workbench.cover import Cover, missed
from workbench.redaction import Redaction
from workbench.rewrite import as_yaml, set_key

Json = dict[str, Any]

# ---------------------------------------------------------------------------- the form

MAP: tuple[type, ...] = (dict,)
TEXT: tuple[type, ...] = (str,)
TEXTS: tuple[type, ...] = (str, list)
KEYS = {  # of a case, and what each may hold
    "case": TEXT,
    "policies": TEXTS,
    "parameters": MAP,
    "verb": TEXT,
    "redacted": (bool,),
    "review": (str, dict),
    "object": MAP,
    "oldObject": MAP,
    "operation": TEXT,
    "resource": TEXT,
    "subResource": TEXT,
    "name": TEXT,
    "namespace": TEXT,
    "user": TEXT,
    "groups": TEXTS,
    "expect": (str, dict),
}
EXPECT = {  # of what is expected
    "object": MAP,
    "changes": MAP,
    "fields": MAP,
    "denied": TEXT,
    "code": (int,),
    "reason": TEXT,
    "failed": TEXT,
    "warnings": TEXTS,
    "audit": MAP,
}
NAMES = {str: "a text", dict: "an object", list: "a list", int: "a whole number"}
NAMES |= {bool: "true or false"}
UNCHANGED = "unchanged"
FORM = "docs/cases.md has the form of a case"
ENDS = ("object", "changes", "fields", "denied", "failed")  # of these a case has one


class Case(NamedTuple):
    """One case: where it stands, the policies' files and parameters, the review, the expectation.
    `verb` is "" for mutate and then validate; `redacted` says that secrets are placeholders."""

    source: str
    number: int  # of the document in its file, from 0
    line: int
    title: str
    policies: tuple[str, ...]
    parameters: Json
    verb: str
    review: Json
    expect: Json | None
    redacted: bool

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"


# ---------------------------------------------------------------------------- reading


def read(paths: Iterable[str], named: Iterable[str] = (), wanting: bool = False) -> Iterator[Case]:
    """The cases in files and folders; `named` are files and folders with policies to be found by
    name, `wanting` allows cases that have no expectation yet. ConfigError names file and line."""
    beside = {Path(p).stem: p for p in whook.read_sources(named) if p.endswith(".py")}
    for path in paths:
        folder = not path or os.path.isdir(path)
        for file in files_in(path) if folder else [Path(path)]:
            found = list(documents.parse(_text(file), str(file)))
            if folder and all(_is_object(each.value) for each in found):
                continue  # an object that a case refers to
            for number, document in enumerate(found):
                yield _Reader(file, document, beside, wanting).case(number)


def files_in(folder: str) -> list[Path]:
    """The YAML files in the folder, and in those below it that are named `cases`; for "" only
    those below the current one."""
    found = []
    for place, names, files in os.walk(folder or "."):
        names[:] = [name for name in names if name[0] not in "._"]
        below = Path(place).relative_to(folder or ".").parts
        if place == folder or "cases" in (*below, Path(folder).name):
            found += [Path(place, name) for name in files if name.endswith((".yaml", ".yml"))]
    return sorted(found)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise whook.ConfigError(f"can't read {file}: {error}", "name files or folders") from None


def _is_object(value: Json) -> bool:
    return {"apiVersion", "kind"} <= value.keys() and "expect" not in value


class _Reader:
    """One document on its way to be a Case."""

    def __init__(
        self, file: Path, document: documents.Document, beside: dict[str, str], wanting: bool
    ) -> None:
        self.file, self.line, self.given = file, document.line, dict(document.value)
        if self.given.get("expect", ...) is None:
            del self.given["expect"]
        self.beside, self.wanting = beside, wanting

    def fault(self, message: str, hint: str = FORM, key: str = "") -> whook.ConfigError:
        """For the line of a key, as far as that can be told, or of the case."""
        first, *rest = _text(self.file).splitlines()[self.line - 1 :]
        mine = [first, *itertools.takewhile(lambda line: not line.startswith("---"), rest)]
        start = re.compile(rf"[\s\"'{{]*{re.escape(key)}[\"']?\s*:").match
        line = self.line + next((i for i, line in enumerate(mine) if key and start(line)), 0)
        return whook.ConfigError(f"{self.file}, line {line}: {message}", hint)

    def case(self, number: int) -> Case:
        given = self.given
        if _is_object(given):
            raise self.fault(f"this is a {given['kind']}, and no case", "put it below `object:`")
        self.check(given, KEYS, "a case")
        request = self.request()
        try:
            parsed = whook.parse_review(json.dumps(request).encode())
        except whook.HTTPError as refusal:
            raise self.fault(f"the review can't be read: {refusal.message}") from None
        name = f"{parsed.namespace}/{parsed.name}" if parsed.namespace else parsed.name
        return Case(
            source=str(self.file),
            number=number,
            line=self.line,
            title=given.get("case", f"{parsed.operation} {parsed.kind.kind} {name}"),
            policies=tuple(self.policies()),
            parameters=given.get("parameters", {}),
            verb=self.verb(),
            review=request,
            expect=self.expect(),
            redacted=given.get("redacted", False),
        )

    def check(self, given: Json, keys: dict[str, tuple[type, ...]], what: str) -> None:
        for key, value in given.items():
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1)
                hint = f"do you mean `{near[0]}`?" if near else f"it has {', '.join(keys)}"
                raise self.fault(f"{what} has no key {key!r}", hint, str(key))
            if type(value) not in keys[key]:
                wanted = " or ".join(NAMES[kind] for kind in keys[key])
                raise self.fault(f"`{key}` must be {wanted}", key=key)
            if type(value) is list and not all(type(item) is str for item in value):
                raise self.fault(f"`{key}` must be a list of texts", key=key)

    def verb(self) -> str:
        verb = str(self.given.get("verb", ""))
        if verb not in ("", *review.WEBHOOKS):
            raise self.fault(f"there is no verb {verb!r}", "mutate, validate or warn", "verb")
        return verb

    def expect(self) -> Json | None:
        expect = self.given.get("expect")
        if expect == UNCHANGED:
            return {}
        if not expect and self.wanting:
            return None
        if not expect:
            hint = "say what should come of it, or let --accept write what does"
            raise self.fault("the case has no `expect`", hint)
        if type(expect) is not dict:
            hint = f"`expect: {UNCHANGED}`, or an object such as `expect: {{denied: …}}`"
            raise self.fault(f"`expect` can't be {expect!r}", hint, "expect")
        self.check(expect, EXPECT, "`expect`")
        if len(ends := [key for key in ENDS if key in expect]) > 1:
            raise self.fault(f"`expect` has both `{ends[0]}` and `{ends[1]}`", FORM, "expect")
        for key in ("code", "reason"):
            if key in expect and "denied" not in expect:
                raise self.fault(f"`{key}` belongs to `denied`", FORM, "expect")
        return expect

    # -- the policies

    def policies(self) -> list[str]:
        given = self.given.get("policies", self.file.stem)
        found = [self.policy(text) for text in ([given] if type(given) is str else given)]
        if not found:
            raise self.fault("the case is about no policy", FORM, "policies")
        if "parameters" in self.given and (len(found) > 1 or not found[0].endswith(".py")):
            raise self.fault("`parameters` are those of one policy", FORM, "parameters")
        return found

    def policy(self, text: str) -> str:
        """The file or folder that is meant."""
        folder = self.file.parent
        if "/" in text or text.endswith(".py") or text in (".", ".."):
            found = [folder / text]
        else:
            known = [Path(self.beside[text])] if text in self.beside else []
            found = [*known, *(above / f"{text}.py" for above in (folder, *folder.parents))]
        for path in found:
            if path.exists():
                return os.path.relpath(path)
        if "policies" in self.given:
            hint = "a path from the case's file on, or the name of a file beside it or further up"
        else:
            hint = "say which by `policies:`, or name the case's file as the policy"
        raise self.fault(f"there is no policy {text!r}", hint, "policies")

    # -- the review

    def request(self) -> Json:
        """The AdmissionReview: the one that is given, or the one that the API server would send
        for the object; with what else the case says of it."""
        given, whole = self.given, "review" in self.given
        document = self.whole() if whole else self.of_object()
        fields: Json = dict(document["request"])
        if whole:
            fields |= {key: merged(fields.get(key), given[key]) for key in OBJECTS if key in given}
        fields |= {key: given[key] for key in SAME if key in given}
        known = {key: fields.get(key) for key in ("userInfo", "resource")}
        user, resource = (each if type(each) is dict else {} for each in known.values())
        if given.keys() & {"user", "groups"}:
            fields["userInfo"] = _user(user, given)
        if "resource" in given:
            group, _, plural = given["resource"].rpartition("/")
            fields["resource"] = resource | {"group": group, "resource": plural}
        return document | {"request": fields}

    def of_object(self) -> Json:
        """A CREATE, an UPDATE where there is an old object, a DELETE where there is only that."""
        obj, old = self.given.get("object"), self.given.get("oldObject")
        if obj is None and old is None:
            raise self.fault("the case has no `object`", "or `oldObject`, or `review`")
        operation = self.given.get("operation", "" if obj is not None else "DELETE")
        if operation == "UPDATE" and (obj is None or old is None):
            raise self.fault("an UPDATE has `object` and `oldObject`", FORM, "operation")
        if obj is None:
            return self.as_review(old, operation)
        return self.as_review(obj, operation, old)

    def whole(self) -> Json:
        """What `review` says, or the file that it names."""
        document = self.given["review"]
        if type(document) is str:
            found = [each.value for each in documents.read(str(self.file.parent / document))]
            if len(found) != 1:
                message = f"{document} holds {len(found)} documents, and must hold one"
                raise self.fault(message, "give each a file of its own", "review")
            document = found[0]
        document = self.as_review(document)
        if type(document.get("request")) is not dict:
            raise self.fault("the AdmissionReview has no request", FORM, "review")
        return document

    def as_review(self, obj: Any, operation: str = "", old: Json | None = None) -> Json:
        try:
            return review.as_review(obj, operation=operation, old=old)
        except ValueError as error:
            raise self.fault(f"the object: {error}", documents.HINT) from None


OBJECTS = ("object", "oldObject")
SAME = ("operation", "subResource", "name", "namespace")  # as they are in a request


def _user(user: Json, given: Json) -> Json:
    groups = given.get("groups", user.get("groups", []))
    groups = [groups] if type(groups) is str else groups
    return user | {"username": given.get("user", user.get("username", "local")), "groups": groups}


# ---------------------------------------------------------------------------- what changes


def merged(base: Any, changes: Any) -> Any:
    """`base` with the changes made: in an object the fields that are named (null takes one away);
    a list is given whole, but of an item with a name only what changes."""
    if type(changes) is dict:
        result = dict(base) if type(base) is dict else {}
        for key, value in changes.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), value)
        return result
    if type(changes) is list:
        known = by_name(base)
        return [merged(known.get(name_of(item)), item) for item in changes]
    return changes


def changes_of(before: Any, after: Any) -> Any:
    """The changes that make `after` of `before`, as merged() takes them."""
    if type(before) is dict and type(after) is dict:
        gone = {key: None for key in before if key not in after}
        changed = (key for key in after if _differ(before.get(key), after[key]))
        return gone | {key: changes_of(before.get(key), after[key]) for key in changed}
    if type(before) is list and type(after) is list:
        known = by_name(before)
        return [
            {"name": name_of(item)} | changes_of(known[name_of(item)], item)
            if name_of(item) in known
            else item
            for item in after
        ]
    return after


def fields_of(obj: Any, asked: Any) -> Any:
    """What an object has in the fields that are asked for; null where there is none."""
    if type(obj) is dict and type(asked) is dict:
        return {key: fields_of(obj.get(key), asked[key]) for key in asked}
    if type(obj) is list and type(asked) is list and all(map(name_of, asked)):
        known = by_name(obj)
        names = [name for name in map(name_of, asked) if name in known]
        return [fields_of(known[name], by_name(asked)[name]) for name in names]
    return obj


def name_of(item: Any) -> str:
    name = item.get("name") if type(item) is dict else None
    return name if type(name) is str else ""


def by_name(items: Any) -> dict[str, Any]:
    return {name_of(item): item for item in items if name_of(item)} if type(items) is list else {}


def _differ(one: Any, other: Any) -> bool:
    return bool(whook.diff({"": one}, {"": other}))


# ---------------------------------------------------------------------------- running


class Result(NamedTuple):
    """What became of a case: its expectation and what was found, in the same words, and what no
    case can expect. `accepted` is what --accept writes."""

    case: Case
    expected: Json
    found: Json
    problems: list[str]
    accepted: Json | str

    @property
    def differs(self) -> bool:
        return self.case.expect is None or _differ(self.expected, self.found)

    @property
    def ok(self) -> bool:
        return not self.differs and not self.problems

    def diff(self) -> list[str]:
        one, other = (
            as_yaml(each or {UNCHANGED: True}).splitlines() for each in (self.expected, self.found)
        )
        return list(difflib.unified_diff(one, other, "expected", "found", lineterm=""))


def load(case: Case) -> tuple[whook.Policy, ...]:
    """The policies that a case is about; ConfigError if they do not load."""
    parameters = {}
    if case.parameters:
        name = whook.parameters_of(case.policies[0])
        parameters[name] = json.dumps(case.parameters).encode()
    return tuple(review.load_policies(case.policies, parameters))


def run(case: Case, policies: Sequence[whook.Policy]) -> review.Outcome:
    if case.verb == "warn":
        request = whook.parse_review(json.dumps(case.review).encode())
        outcome = review.Outcome(request, request.object, request.object, [], {}, None, [])
        try:
            outcome.responses["warn"] = review.evaluate(request, policies, "warn")
        except whook.HTTPError as fault:
            outcome.fault = fault
        return outcome
    if case.verb == "mutate":
        policies = [policy._replace(validate=None) for policy in policies]
    elif case.verb == "validate":
        policies = [policy._replace(mutate=None) for policy in policies]
    return review.run(case.review, policies)


def judge(case: Case, outcome: review.Outcome) -> Result:
    """Hold what came out against what is expected."""
    redaction = Redaction(case.review) if case.redacted else None
    before, after = outcome.before, outcome.after
    found = words_of(outcome)
    if redaction:
        before, after, found = (redaction.clean(each) for each in (before, after, found))
    expected = dict(case.expect or {})
    if type(expected.get("warnings")) is str:
        expected["warnings"] = [expected["warnings"]]
    passes = after is not None and not found.keys() & REFUSED
    if passes:
        fields = {"fields": fields_of(after, expected.get("fields"))}
        found |= fields if "fields" in expected else {"object": after}
    accepted = accept(found, before, after, "object" in expected)
    if passes and not expected.keys() & {*REFUSED, "object", "fields"}:
        expected["object"] = merged(before, expected.pop("changes", {}))
    elif passes and expected.keys() & REFUSED:
        found = accepted if type(accepted) is dict else {}
    problems = [] if outcome.fault else review.remarks(outcome)
    return Result(case, expected, found, problems, accepted)


REFUSED = {"denied", "failed"}


def words_of(outcome: review.Outcome) -> Json:
    """What policies said, as an expectation has it."""
    found: Json = {}
    responses = list(outcome.responses.values())
    if outcome.fault:
        found["failed"] = failure(outcome.fault.message)
    elif outcome.denied:
        found |= denial(*(getattr(outcome.denied[1], k) for k in ("message", "code", "reason")))
    if warnings := list(dict.fromkeys(line for each in responses for line in each.warnings)):
        found["warnings"] = warnings
    if audit := {key: value for each in responses for key, value in each.audit.items()}:
        found["audit"] = audit
    return found


def failure(message: str) -> str:
    """Why a policy failed, without its name and the line, which change too easily."""
    return re.sub(r'^policy ".*?" failed: (line \d+: )?', "", message)


def denial(message: str, code: int, reason: str) -> Json:
    usual = {"code": 403, "reason": "Forbidden"}
    rest = {"code": code, "reason": reason}
    return {"denied": message} | {key: rest[key] for key in rest if rest[key] != usual[key]}


def accept(found: Json, before: Any, after: Any, whole: bool = False) -> Json | str:
    """An expectation of what was found, with the object's changes unless it was given whole."""
    expect = {key: value for key, value in found.items() if key != "object"}
    if "object" in found and _differ(before, after):
        changes = changes_of(before, after)
        whole = whole or _differ(merged(before, changes), after)  # null is a value there
        expect |= {"object": after} if whole else {"changes": changes}
    return {key: expect[key] for key in EXPECT if key in expect} or UNCHANGED


def run_all(cases: Iterable[Case], cover: Cover | None = None) -> Iterator[Result]:
    loaded: dict[str, tuple[whook.Policy, ...]] = {}
    for case in cases:
        key = json.dumps([case.policies, case.parameters])
        if key not in loaded:
            loaded[key] = load(case)
        outcome = run(case, loaded[key])
        if cover and getattr(outcome.fault, "cause", "") != "time":
            with cover.watch(policy.path for policy in loaded[key]):
                run(case, loaded[key])
        yield judge(case, outcome)


# ---------------------------------------------------------------------------- writing


def write(results: Sequence[Result]) -> None:
    """Put what was found into the files of those that differ."""
    for source in dict.fromkeys(each.case.source for each in results if each.differs):
        mine = [each for each in results if each.differs and each.case.source == source]
        values = {each.case.number: each.accepted for each in mine}
        path = Path(source)
        path.write_bytes(set_key(_text(path), source, "expect", values).encode())


def to_yaml(title: str, document: Json, expect: Json | str, **more: Any) -> str:
    """A case as a file's text, for what saves one; `more` are other keys, those without a value
    are left out."""
    given = {key: value for key, value in more.items() if value}
    return as_yaml({"case": title, **given, "review": document, "expect": expect})


# ---------------------------------------------------------------------------- a first file

POLICY = '''\
"""TODO: say in one line what holds where this policy runs.

Reads metadata.labels.
Rule: CREATE of pods.
"""

LABEL = "example.com/owner"


def validate(obj, request):
    labels = obj["metadata"].get("labels") or {}
    if LABEL not in labels:
        pass  # request.deny(f'metadata.labels: "{LABEL}" is missing; set it to who answers for it')
'''
FIRST = """\
# What the policy does, by example. "python review.py test" runs it.
case: a pod without an owner is refused
object:
  apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: default}
  spec:
    containers:
      - {name: web, image: "nginx:1.27"}
expect:
  denied: 'metadata.labels: "example.com/owner" is missing; set it to who answers for it'
"""


def new(argv: Sequence[str] | None = None) -> int:
    """`review.py new NAME`: a policy, and one case that fails until the policy does its work."""
    parser = argparse.ArgumentParser(
        prog="review new",
        usage="python review.py new [FOLDER/]NAME",
        description="Write policies/NAME.py and policies/cases/NAME.yaml, to be filled in.",
    )
    parser.add_argument("name", help="the folder is `policies` where none is named")
    path = Path(parser.parse_args(argv).name.removesuffix(".py"))
    if not re.fullmatch("[A-Za-z0-9-][A-Za-z0-9._-]{0,199}", path.name):
        hint = "use letters, digits, '-', '_' and '.', and neither '.' nor '_' first"
        raise whook.ConfigError(f"whook would load no policy {path.name!r}", hint)
    folder = path.parent if path.name != str(path) else Path("policies")
    files = {folder / f"{path.name}.py": POLICY, folder / "cases" / f"{path.name}.yaml": FIRST}
    try:
        for file in files:
            if file.exists():
                raise whook.ConfigError(f"{file} is there already", "choose another name")
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "x", encoding="utf-8") as target:
                target.write(text)
            print(file)
    except OSError as error:
        hint = "name a folder that you may write to: FOLDER/NAME"
        raise whook.ConfigError(f"can't write {error.filename}: {error.strerror}", hint) from None
    print(f"the case fails as yet: python review.py test {list(files)[1]}")
    return 0


# ---------------------------------------------------------------------------- showing


def as_text(result: Result, accepted: bool) -> str:
    """A line, and below it why the case fails."""
    word = "ok  " if result.ok else "new " if accepted and result.differs else "FAIL"
    lines = [f"{word}  {result.case.place}  {result.case.title}"]
    lines += [f"      {line}" for line in why(result)]
    return "\n".join(lines)


def why(result: Result) -> list[str]:
    return (result.diff() if result.differs else []) + result.problems


def as_json(results: Sequence[Result], uncovered: dict[str, list[str]] | None) -> str:
    cases = [
        {
            "file": each.case.source,
            "line": each.case.line,
            "case": each.case.title,
            "policies": each.case.policies,
            "ok": each.ok,
            "why": why(each),
        }
        for each in results
    ]
    return json.dumps({"cases": cases} | ({} if uncovered is None else {"uncovered": uncovered}))


def as_junit(results: Sequence[Result]) -> str:
    shown = [(each, [] if each.ok else ["not as expected", *why(each)]) for each in results]
    tests = [(each.case.source, each.case.title, lines) for each, lines in shown]
    return reports.junit("review test", tests)


def uncovered_by(
    cover: Cover, cases: Sequence[Case], named: Sequence[str] = ()
) -> dict[str, list[str]]:
    """By policy, what no case reached. Policies beside the cases' folder count, too, but for files
    of cases that were named one by one."""
    above = {os.path.relpath(Path(case.source).parent.parent) for case in cases
             if Path(case.source).parent.name == "cases" and case.source not in named}  # fmt: skip
    paths = {*cover.arcs}
    for folder in above:
        names = Path(folder).glob("*.py")
        paths |= {os.path.relpath(path) for path in names if path.name[0] not in "._"}
    found = {}
    for path, source in whook.read_files(sorted(paths), "").items():
        found[path] = missed(path, source, cover.arcs.get(path, set()))
    return found


# ---------------------------------------------------------------------------- command line

EXAMPLES = """\
examples:
  python review.py test                          every folder named `cases` below this one
  python review.py test policies --cover
  python review.py test policies/cases/team-label.yaml --accept && git diff

Exit status: 0 all as expected; 1 a case failed, or none ran; 2 wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="review test",
        usage="python review.py test [--policy FILE|DIR]... [--accept] [--cover] "
        "[-o text|json|junit] [FOLDER|FILE]...",
        description="Run cases: does each policy do what is expected of it?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", metavar="FILE|DIR", action="append", default=[],
                        help="where policies are that cases name without a path")  # fmt: skip
    parser.add_argument("--accept", action="store_true", help="write what came out")
    parser.add_argument("--cover", action="store_true", help="what did no case reach?")
    parser.add_argument("-o", "--output", choices=("text", "json", "junit"), default="text")
    parser.add_argument("path", metavar="FOLDER|FILE", nargs="*", default=[""])
    options = parser.parse_args(argv)
    return _test(options)


def _test(options: argparse.Namespace) -> int:
    cover = Cover() if options.cover else None
    results = []
    cases = list(read(options.path, options.policy, options.accept))
    for result in run_all(cases, cover):
        results.append(result)
        if options.output == "text":
            print(as_text(result, options.accept), flush=True)
    if not results:
        hint = "a case is a YAML file in a folder named `cases`, or is named here"
        where = " ".join(options.path) or "the folders named `cases` below this one"
        raise whook.ConfigError(f"there is no case in {where}", hint)
    if options.accept:
        write(results)
    uncovered = None if cover is None else uncovered_by(cover, cases, options.path)
    failed = [each for each in results if each.problems or (each.differs and not options.accept)]
    if options.output == "json":
        print(as_json(results, uncovered))
    elif options.output == "junit":
        print(as_junit(results))
    else:
        print(f"{len(results)} cases, {len(failed)} failed")
    if options.output != "json":
        for path, lines in (uncovered or {}).items():
            print("".join(f"{path}:{line}\n" for line in lines), end="", file=sys.stderr)
    return 1 if failed else 0
