"""lints: what will these policies break, that this one review does not show?

The policies run again, on what else the API server will ask them about the same object. A finding
names the policy, what it does, and the incident that this has been somewhere. Lints are warnings;
--strict makes them errors.

What a policy reads beside the request (the clock, random numbers, the network, files) is found in
its source, by the names that it calls. This runs nothing, and is sure where it finds something; the
modules of its own that a policy imports are not looked into. To watch it at work would be no
better: an audit hook sees no clock and no random number, and can't be taken off again. Whatever the
reason, that the same review has two results is found by running it twice.

A policy is asked what its rule line says; one without such a line, about everything.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import itertools
import json
import marshal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import objects
import review
import whook
from workbench import documents, rules, webhooks

SLOW = 0.01  # seconds
QUICK = 0.0005  # seconds: how fast the time of so little grows matters to nobody
TRIES = 5  # of which the fastest counts: a busy machine makes no policy slow
FEW, MANY = 10, 100  # containers
GROWTH = 25  # times the lines of Python for MANY that there are for FEW: each alone would be ten
MOST_LINES = 1_000_000
MOST_PAIRS = 3  # of policies whose order matters, that are named

VERBS: tuple[whook.Verb, ...] = ("mutate", "validate")
Fields = dict[str, Any]


def find(
    reviewed: Fields,
    policies: Sequence[whook.Policy],
    outcome: review.Outcome,
    growth: bool = True,
) -> list[str]:
    """What there is to say about these policies, and about this review by them. How their time
    grows takes the longest to find, and is much the same for all objects of a kind."""
    found = [f'policy "{p.name}" {what}' for p in policies for what in _reads(p)]
    found += _locks_out(tuple(policies), reviewed["request"]["resource"]["resource"])
    if outcome.fault or type(outcome.before) is not dict:
        return found
    asked = [policy for policy in policies if _is_asked(policy, reviewed)]
    mutated = _about(reviewed, object=outcome.after)
    crowds = _crowds(mutated) if growth else []
    for policy in asked:
        own = [*_differs(reviewed, policy), *_slow(mutated, policy, outcome)]
        own += _grows(crowds, policy)
        if policy.validate:
            own += [*_edits(mutated, policy), *_keeps(mutated, policy), *_slips(mutated, policy)]
        found += [f'policy "{policy.name}" {what}' for what in own]
    return found + list(_order(reviewed, asked))


# ---------------------------------------------------------------------------- asking again


class Answer(NamedTuple):
    """A policy's: it "allows", "refuses" or "fails on" it, with this message; or its patch."""

    verdict: str
    message: str = ""
    patch: str = "[]"

    @property
    def why(self) -> str:
        return f"({whook.truncate(self.message)})"


def _about(reviewed: Fields, **fields: Any) -> Fields:
    """The same review with other fields in its request."""
    return {**reviewed, "request": {**reviewed["request"], **fields}}


def _parsed(reviewed: Fields) -> whook.Request:
    return whook.parse_review(json.dumps(reviewed).encode())


def _ask(reviewed: Fields, *policies: whook.Policy, verb: whook.Verb = "validate") -> Answer:
    try:
        response = review.evaluate(_parsed(reviewed), policies, verb)
    except whook.HTTPError as fault:
        return Answer("fails on", fault.message)
    if response.allowed:
        return Answer("allows", "", json.dumps(response.patch))
    return Answer("refuses", response.message)


@functools.cache
def _source(policy: whook.Policy) -> bytes:
    with contextlib.suppress(OSError):
        return Path(policy.path).read_bytes()
    return b""


@functools.cache
def _rule(policy: whook.Policy) -> list[rules.Ask] | None:
    try:
        return rules.rule_of(policy.path, _source(policy))
    except whook.ConfigError:
        return None


def _is_asked(policy: whook.Policy, reviewed: Fields) -> bool:
    request, asks = reviewed["request"], _rule(policy)
    group, sub = request["resource"]["group"], request.get("subResource") or ""
    names = (request["resource"]["resource"], sub)
    return asks is None or any(
        ask.operation == request["operation"]
        and ask.group in ("*", group)
        and all(
            mine in ("*", own)
            for mine, own in zip(ask.resource.partition("/")[::2], names, strict=True)
        )
        for ask in asks
    )


