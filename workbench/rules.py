"""rules: is a policy asked about what it looks at, and about nothing else?

A policy's docstring says in one line what it looks at, up to the first full stop before a space:

    Rule: CREATE, UPDATE of pods, pods/ephemeralcontainers; apps/deployments; DELETE of secrets.

A semicolon parts rules, and one without operations takes those before it. A group other than the
core's stands before its resource. `* of pods` is every operation, `apps/*` every resource of a
group, `pods/*` pods and all its sub-resources, `*` every resource there is, and `*/*/*` every
sub-resource too.

Webhook entries are made from these lines, and configurations, from files or from a cluster, are
judged by them. What the API server does with a configuration is as its own source has it
(k8s.io/apiserver, pkg/admission/plugin/webhook: predicates and generic/webhook.go).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import itertools
import json
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import whook
from workbench import documents

OPERATIONS = ("CREATE", "UPDATE", "DELETE", "CONNECT")
NAME = "kubernetes.io/metadata.name"  # the label in which each namespace carries its name
LABEL = "app.kubernetes.io/name"  # certs.py knows whook's configurations by it
SERVICE = "whook/whook"

# ---------------------------------------------------------------------------- what a cluster has

# By group: the versions, the resources that live in namespaces, and those that don't; after the
# slash, sub-resources. From the discovery of Kubernetes 1.36, where no beta is served by itself.
BUILT_IN = {
    "": (
        "v1",
        "bindings configmaps endpoints events limitranges persistentvolumeclaims/status "
        "pods/attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status "
        "podtemplates replicationcontrollers/scale,status resourcequotas/status secrets "
        "serviceaccounts/token services/proxy,status",
        "componentstatuses namespaces/finalize,status nodes/proxy,status persistentvolumes/status",
    ),
    "admissionregistration.k8s.io": (
        "v1",
        "",
        "mutatingadmissionpolicies mutatingadmissionpolicybindings mutatingwebhookconfigurations "
        "validatingadmissionpolicies/status validatingadmissionpolicybindings "
        "validatingwebhookconfigurations",
    ),
    "apiextensions.k8s.io": ("v1", "", "customresourcedefinitions/status"),
    "apiregistration.k8s.io": ("v1", "", "apiservices/status"),
    "apps": (
        "v1",
        "controllerrevisions daemonsets/status deployments/scale,status replicasets/scale,status "
        "statefulsets/scale,status",
        "",
    ),
    "authentication.k8s.io": ("v1", "", "selfsubjectreviews tokenreviews"),
    "authorization.k8s.io": (
        "v1",
        "localsubjectaccessreviews",
        "selfsubjectaccessreviews selfsubjectrulesreviews subjectaccessreviews",
    ),
    "autoscaling": ("v2 v1", "horizontalpodautoscalers/status", ""),
    "batch": ("v1", "cronjobs/status jobs/status", ""),
    "certificates.k8s.io": ("v1", "", "certificatesigningrequests/approval,status"),
    "coordination.k8s.io": ("v1", "leases", ""),
    "discovery.k8s.io": ("v1", "endpointslices", ""),
    "events.k8s.io": ("v1", "events", ""),
    "flowcontrol.apiserver.k8s.io": (
        "v1",
        "",
        "flowschemas/status prioritylevelconfigurations/status",
    ),
    "networking.k8s.io": (
        "v1",
        "ingresses/status networkpolicies",
        "ingressclasses ipaddresses servicecidrs/status",
    ),
    "node.k8s.io": ("v1", "", "runtimeclasses"),
    "policy": ("v1", "poddisruptionbudgets/status", ""),
    "rbac.authorization.k8s.io": ("v1", "rolebindings roles", "clusterrolebindings clusterroles"),
    "resource.k8s.io": (
        "v1",
        "resourceclaims/status resourceclaimtemplates",
        "deviceclasses resourceslices",
    ),
    "scheduling.k8s.io": ("v1", "", "priorityclasses"),
    "storage.k8s.io": (
        "v1",
        "csistoragecapacities",
        "csidrivers csinodes storageclasses volumeattachments/status volumeattributesclasses",
    ),
}


@functools.cache
def built_in() -> dict[str, dict[str, bool]]:
    """By group: each resource and sub-resource, and whether it lives in a namespace."""
    table: dict[str, dict[str, bool]] = {}
    for group, (_, *columns) in BUILT_IN.items():
        table[group] = {}
        for words, inside in zip(columns, (True, False), strict=True):
            for word in words.split():
                resource, _, subs = word.partition("/")
                names = [f"{resource}/{sub}" for sub in subs.split(",") if sub]
                table[group] |= dict.fromkeys([resource, *names], inside)
    return table


def versions(group: str) -> Sequence[str | None]:
    """The versions of a built-in group, the preferred one first; of others it is not known."""
    return BUILT_IN[group][0].split() if group in BUILT_IN else [None]


def namespaced(group: str, resource: str) -> bool | None:
    """None where it is not known: another group, or a `*`."""
    return built_in().get(group, {}).get(resource.partition("/")[0])


def exists(group: str, resource: str) -> bool:
    """Could a group have this resource? Of a built-in one all are known."""
    return group not in BUILT_IN or any(_fits(resource, name) for name in built_in()[group])


def _fits(pattern: str, resource: str) -> bool:
    """As the API server matches: `pods` is not pods/exec, and `pods/*` is both."""
    pairs = zip(pattern.partition("/")[::2], resource.partition("/")[::2], strict=True)
    return all(part in ("*", own) for part, own in pairs)


# ---------------------------------------------------------------------------- the rule line


class Ask(NamedTuple):
    """One operation on one resource of a group, as `pods`, `pods/exec`, `pods/*` or `*`."""

    operation: str
    group: str
    resource: str

    @property
    def name(self) -> str:
        """The resource as a rule line has it."""
        if self.group == "*":
            return {"*": "*", "*/*": "*/*/*"}.get(self.resource, f"*/{self.resource}")
        return f"{self.group}/{self.resource}" if self.group else self.resource


def write_rule(asks: Iterable[Ask]) -> str:
    """The asks as a rule line has them, without its full stop."""
    operations: dict[str, list[str]] = {}
    for ask in asks:
        operations.setdefault(ask.name, []).append(ask.operation)
    resources: dict[str, list[str]] = {}
    for name, each in operations.items():
        together = ", ".join(sorted(set(each), key=OPERATIONS.index))
        resources.setdefault(together, []).append(name)
    return "; ".join(f"{each} of {', '.join(names)}" for each, names in resources.items())


class Docstring(NamedTuple):
    """A policy's docstring, and the line on which it starts."""

    path: str
    line: int
    text: str

    def fault(self, at: int, message: str, hint: str) -> whook.SetupError:
        """An error that shows where it is."""
        start = self.text.rfind("\n", 0, at) + 1
        line = self.line + self.text.count("\n", 0, at)
        shown = self.text[start:].partition("\n")[0].replace("\t", " ")
        caret = " " * (at - start) + "^"
        return whook.SetupError(f"{self.path}, line {line}: {message}\n  {shown}\n  {caret}", hint)