def _with_containers(reviewed: Fields, edit: Callable[[Fields], None]) -> Fields | None:
    """The review about a pod, or what has one, with that pod's spec edited; None where there are
    no containers."""
    request = json.loads(json.dumps(reviewed["request"]))
    group, kind = request["kind"]["group"], request["kind"]["kind"]
    path = objects.TEMPLATES.get(f"{group}/{kind}" if group else kind)
    if path is None:
        return None
    spec = request["object"]
    for key in [*path.split("."), "spec"] if path else ["spec"]:
        spec = spec.get(key) if type(spec) is dict else None
    containers = spec.get("containers") if type(spec) is dict else None
    if type(containers) is not list or not containers or {*map(type, containers)} != {dict}:
        return None
    edit(spec)
    return {**reviewed, "request": request}


# ---------------------------------------------------------------------------- what it reads

# What a call is about, the names of functions (or of all in a module), and what came of it.
READS: dict[str, tuple[str, str]] = {
    "the clock": (
        "time.time time.time_ns time.localtime time.gmtime time.ctime time.strftime time.monotonic"
        " time.perf_counter datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today"
        " datetime.date.today",
        "what was allowed in the test is refused some day, with nothing changed",
    ),
    "random numbers": (
        "random.* secrets.* uuid.uuid1 uuid.uuid4 os.urandom os.getrandom hash",
        "the API server asks twice (reinvocationPolicy: IfNeeded), and gets two answers",
    ),
    "the network": (
        "socket.* ssl.* urllib.request.* http.client.* urllib3.* requests.* httpx.* kubernetes.*",
        "where that is down or slow, so is every creation in the cluster",
    ),
    "files": (
        "open io.open os.open os.listdir os.scandir os.walk os.stat os.path.exists os.popen"
        " os.system subprocess.* shutil.* tempfile.* glob.*"
        " .read_text .read_bytes .write_text .write_bytes .iterdir",
        "one replica has another file than the next, and the policies' hash does not show it;"
        " NAME.json beside the policy is read by whook itself",
    ),
}


@functools.cache
def _reads(policy: whook.Policy) -> list[str]:
    """What its functions call; what is called once, when the file is loaded, may be."""
    tree = ast.parse(_source(policy))
    known = _imported(tree)
    found: dict[str, str] = {}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    for node in itertools.chain.from_iterable(map(ast.walk, functions)):
        if isinstance(node, ast.Call):
            name = _name(node.func, known)
            for what, (names, incident) in READS.items():
                if _is_one_of(name, names.split()):
                    call = name.removeprefix(".")
                    line = f"reads {what} on line {node.lineno} ({call}): {incident}"
                    found.setdefault(what, line)
    return list(found.values())


def _imported(tree: ast.Module) -> dict[str, str]:
    """The names that imports make, each with what it stands for."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                known[each.asname or each.name.partition(".")[0]] = (
                    each.name if each.asname else each.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            known |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return known


def _name(node: ast.expr, known: dict[str, str]) -> str:
    """The full name of what is called; ".read_text" for a method of something unknown."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if not isinstance(node, ast.Attribute):
        return ""
    inner = node.value
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    is_module = isinstance(inner, ast.Name) and inner.id in known
    return f"{_name(node.value, known)}.{node.attr}" if is_module else f".{node.attr}"


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    return name in names or any(name.startswith(each[:-1]) for each in names if each.endswith(".*"))


def _differs(reviewed: Fields, policy: whook.Policy) -> Iterator[str]:
    for verb in VERBS:
        if _ask(reviewed, policy, verb=verb) != _ask(reviewed, policy, verb=verb):
            yield (
                f"gives another result when {verb} runs once more on the same review: what it"
                " keeps between reviews, or reads elsewhere, is not the same in each replica"
            )


# ---------------------------------------------------------------------------- what it takes


def _slow(mutated: Fields, policy: whook.Policy, outcome: review.Outcome) -> Iterator[str]:
    for verb, response in outcome.responses.items():
        seconds = response.spent.get(policy.name, 0)
        for _ in range(TRIES - 1):
            if seconds > SLOW:
                seconds = min(seconds, _spent(_parsed(mutated), policy, verb))
        if seconds > SLOW:
            yield (
                f"takes {seconds * 1000:.0f} ms to {verb} this object: whook does one review at a"
                f" time, so a rollout gets {1 / seconds:.0f} pods a second, and then time-outs"
            )