class Word(NamedTuple):
    text: str
    at: int


EXAMPLE = "as in `Rule: CREATE, UPDATE of pods, pods/ephemeralcontainers; apps/deployments.`"


def rule_of(path: str, source: bytes) -> list[Ask]:
    """What a policy's rule line asks for; SetupError shows the fault in it, or says there is none.
    The source is one that loads."""
    body = ast.parse(source).body
    first = body[0] if body else None
    value = first.value if isinstance(first, ast.Expr) else None
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        raise whook.SetupError(f"{path} has no docstring, so no rule line", EXAMPLE)
    docstring = Docstring(path, value.lineno, value.value)
    found = list(re.finditer(r"(?im)^[ \t]*(rules?[ \t]*:)", docstring.text))
    if not found:
        raise whook.SetupError(f"{path} has no rule line in its docstring", EXAMPLE)
    for match in found:
        if match[1] != "Rule:":
            raise docstring.fault(match.start(1), f"`{match[1]}` is written `Rule:`", EXAMPLE)
    if len(found) > 1:
        raise docstring.fault(found[1].start(1), "a second rule line", "a `;` parts rules")
    return _parse(docstring, found[0].end())


def _parse(docstring: Docstring, start: int) -> list[Ask]:
    stop = re.compile(r"\.(?=\s|\Z)").search(docstring.text, start)
    end = stop.start() if stop else len(docstring.text.rstrip())
    words = [Word(m[0], m.start()) for m in re.finditer(r"[,;]|[^\s,;]+", docstring.text[:end])]
    words = [word for word in words if word.at >= start]
    asks: dict[Ask, None] = {}
    operations: list[str] = []
    for part, close in _split(words, end):
        texts = [word.text for word in part]
        cut = texts.index("of") if "of" in texts else -1
        if cut >= 0:
            given = _items(docstring, part[:cut], part[cut].at, "an operation")
            operations = [each for word in given for each in _operation(docstring, word)]
        elif part and part[0].text.isupper():
            after = next((w for w in part if not w.text.isupper() and w.text != ","), part[0])
            raise docstring.fault(after.at, "`of` is missing after the operations", EXAMPLE)
        elif not operations:
            at = part[0].at if part else close
            raise docstring.fault(at, "the first rule names no operation", EXAMPLE)
        for word in _items(docstring, part[cut + 1 :], close, "a resource"):
            group, resource = _resource(docstring, word)
            asks |= {Ask(each, group, resource): None for each in operations}
    if not stop:
        raise docstring.fault(end, "the rule has no full stop at its end", EXAMPLE)
    return list(asks)


def _split(words: list[Word], end: int) -> Iterator[tuple[list[Word], int]]:
    """The words between semicolons, and where each part ends."""
    part: list[Word] = []
    for word in words:
        if word.text == ";":
            yield part, word.at
            part = []
        else:
            part.append(word)
    yield part, end