def _spent(request: whook.Request, policy: whook.Policy, verb: whook.Verb) -> float:
    with contextlib.suppress(whook.HTTPError):
        review.evaluate(request, [policy], verb)
    return request.response.spent.get(policy.name, 0)


def _crowds(mutated: Fields) -> list[whook.Request]:
    """The same with a few containers, and with many; nothing where there are none."""
    found = []
    for count in (FEW, MANY):

        def edit(spec: Fields, count: int = count) -> None:
            several = itertools.islice(itertools.cycle(spec["containers"]), count)
            spec["containers"] = [{**each, "name": f"c{i}"} for i, each in enumerate(several)]

        crowd = _with_containers(mutated, edit)
        found += [_parsed(crowd)] if crowd else []
    return found


def _grows(crowds: list[whook.Request], policy: whook.Policy) -> Iterator[str]:
    """Lines of Python are counted, not seconds: they are the same on every machine."""
    for verb in VERBS if crowds else ():
        if not getattr(policy, verb) or _spent(crowds[-1], policy, verb) < QUICK:
            continue
        few, many = (_lines(crowd, policy, verb) for crowd in crowds)
        if many > GROWTH * few:
            yield (
                f"runs {many} lines of Python to {verb} {MANY} containers, and {few} for {FEW}:"
                f" a large object takes more than {whook.TIME_LIMIT:.0f} s, and then nobody can"
                " change it"
            )


def _lines(request: whook.Request, policy: whook.Policy, verb: whook.Verb) -> int:
    count, before, own = 0, sys.gettrace(), (whook.__file__, review.__file__)

    def line(frame: types.FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        if count > MOST_LINES:
            raise RuntimeError("too many lines")
        return line

    def call(frame: types.FrameType, event: str, argument: object) -> Any:
        file, caller = frame.f_code.co_filename, frame.f_back
        by_policy = file == policy.path or (caller and caller.f_trace)
        return line if by_policy and file not in own else None

    try:
        sys.settrace(call)
        with contextlib.suppress(whook.HTTPError):
            review.evaluate(request, [policy], verb)
    finally:
        sys.settrace(before)
    return count


# ---------------------------------------------------------------------------- validate


def _edits(mutated: Fields, policy: whook.Policy) -> Iterator[str]:
    edited, validate = False, policy.validate

    def watched(obj: Any, request: whook.Request) -> object:
        nonlocal edited
        assert validate  # noqa: S101
        before = marshal.dumps(obj, 2)
        try:
            return validate(obj, request)
        finally:
            try:
                edited = marshal.dumps(obj, 2) != before
            except ValueError:  # it put in what is no JSON
                edited = True

    _ask(mutated, policy._replace(validate=watched))
    if edited:
        yield (
            "edits the object in validate, where every edit is thrown away: that is a default"
            " which never arrives; mutate is for edits"
        )


# As a controller it is that asks, when it has done its work.
CONTROLLER = {
    "username": "system:serviceaccount:kube-system:generic-garbage-collector",
    "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system"],
}
GOING = {"deletionTimestamp": "2026-11-22T13:50:58Z", "deletionGracePeriodSeconds": 0}


def _keeps(mutated: Fields, policy: whook.Policy) -> Iterator[str]:
    """Does it let go of the object, whatever else it thinks of it?"""
    request = mutated["request"]
    obj, metadata = request["object"], request["object"].get("metadata")
    update = _about(mutated, operation="UPDATE", userInfo=CONTROLLER)
    plain = request["operation"] in ("CREATE", "UPDATE") and not request.get("subResource")
    if not plain or type(metadata) is not dict or not _is_asked(policy, update):
        return
    held = {"finalizers": ["example.com/held"], **metadata}
    freed = {key: value for key, value in metadata.items() if key != "finalizers"}
    for old, new, what in (
        (held | GOING, freed | GOING, "takes its last finalizer off"),
        (held, held | GOING, "sets its deletionTimestamp"),
    ):
        old, new = obj | {"metadata": old}, obj | {"metadata": new}
        answer = _ask(_about(update, oldObject=old, object=new), policy)
        if answer.verdict != "allows":
            yield (
                f"keeps the object from going: it {answer.verdict} the UPDATE that {what}"
                f" {answer.why}, so it hangs in Terminating, and its namespace with it; judge only"
                " what an UPDATE changes"
            )
            return