def _items(docstring: Docstring, words: list[Word], end: int, what: str) -> list[Word]:
    """The words without the commas that must stand between them."""
    expected = True  # a word, not a comma
    for word in words:
        if (word.text == ",") is expected:
            comma = "a comma, a semicolon or the full stop is missing before this"
            raise docstring.fault(
                word.at, f"{what} is missing here" if expected else comma, EXAMPLE
            )
        expected = not expected
    if expected:
        raise docstring.fault(end, f"{what} is missing here", EXAMPLE)
    return words[::2]


def _operation(docstring: Docstring, word: Word) -> Sequence[str]:
    if word.text == "*":
        return OPERATIONS
    if word.text in OPERATIONS:
        return [word.text]
    hint = _closest(word.text.upper(), OPERATIONS) or f"there are {', '.join(OPERATIONS)} and *"
    raise docstring.fault(word.at, f"`{word.text}` is no operation", hint)


def _resource(docstring: Docstring, word: Word) -> tuple[str, str]:
    """Group and resource: `pods/resize` looks like both, so it counts what is a core resource."""
    if word.text in ("*", "*/*/*"):
        return "*", word.text.removeprefix("*/")
    first, _, rest = word.text.partition("/")
    group, resource = ("", word.text) if not rest or first in built_in()[""] else (first, rest)
    if re.fullmatch(r"([a-z0-9.-]+/)?([a-z0-9-]+|\*)(/([a-z0-9-]+|\*))?", word.text) and (
        exists(group, resource) if group in BUILT_IN else "." in group
    ):
        return group, resource
    known = [Ask("", g, name).name for g, names in built_in().items() for name in names]
    hint = next((f"did you mean `{name}`?" for name in known if name.endswith(f"/{word.text}")), "")
    hint = hint or _closest(word.text.lower(), known)
    hint = hint or "a core resource as `pods`, or a group and its resource as `apps/deployments`"
    message = f"`{word.text}` is no resource of {group or 'the core group'}"
    if group not in BUILT_IN and "." not in group:
        message = f"`{group}` is neither a core resource nor an API group"
    raise docstring.fault(word.at, message, hint)


def _closest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean `{close[0]}`?" if close else ""


# ---------------------------------------------------------------------------- webhook entries

KINDS = {"mutate": "MutatingWebhookConfiguration", "validate": "ValidatingWebhookConfiguration"}
CONFIGURATION = """\
# Made by `python review.py rules` from the rule lines of the policies.
apiVersion: admissionregistration.k8s.io/v1
kind: {kind}
metadata:
  name: {name}
  labels:
    app.kubernetes.io/name: whook
webhooks:
"""
ENTRY = """\
  - name: {name}
    clientConfig:
      # No caBundle: that field is certs.py's, and applying this again keeps it.
      service:
        namespace: {namespace}
        name: {service}
        port: 443
        path: {path}
    rules:
{rules}    namespaceSelector:
      matchLabels:
        whook: enabled
      matchExpressions:
        - key: kubernetes.io/metadata.name
          operator: NotIn
          values: [{left_out}]
    failurePolicy: Ignore
    matchPolicy: Equivalent
{reinvocation}    sideEffects: None
    timeoutSeconds: 5
    admissionReviewVersions: [v1]
"""
RULE = """\
      - apiGroups: [{}]
        apiVersions: [{}]
        resources: [{}]
        operations: [{}]
        scope: {}
"""


class Wanted(NamedTuple):
    """A policy and what its rule line asks for. `source` is its text."""

    policy: whook.Policy
    asks: list[Ask]
    source: bytes

    def of(self, verb: str) -> list[Ask]:
        """What it wants of this call: nothing if it has no such function. mutate is never called
        on DELETE: there is no object."""
        function = self.policy.mutate if verb == "mutate" else self.policy.validate
        return [a for a in self.asks if function and (verb != "mutate" or a.operation != "DELETE")]


def load(paths: Sequence[str]) -> list[Wanted]:
    """The policies behind the paths, each with its rule; SetupError if one does not load, or its
    rule line has a fault."""
    sources = whook.read_sources(paths)
    policies = whook.load_policies(sources, whook.START_BUDGET).policies
    return [Wanted(p, rule_of(p.path, sources[p.path]), sources[p.path]) for p in policies]


def write(wanted: Sequence[Wanted], together: bool, name: str, service: str) -> str:
    """The configurations that ask the policies what they want to be asked, as YAML: an entry for
    each, or one for all."""
    parts = []
    for verb, kind in KINDS.items():
        mine = [each for each in wanted if each.of(verb)]
        groups = [mine] if together else [[each] for each in mine]
        entries = [_entry(verb, group, together, service) for group in groups if group]
        if entries:
            parts.append(CONFIGURATION.format(kind=kind, name=name) + "".join(entries))
    return "---\n".join(parts)


def _entry(verb: str, group: Sequence[Wanted], together: bool, service: str) -> str:
    policy = group[0].policy.name
    namespace, _, name = service.partition("/")
    asks = dict.fromkeys(ask for each in group for ask in each.of(verb))
    return ENTRY.format(
        name=f"{verb}.whook.local" if together else f"{_label(policy)}.whook.local",
        namespace=namespace,
        service=name,
        path=f"/{verb}" if together else f"/{verb}/{policy}",
        rules="".join(_rules(asks)),
        left_out=", ".join(dict.fromkeys(["kube-system", namespace, "whook-renewal"])),
        reinvocation="    reinvocationPolicy: IfNeeded\n" if verb == "mutate" else "",
    )


def _label(policy: str) -> str:
    """A policy's name as the name of a webhook may have it."""
    return re.sub("[^a-z0-9]+", "-", policy.lower()).strip("-") or "policy"


def _rules(asks: Iterable[Ask]) -> Iterator[str]:
    """One rule for all the resources of a group that share operations and scope."""
    operations: dict[tuple[str, str], list[str]] = {}
    for ask in asks:
        operations.setdefault((ask.group, ask.resource), []).append(ask.operation)
    rules: dict[tuple[str, str, str], list[str]] = {}
    for (group, resource), each in operations.items():
        scope = {True: "Namespaced", False: "Cluster", None: '"*"'}[namespaced(group, resource)]
        together = ", ".join(sorted(each, key=OPERATIONS.index))
        rules.setdefault((group, together, scope), []).append(resource)
    for (group, together, scope), resources in rules.items():
        version = versions(group)[0] or "*"
        names = ", ".join(map(_quoted, resources))
        yield RULE.format(_quoted(group), _quoted(version), names, together, scope)


def _quoted(text: str) -> str:
    return text if text and "*" not in text else f'"{text}"'


# ---------------------------------------------------------------------------- configurations

Value = TypeVar("Value")


class Requirement(NamedTuple):
    """One part of a selector: matchLabels are In with one value."""

    key: str
    operator: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        if self.operator == "In" and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        return " ".join([self.key, self.operator, ", ".join(self.values)]).rstrip()

    def met(self, value: str | None) -> bool:
        """By a label of this value; None if there is no such label."""
        if self.operator in ("Exists", "DoesNotExist"):
            return (value is not None) is (self.operator == "Exists")
        return (value in self.values) is (self.operator == "In")


class Case(NamedTuple):
    """What a rule is held against. None: not known, and fits any rule."""

    operation: str
    group: str
    version: str | None
    resource: str
    namespaced: bool | None


class Rule(NamedTuple):
    operations: list[str]
    groups: list[str]
    versions: list[str]
    resources: list[str]
    scope: str

    def misses(self, case: Case) -> dict[str, str]:
        """What of the case the rule is not for; empty if it matches."""
        found = {}
        for what, mine, own in (
            ("operation", self.operations, case.operation),
            ("group", self.groups, case.group),
            ("version", self.versions, case.version),
        ):
            if own is not None and own not in mine and "*" not in mine:
                found[what] = f"{what} {_or(mine)}, and this is {own or _CORE}"
        if not any(_fits(pattern, case.resource) for pattern in self.resources):
            what = (
                "sub-resource" if _base(case.resource) in map(_base, self.resources) else "resource"
            )
            found[what] = f"{_or(self.resources)}, and this is {case.resource}"
        inside = {"Namespaced": True, "Cluster": False}.get(self.scope)
        if None not in (inside, case.namespaced) and inside != case.namespaced:
            lives = "in a namespace" if case.namespaced else "in no namespace"
            found["scope"] = f"scope {self.scope}, and this lives {lives}"
        return found


_CORE = '""'


def _or(items: Sequence[str]) -> str:
    return " or ".join(item or _CORE for item in items) or "nothing"


def _base(resource: str) -> str:
    return resource.partition("/")[0]


class Webhook(NamedTuple):
    """A webhook of a configuration, with the API server's own defaults filled in."""

    configuration: str  # kind and name
    labels: dict[str, str]  # of the configuration
    name: str
    service: str  # namespace/name; "" where there is a url
    path: str
    rules: list[Rule]
    namespaces: list[Requirement]
    objects: list[Requirement]
    conditions: list[str]
    fields: dict[str, Any]  # as they were given

    def __str__(self) -> str:
        return f"{self.name} ({self.configuration})"

    @property
    def static(self) -> bool:
        """Is it from a file of the API server's own? Such names are kept for these."""
        return self.configuration.endswith(".static.k8s.io")

    def matches(self, ask: Ask) -> bool:
        """Does the API server send this, as far as the rules go? In any version that there is."""
        inside = namespaced(ask.group, ask.resource)
        cases = [
            Case(ask.operation, ask.group, version, ask.resource, inside)
            for version in versions(ask.group)
        ]
        return any(not rule.misses(case) for rule in self.rules for case in cases)