# What the API server allows in no ephemeral container, and a good value where there is one.
PROBE = {"exec": {"command": ["true"]}}
AMOUNT = {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "1Gi"}
NOT_EPHEMERAL = {
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "startupProbe": PROBE,
    "resources": {"requests": AMOUNT, "limits": AMOUNT},
    "ports": None,
    "lifecycle": None,
    "resizePolicy": None,
    "restartPolicy": None,
}


def _slips(mutated: Fields, policy: whook.Policy) -> Iterator[str]:
    """Of a pod whose containers it refuses: does it also when they come in another way?"""
    request = mutated["request"]
    if request["kind"]["group"] or request["kind"]["kind"] != "Pod":
        return
    refused = _ask(mutated, policy)
    if request["operation"] != "CREATE" or refused.verdict != "refuses":
        return
    bare = _edited(mutated, _without_containers)
    if _ask(bare, policy).verdict != "allows":
        return  # it is not about the containers
    if _ask(_edited(mutated, _without_resources), policy).verdict == "allows":
        other = _update(mutated, "resize", _edited(mutated, _without_resources))
        if _gets_by(policy, other):
            yield (
                f"refuses these resources in a new pod {refused.why}, and a resize slips past it:"
                " `kubectl edit --subresource=resize` sets what no pod may have; it has to be"
                " asked, and to look, at an UPDATE of pods/resize"
            )
    plain, full = (_edited(mutated, edit) for edit in (_as_ephemeral, _complete))
    if {_ask(each, policy).verdict for each in (plain, full)} == {"refuses"}:
        other = _update(_edited(mutated, _as_debug), "ephemeralcontainers", bare)
        if _gets_by(policy, other):
            yield (
                f"refuses a container in a new pod {refused.why}, and kubectl debug slips past it:"
                " it brings the same container into a running pod; it has to be asked, and to"
                " look, at spec.ephemeralContainers in an UPDATE of pods/ephemeralcontainers"
            )


def _gets_by(policy: whook.Policy, reviewed: Fields) -> bool:
    return not _is_asked(policy, reviewed) or _ask(reviewed, policy).verdict == "allows"


def _update(new: Fields, sub_resource: str, old: Fields) -> Fields:
    return _about(
        new,
        operation="UPDATE",
        subResource=sub_resource,
        requestSubResource=sub_resource,
        oldObject=old["request"]["object"],
    )


def _edited(mutated: Fields, edit: Callable[[Fields], None]) -> Fields:
    return _with_containers(mutated, edit) or mutated


def _each(spec: Fields) -> Iterator[Fields]:
    for part in ("initContainers", "containers"):
        yield from spec.get(part) or ()


def _without_containers(spec: Fields) -> None:
    spec["containers"] = []
    spec.pop("initContainers", None)


def _without_resources(spec: Fields) -> None:
    for container in _each(spec):
        container.pop("resources", None)


def _as_ephemeral(spec: Fields) -> None:
    for container in _each(spec):
        for field in NOT_EPHEMERAL:
            container.pop(field, None)


def _complete(spec: Fields) -> None:
    for container in _each(spec):
        container |= {field: value for field, value in NOT_EPHEMERAL.items() if value}


def _as_debug(spec: Fields) -> None:
    _as_ephemeral(spec)
    spec["ephemeralContainers"] = list(_each(spec))
    _without_containers(spec)


# ---------------------------------------------------------------------------- locked out

MANIFESTS = Path(__file__).parent.parent / "manifests"  # whook's own, and whom it is asked about
POD: Fields = {"apiVersion": "v1", "kind": "Pod"}
# What every cluster runs there, as far as policies look at it.
KUBE_SYSTEM: dict[str, Fields] = {
    "coredns": {
        "dnsPolicy": "Default",
        "containers": [
            {
                "name": "coredns",
                "image": "registry.k8s.io/coredns/coredns:v1.14.2",
                "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m"}},
                "securityContext": {"allowPrivilegeEscalation": False},
            }
        ],
    },
    "kube-proxy": {
        "hostNetwork": True,
        "containers": [
            {
                "name": "kube-proxy",
                "image": "registry.k8s.io/kube-proxy:v1.36.0",
                "securityContext": {"privileged": True},
            }
        ],
        "volumes": [{"name": "modules", "hostPath": {"path": "/lib/modules"}}],
    },
}