def read_cluster(sources: Iterable[str]) -> tuple[list[Webhook], dict[str, dict[str, str]]]:
    """From files, folders or standard input: the webhooks, in the order in which an API server
    asks them, and each Namespace's labels. All else there is passed over."""
    configurations, namespaces = [], {}
    for document in itertools.chain.from_iterable(map(documents.read, sources)):
        value, where = document.value, f"{document.source}, line {document.line}"
        metadata = _take(value, "metadata", dict, {}, where)
        name = _take(metadata, "name", str, "", where)
        labels = _take(metadata, "labels", dict, {}, where)
        if value.get("kind") == "Namespace" and value.get("apiVersion") == "v1":
            namespaces[name] = {NAME: name, **labels}
        elif value.get("kind") in KINDS.values():
            configurations.append((value["kind"], name, labels, value, where))
    configurations.sort(key=lambda each: each[:2])
    webhooks = [
        _webhook(f"{kind} {name}", labels, fields, where)
        for kind, name, labels, value, where in configurations
        for fields in _list_of(value, "webhooks", dict, where)
    ]
    return webhooks, namespaces


def _webhook(
    configuration: str, labels: dict[str, str], fields: dict[str, Any], where: str
) -> Webhook:
    where = f"{where}: {configuration}"
    client = _take(fields, "clientConfig", dict, {}, where)
    service = _take(client, "service", dict, {}, where)
    names = [_take(service, key, str, "", where) for key in ("namespace", "name")]
    url = urllib.parse.urlsplit(_take(client, "url", str, "", where))
    return Webhook(
        configuration,
        labels,
        _take(fields, "name", str, "", where),
        "/".join(names) if service else "",
        url.path or _take(service, "path", str, "", where),
        [_rule(rule, where) for rule in _list_of(fields, "rules", dict, where)],
        _selector(_take(fields, "namespaceSelector", dict, {}, where), where),
        _selector(_take(fields, "objectSelector", dict, {}, where), where),
        [
            " ".join(f"{each.get('name')}: {each.get('expression')}".split())
            for each in _list_of(fields, "matchConditions", dict, where)
        ],
        fields,
    )


def _rule(fields: dict[str, Any], where: str) -> Rule:
    keys = ("operations", "apiGroups", "apiVersions", "resources")
    operations, groups, versions, resources = (_list_of(fields, key, str, where) for key in keys)
    scope = _take(fields, "scope", str, "*", where)
    return Rule(operations, groups, versions, resources, scope)


def _selector(fields: dict[str, Any], where: str) -> list[Requirement]:
    labels = _take(fields, "matchLabels", dict, {}, where)
    found = [Requirement(key, "In", (str(value),)) for key, value in labels.items()]
    for each in _list_of(fields, "matchExpressions", dict, where):
        key, operator = (_take(each, k, str, "", where) for k in ("key", "operator"))
        if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            hint = "there are In, NotIn, Exists and DoesNotExist"
            raise whook.SetupError(f"{where}: a selector's operator is {operator!r}", hint)
        found.append(Requirement(key, operator, tuple(_list_of(each, "values", str, where))))
    return found


def _take(fields: dict[str, Any], key: str, kind: type[Value], default: Value, where: str) -> Value:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        hint = "`kubectl explain validatingwebhookconfiguration.webhooks` names each type"
        raise whook.SetupError(f"{where}: {key} must be {_TYPES[kind]}", hint)
    return value


_TYPES: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}


def _list_of(fields: dict[str, Any], key: str, kind: type[Value], where: str) -> list[Value]:
    items = _take(fields, key, list, [], where)
    return [_take({key: item}, f"{key}", kind, kind(), where) for item in items]


# ---------------------------------------------------------------------------- asked, or not

EXEMPT = {kind for kind in KINDS.values()} | {
    f"{verb}AdmissionPolicy{what}"
    for verb in ("Mutating", "Validating")
    for what in ("", "Binding")
}
EVENTS = ("", "events.k8s.io")  # one kind of object, served in two groups