def _needed() -> Iterator[tuple[str, Fields]]:
    """What must come up, whatever the policies say."""
    for obj in _manifests(str(MANIFESTS)):
        if obj["kind"] == "Deployment":
            yield "whook's own Deployment", obj
            template = obj["spec"]["template"]
            metadata = {"name": "whook-1", "namespace": obj["metadata"]["namespace"]}
            metadata |= template["metadata"]
            yield "whook's own pods", POD | {"metadata": metadata, "spec": template["spec"]}
    for name, spec in KUBE_SYSTEM.items():
        metadata = {"name": f"{name}-1", "namespace": "kube-system", "labels": {"k8s-app": name}}
        yield f"{name} in kube-system", POD | {"metadata": metadata, "spec": spec}


@functools.cache
def _manifests(folder: str) -> list[Fields]:
    with contextlib.suppress(whook.ConfigError):  # somebody took review.py alone, or has no PyYAML
        return [document.value for document in documents.read(folder)]
    return []


def _is_left_out(reviewed: Fields) -> bool:
    """Do the manifests keep the API server from asking whook about it?"""
    if not _manifests(str(MANIFESTS)):
        return False
    hooks, namespaces = webhooks.read_cluster([str(MANIFESTS)])
    request = _parsed(reviewed)
    return bool(hooks) and all(webhooks.stops(hook, request, namespaces)[0] for hook in hooks)


@functools.cache
def _locks_out(policies: tuple[whook.Policy, ...], resource: str) -> list[str]:
    """Of each policy and each of the two namespaces one finding. A policy without a rule line is
    taken to be asked about this resource only."""
    found: dict[tuple[str, str], str] = {}
    for what, obj in _needed():
        reviewed = review.as_review(obj)
        request = reviewed["request"]
        about_it = request["resource"]["resource"] == resource
        asked = [p for p in policies if _is_asked(p, reviewed) and (_rule(p) or about_it)]
        mutated = _about(reviewed, object=review.run(reviewed, asked).after)
        for policy in asked:
            answers = _ask(reviewed, policy, verb="mutate"), _ask(mutated, policy)
            answer = next((each for each in answers if each.verdict != "allows"), None)
            key = (policy.name, request["namespace"])
            if answer and key not in found and not _is_left_out(reviewed):
                found[key] = (
                    f'policy "{policy.name}" locks itself out: it {answer.verdict} {what}'
                    f" {answer.why}, which then can't start again, nor can what needs it; exclude"
                    f" {request['namespace']} in the namespaceSelector of manifests/8*.yaml"
                )
    return list(found.values())


# ---------------------------------------------------------------------------- order


def _order(reviewed: Fields, policies: Sequence[whook.Policy]) -> Iterator[str]:
    """Pairs of policies that make two results in two orders. In what order the items of a list
    stand does not count: it seldom matters, and always differs."""
    movers = [policy for policy in policies if policy.mutate]
    if _made(reviewed, movers) == _made(reviewed, movers[::-1]):
        return
    changes = {p: _ask(reviewed, p, verb="mutate").patch != "[]" for p in movers}
    pairs = [
        pair
        for pair in itertools.combinations(movers, 2)
        if (changes[pair[0]] or changes[pair[1]])
        and _made(reviewed, pair) != _made(reviewed, pair[::-1])
    ]
    for one, other in pairs[:MOST_PAIRS]:
        yield (
            f'policies "{one.name}" and "{other.name}" make another object in the other order:'
            " in two webhooks, the configurations' names decide, and who renames one changes pods;"
            " keep both in one webhook, or make each see what the other does (IfNeeded)"
        )


def _made(reviewed: Fields, policies: Sequence[whook.Policy]) -> Any:
    answer = _ask(reviewed, *policies, verb="mutate")
    if answer.verdict != "allows":
        return answer.verdict
    return _unordered(review.apply(reviewed["request"]["object"], json.loads(answer.patch)))


def _unordered(value: Any) -> Any:
    if type(value) is dict:
        return {key: _unordered(value[key]) for key in sorted(value)}
    if type(value) is list:
        return sorted(
            (_unordered(each) for each in value), key=lambda x: json.dumps(x, sort_keys=True)
        )
    return value