def asked(
    webhooks: Iterable[Webhook],
    review: dict[str, Any],
    namespaces: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """Would an API server ask these webhooks about this review? A line for each, and one for each
    thing that stops it. `namespaces` has the labels of those whose labels are known."""
    lines = []
    for webhook in webhooks:
        reasons, remarks = stops(webhook, review, namespaces)
        verdict = "is not asked" if reasons else "is asked"
        lines.append(
            " ".join([f"{webhook}", verdict, "" if reasons else "; ".join(remarks)]).rstrip()
        )
        lines += [f"  {reason}" for reason in reasons]
    return lines


def stops(
    webhook: Webhook, review: dict[str, Any], namespaces: Mapping[str, Mapping[str, str]]
) -> tuple[list[str], list[str]]:
    """What keeps the API server from asking, and if nothing does, what else is to be known."""
    request = whook.parse_review(json.dumps(review).encode())
    kind = request.request_kind
    if kind.group == "admissionregistration.k8s.io" and kind.kind in EXEMPT and not webhook.static:
        return [f"an API server asks nobody about a {kind.kind}, but static configurations"], []
    misses, remarks = _by_rules(webhook, _case(request))
    reasons = misses + _by_namespace(webhook, request, namespaces) + _by_object(webhook, request)
    if webhook.conditions:
        remarks.append(
            f"if this holds, which is not evaluated here: {' && '.join(webhook.conditions)}"
        )
    if kind.group in ("authentication.k8s.io", "authorization.k8s.io"):
        remarks.append("up to Kubernetes 1.36")
    return reasons, remarks


def _case(request: whook.Request) -> Case:
    """What the user asked for, before any conversion."""
    group, version, resource = request.request_resource
    sub = request.request_sub_resource or request.sub_resource
    inside = bool(request.namespace) and (group, resource) != ("", "namespaces")
    name = f"{resource}/{sub}" if sub else resource
    return Case(request.operation, group, version, name, inside)


def _by_rules(webhook: Webhook, case: Case) -> tuple[list[str], list[str]]:
    """Why no rule matches: what the nearest ones are not for. And a remark on the one that does."""
    misses = [rule.misses(case) for rule in webhook.rules]
    if not all(misses):
        return [], []
    others, hint = _equivalents(case), ""
    for rule, other in itertools.product(webhook.rules, others):
        if not rule.misses(other):
            hint = f"as {'/'.join(filter(None, [other.group, other.version or rule.versions[0]]))}"
            if not other.version:
                hint += ", if the cluster serves that"
            if webhook.fields.get("matchPolicy") != "Exact":
                return [], [f"({hint}: matchPolicy Equivalent)"]
            hint = f"; matchPolicy is Exact: with Equivalent it would come {hint}"
    fewest = min(map(len, misses), default=0)
    near = [(i, each) for i, each in enumerate(misses, 1) if len(each) == fewest]
    lines = [f"rule {i} is for {'; for '.join(each.values())}{hint}" for i, each in near]
    return lines or ["it has no rules"], []


def _equivalents(case: Case) -> list[Case]:
    """The same object in other versions: those of a built-in group, or else any."""
    groups = EVENTS if case.group in EVENTS and case.resource == "events" else (case.group,)
    return [
        case._replace(group=group, version=version)
        for group in groups
        for version in versions(group)
        if (group, version) != (case.group, case.version)
    ]


def _by_namespace(
    webhook: Webhook, request: whook.Request, namespaces: Mapping[str, Mapping[str, str]]
) -> list[str]:
    name, is_one = request.namespace, _case(request).resource.partition("/")[0] == "namespaces"
    if not name and not is_one:
        return []  # what lives in no namespace is never left out
    labels, known = namespaces.get(name or request.name), True
    if is_one and request.operation in ("CREATE", "UPDATE") and not request.sub_resource:
        labels = _labels(request.object)
    if labels is None:
        labels, known = {}, False
    labels = {NAME: name or request.name, **labels}
    reasons = []
    for each in webhook.namespaces:
        if not each.met(labels.get(each.key)):
            has = f"{each.key}={labels[each.key]}" if each.key in labels else "no such label"
            text = f'namespaceSelector wants {each}, and namespace "{labels[NAME]}" has {has}'
            unknown = f"{text}, as far as is known: --namespace-label tells its labels"
            reasons.append(text if known or each.key == NAME else unknown)
    return reasons


def _by_object(webhook: Webhook, request: whook.Request) -> list[str]:
    """Object or old object has to fit. What has no metadata, as an exec's options, never does."""
    candidates = [x for x in (request.object, request.old_object) if x is not None]
    if request.operation == "CONNECT":
        candidates = [x for x in candidates if "metadata" in x]
    unmet = [
        [each for each in webhook.objects if not each.met(_labels(x).get(each.key))]
        for x in candidates
    ]
    if not webhook.objects or not all(unmet):
        return []
    wanted = ", ".join(map(str, unmet[0] if unmet else webhook.objects))
    return [f"objectSelector wants {wanted}, and the object's labels don't have it"]


def _labels(obj: dict[str, Any]) -> dict[str, str]:
    metadata = obj.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return labels if isinstance(labels, dict) else {}


def show_asked(
    reviews: Iterable[dict[str, Any]], sources: Iterable[str], labels: Iterable[str]
) -> int:
    """Print what asked() says of each review; `labels` are KEY=VALUE of its namespace. Returns the
    exit status: 1 if nobody is asked about some review."""
    webhooks, namespaces = read_cluster(sources)
    given = dict(_pair(label) for label in labels)
    status = 0
    for review in reviews:
        request = whook.parse_review(json.dumps(review).encode())
        case, namespace = _case(request), request.namespace
        known = namespaces | (
            {namespace: {**namespaces.get(namespace, {}), **given}} if given else {}
        )
        lines = asked(webhooks, review, known) or ["there is no webhook"]
        status |= not any(" is asked" in line for line in lines)
        name = f"{namespace}/{request.name}" if namespace else request.name
        print("\n  ".join([f"{case.operation} {case.resource} {name}", *lines]))
    return status


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not key or not equals:
        hint = "as in --namespace-label whook=enabled"
        raise whook.SetupError(f"{label!r} is no label", hint)
    return key, value


# ---------------------------------------------------------------------------- the check


def check(
    webhooks: Sequence[Webhook],
    wanted: Sequence[Wanted],
    namespaces: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """What is wrong between whook's own webhooks and the policies behind them."""
    served = [(webhook, *_behind(webhook, wanted)) for webhook in webhooks]
    findings = [text for each in wanted for text in _unasked(each, served)]
    for webhook, verb, behind in served:
        texts = [*_needless(webhook, verb, behind), *_unreachable(webhook, namespaces)]
        texts += [*_without_exit(webhook), *_settings(webhook, verb)]
        findings += [f"{webhook}: {text}" for text in texts]
    return findings


def is_whooks(webhook: Webhook, service: str) -> bool:
    """It calls whook's Service; or, by a url, in a configuration with whook's label."""
    labelled = not webhook.service and webhook.labels.get(LABEL) == "whook"
    return webhook.service == service or labelled


_PATH = re.compile(r"/(mutate|validate|warn)(?:/([^/]+))?")
Served = tuple[Webhook, str, list[Wanted]]


def _behind(webhook: Webhook, wanted: Sequence[Wanted]) -> tuple[str, list[Wanted]]:
    """The call that it makes, and the policies that take part in it; ("", []) if whook has none."""
    match = _PATH.fullmatch(webhook.path)
    if not match:
        return "", []
    verb = "mutate" if match[1] == "mutate" else "validate"
    return verb, [each for each in wanted if each.of(verb) and match[2] in (None, each.policy.name)]


def _unasked(wanted: Wanted, served: Sequence[Served]) -> Iterator[str]:
    """A policy that is not asked about all that it looks at. One with both functions may have the
    rest of its rule asked of either."""
    missed, asks = [], dict.fromkeys(wanted.asks)
    for verb in KINDS:
        mine = wanted.of(verb)
        hooks = [w for w, called, behind in served if called == verb and wanted in behind]
        left = [ask for ask in mine if not any(hook.matches(ask) for hook in hooks)]
        if mine and left == mine:
            what = write_rule(mine)
            yield f"{_title(wanted)} is never asked to {verb}: no webhook sends it {what}"
            missed += mine
        elif verb == "validate" and mine and (text := _slipping(wanted, hooks)):
            yield text
        asks = {ask: None for ask in asks if ask not in mine or ask in left}
    if rest := [ask for ask in asks if ask not in missed]:
        yield f"{_title(wanted)} is not asked about {write_rule(rest)}"


def _title(wanted: Wanted) -> str:
    return f'policy "{wanted.policy.name}"'


def _slipping(wanted: Wanted, hooks: Sequence[Webhook]) -> str:
    """kubectl debug and a resize change the containers of a pod, but not by an UPDATE of pods."""
    subs = [Ask("UPDATE", "", f"pods/{sub}") for sub in ("ephemeralcontainers", "resize")]
    pods = any(hook.matches(Ask(op, "", "pods")) for hook in hooks for op in ("CREATE", "UPDATE"))
    if not pods or not reads_containers(wanted.source):
        return ""
    if any(hook.matches(ask) for hook in hooks for ask in subs):
        return ""
    return (
        f"{_title(wanted)} reads containers, and neither {subs[0].name} nor {subs[1].name} comes"
        " to it: kubectl debug and a resize slip past it"
    )


def reads_containers(source: bytes) -> bool:
    """Does the source name the lists of a pod's containers? Docstrings are longer texts."""
    pattern = re.compile(r"(.*\.)?(containers|initContainers|ephemeralContainers)")
    nodes = list(ast.walk(ast.parse(source)))
    texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    return "containers_of" in names or any(pattern.fullmatch(text) for text in texts)


def _needless(webhook: Webhook, verb: str, behind: Sequence[Wanted]) -> Iterator[str]:
    """What it asks about though nobody looks at it: each makes the API server wait for nothing."""
    if not behind:
        yield f"whook answers {webhook.path or 'this path'} with 404: no policy is behind it"
        return
    known = [
        Rule([a.operation], [a.group], ["*"], [a.resource], "*") for w in behind for a in w.of(verb)
    ]
    needless = []
    for rule in webhook.rules:
        for resource in rule.resources:
            groups = [g for g in rule.groups if g == "*" or exists(g, resource)]
            if not groups:
                yield f"there is no resource {resource} in group {_or(rule.groups)}"
            operations = OPERATIONS if "*" in rule.operations else rule.operations
            asks = [Ask(each, group, resource) for group in groups for each in operations]
            needless += [
                ask
                for ask in asks
                if all(k.misses(Case(ask[0], ask[1], None, ask[2], None)) for k in known)
            ]
    if needless:
        names = ", ".join(each.policy.name for each in behind)
        text = f"{names} does not look at" if len(behind) == 1 else f"none of {names} looks at"
        yield f"it asks about {write_rule(needless)}, which {text}"


def _unreachable(webhook: Webhook, namespaces: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Selectors that nothing can meet."""
    if key := _hopeless(webhook.objects):
        yield f"objectSelector leaves it without an object: nothing is as it wants {key}"
    if not _reaches_namespaces(webhook):
        return
    if key := _hopeless(webhook.namespaces):
        yield f"namespaceSelector leaves it without a namespace: none is as it wants {key}"
    elif namespaces and not any(_all_met(webhook.namespaces, each) for each in namespaces.values()):
        wanted = ", ".join(map(str, webhook.namespaces))
        yield (
            f"namespaceSelector leaves it without a namespace: none of the {len(namespaces)} that"
            f" there are has {wanted}"
        )


def _all_met(selector: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    return all(each.met(labels.get(each.key)) for each in selector)


def _reaches_namespaces(webhook: Webhook) -> bool:
    """Is anything that it asks about in a namespace, or one? Else its selector means nothing."""
    pairs = [(g, r) for rule in webhook.rules for g in rule.groups for r in rule.resources]
    return any(namespaced(*pair) is not False or _base(pair[1]) == "namespaces" for pair in pairs)


def _hopeless(selector: Sequence[Requirement], **known: str) -> str:
    """The key of which no value, nor its absence, meets every requirement; "" if there is none."""
    for key in dict.fromkeys(each.key for each in selector):
        own = [each for each in selector if each.key == key]
        values: list[str | None] = ["any other", *(v for each in own for v in each.values)]
        values += [None] if key != NAME else []  # which each namespace has
        if key == NAME and "name" in known:
            values = [known["name"]]
        if not any(all(each.met(value) for each in own) for value in values):
            return key
    return ""


def _without_exit(webhook: Webhook) -> Iterator[str]:
    """Fail is what the API server takes where nothing is said. Then whook must be able to start
    while it is down, and so must what runs it."""
    if webhook.fields.get("failurePolicy", "Fail") != "Fail" or not _reaches_namespaces(webhook):
        return
    own = webhook.service.partition("/")[0]
    left_in = [n for n in (own, "kube-system") if n and not _hopeless(webhook.namespaces, name=n)]
    if left_in:
        yield (
            f"failurePolicy is Fail, and namespaceSelector does not leave out {_or(left_in)}: while"
            " whook is down it could keep itself from starting"
        )


def _settings(webhook: Webhook, verb: str) -> Iterator[str]:
    timeout = webhook.fields.get("timeoutSeconds", whook.DEFAULT_TIMEOUT)
    least = int(whook.BUDGET) + 1
    if isinstance(timeout, int) and timeout < least:
        yield (
            f"timeoutSeconds is {timeout}, but the policies alone may take {whook.BUDGET:g} s"
            f" together; {least} or more"
        )
    if verb == "mutate" and webhook.configuration.startswith(KINDS["validate"]):
        yield f"{webhook.path} changes nothing here: a validating webhook's patch is not taken"


# ---------------------------------------------------------------------------- command line

EXAMPLES = """\
examples:
  python review.py rules --policy my-policies > webhooks.yaml
  python review.py rules --policy policies --check manifests/8*.yaml
  kubectl get ns,mutatingwebhookconfigurations,validatingwebhookconfigurations -o yaml |
    python review.py rules --policy my-policies --check -

Exit status: 0 printed, or nothing found; 1 something found, or a fault in a rule line; 2 wrong
usage."""


def main(argv: Sequence[str]) -> int:
    """`review.py rules`; returns the exit status."""
    options = _parse_arguments(argv)
    try:
        wanted = load(options.policy)
        if options.check:
            return _show_check(options, wanted)
    except whook.SetupError as error:
        print(f"whook: error: {error}\nwhook: hint: {error.hint}", file=sys.stderr)
        return 1
    print(write(wanted, options.together, options.name, options.service), end="")
    return 0


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="review rules",
        usage="python review.py rules --policy FILE|DIR... [--together] [--check FILE|DIR|-...]",
        description="Print webhook configurations that ask policies about what their rule lines"
        " say, or check those that are there.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", metavar="FILE|DIR", action="append", required=True)
    parser.add_argument("--together", action="store_true", help="one entry for all policies")
    parser.add_argument("--name", default="whook", help="of the configurations (whook)")
    parser.add_argument("--service", default=SERVICE, metavar="NAMESPACE/NAME", help=f"({SERVICE})")
    parser.add_argument("--check", metavar="FILE", nargs="+", help="- is standard input")
    options = parser.parse_args(argv)
    if not re.fullmatch("[a-z0-9-]+/[a-z0-9-]+", options.service):
        parser.error("--service takes a namespace and a name, as in whook/whook")
    return options


def _show_check(options: argparse.Namespace, wanted: Sequence[Wanted]) -> int:
    webhooks, namespaces = read_cluster(options.check)
    own = [webhook for webhook in webhooks if is_whooks(webhook, options.service)]
    findings = check(own, wanted, namespaces)
    print("\n".join([*findings, f"{len(own)} webhooks of whook's, {len(wanted)} policies, "
                     f"{len(findings)} findings"]))  # fmt: skip
    return 1 if findings else 0
