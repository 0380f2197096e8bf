"""webhooks: whom does an API server ask about an object, and if nobody, what stops it?

Reads webhook configurations, from files or as they are in a cluster, and goes by them as the API
server does: its own source is k8s.io/apiserver, pkg/admission/plugin/webhook, predicates/ and
generic/webhook.go. test_e2e holds the two together. No cluster is asked, and no expression of a
matchCondition is evaluated.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import whook
from workbench import documents

NAME = "kubernetes.io/metadata.name"  # the label in which each namespace carries its name
KINDS = {"mutate": "MutatingWebhookConfiguration", "validate": "ValidatingWebhookConfiguration"}

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


# The one operation that there is on a sub-resource of this name; nobody is asked about reading.
SUB_RESOURCES = {
    **dict.fromkeys(("attach", "exec", "portforward", "proxy"), "CONNECT"),
    **dict.fromkeys(("binding", "eviction", "token"), "CREATE"),
    **dict.fromkeys(("approval", "ephemeralcontainers", "finalize"), "UPDATE"),
    **dict.fromkeys(("resize", "scale", "status"), "UPDATE"),
    "log": "",
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


def possible(operation: str, resource: str) -> bool:
    """Is there such an operation? Who connects, connects to a sub-resource."""
    _, slash, sub = resource.partition("/")
    return SUB_RESOURCES.get(sub, operation) == operation and (
        operation != "CONNECT" or bool(slash)
    )


def _fits(pattern: str, resource: str) -> bool:
    """As the API server matches: `pods` is not pods/exec, and `pods/*` is both."""
    pairs = zip(pattern.partition("/")[::2], resource.partition("/")[::2], strict=True)
    return all(part in ("*", own) for part, own in pairs)


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
    resource: str  # with its sub-resource, as in pods/exec
    namespaced: bool | None


class Rule(NamedTuple):
    """One rule of a webhook; `*` stands for everything."""

    operations: list[str]
    groups: list[str]
    versions: list[str]
    resources: list[str]
    scope: str

    def misses(self, case: Case) -> list[str]:
        """What of the case the rule is not for; empty if it matches."""
        found = [
            f"{what} {either(mine)}, and this is {either([own])}"
            for what, mine, own in (
                ("operation", self.operations, case.operation),
                ("group", self.groups, case.group),
                ("version", self.versions, case.version),
            )
            if own is not None and own not in mine and "*" not in mine
        ]
        if not any(_fits(pattern, case.resource) for pattern in self.resources):
            found.append(f"{either(self.resources)}, and this is {case.resource}")
        inside = {"Namespaced": True, "Cluster": False}.get(self.scope, case.namespaced)
        if case.namespaced not in (None, inside):
            lives = "in a namespace" if case.namespaced else "in none"
            found.append(f"scope {self.scope}, and this lives {lives}")
        return found


def either(items: Sequence[str]) -> str:
    return " or ".join(item or '""' for item in items) or "nothing"


class Webhook(NamedTuple):
    """A webhook of a configuration."""

    configuration: str  # kind and name
    labels: dict[str, str]  # of the configuration
    name: str
    service: str  # namespace/name; "" where there is a url
    path: str
    rules: list[Rule]
    namespaces: list[Requirement]
    objects: list[Requirement]
    conditions: list[str]  # name and expression of each matchCondition
    fields: dict[str, Any]  # all, as they were given

    def __str__(self) -> str:
        return f"{self.name} ({self.configuration})"

    @property
    def static(self) -> bool:
        """Is it from a file of the API server's own? Such names are kept for these."""
        return self.configuration.endswith(".static.k8s.io")

    def matches(self, operation: str, group: str, resource: str) -> bool:
        """Is this sent, in any version that there is, as far as the rules go?"""
        inside = namespaced(group, resource)
        cases = [Case(operation, group, each, resource, inside) for each in versions(group)]
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
    _, _, url = _take(client, "url", str, "", where).partition("://")
    return Webhook(
        configuration,
        labels,
        _take(fields, "name", str, "", where),
        "/".join(names) if service else "",
        f"/{url.partition('/')[2]}" if url else _take(service, "path", str, "", where),
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
            raise whook.ConfigError(f"{where}: a selector's operator is {operator!r}", hint)
        found.append(Requirement(key, operator, tuple(_list_of(each, "values", str, where))))
    return found


def _take(fields: dict[str, Any], key: str, kind: type[Value], default: Value, where: str) -> Value:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        hint = "`kubectl explain validatingwebhookconfiguration.webhooks` names each type"
        raise whook.ConfigError(f"{where}: {key} must be {_TYPES[kind]}", hint)
    return value


_TYPES: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}


def _list_of(fields: dict[str, Any], key: str, kind: type[Value], where: str) -> list[Value]:
    items = _take(fields, key, list, [], where)
    return [_take({key: item}, key, kind, kind(), where) for item in items]


# ---------------------------------------------------------------------------- asked, or not

EXEMPT = {*KINDS.values()} | {
    f"{verb}AdmissionPolicy{what}"
    for verb in ("Mutating", "Validating")
    for what in ("", "Binding")
}
REVIEWS = ("authentication.k8s.io", "authorization.k8s.io")  # of which nothing is stored
EVENTS = ("", "events.k8s.io")  # one kind of object, served in two groups
Namespaces = Mapping[str, Mapping[str, str]]  # the labels of those whose labels are known


def show_asked(
    reviews: Iterable[tuple[documents.Document, dict[str, Any]]],
    sources: Iterable[str],
    labels: Iterable[str],
) -> int:
    """Print what asked() says of each review; `labels` are KEY=VALUE, of each one's namespace.
    Returns the exit status: 1 if there is a review about which nobody is asked."""
    webhooks, namespaces = read_cluster(sources)
    given = dict(_pair(label) for label in labels)
    status = 0
    for document, review in reviews:
        try:
            request = whook.parse_review(json.dumps(review).encode())
        except whook.HTTPError as refusal:
            where = f"{document.source}, line {document.line}"
            raise whook.ConfigError(f"{where}: {refusal.message}", documents.HINT) from None
        space, case = request.namespace, _case(request)
        known = namespaces | ({space: {**namespaces.get(space, {}), **given}} if given else {})
        status |= all(stops(webhook, request, known)[0] for webhook in webhooks)
        name = f"{space}/{request.name}" if space else request.name
        print(f"{case.operation} {case.resource} {name}")
        print("".join(f"  {line}\n" for line in asked(webhooks, review, known)), end="")
    return status


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not key or not equals:
        hint = "as in --namespace-label whook=enabled"
        raise whook.ConfigError(f"{label!r} is no label", hint)
    return key, value


def asked(webhooks: Iterable[Webhook], review: dict[str, Any], namespaces: Namespaces) -> list[str]:
    """Would an API server ask these webhooks about this review? A line for each, and one more for
    each thing that stops it."""
    request = whook.parse_review(json.dumps(review).encode())
    lines = []
    for webhook in webhooks:
        reasons, remarks = stops(webhook, request, namespaces)
        lines.append(f"{webhook} is not asked" if reasons else f"{webhook} is asked")
        lines += [f"  {line}" for line in reasons or remarks]
    return lines or ["there is no webhook to be asked"]


def stops(
    webhook: Webhook, request: whook.Request, namespaces: Namespaces
) -> tuple[list[str], list[str]]:
    """What keeps the API server from asking, and if nothing does, what else is to be known."""
    kind = request.request_kind
    if kind.group == "admissionregistration.k8s.io" and kind.kind in EXEMPT and not webhook.static:
        return [f"about a {kind.kind} only static configurations are asked"], []
    misses, remarks = _by_rules(webhook, _case(request))
    reasons = misses + _by_namespace(webhook, request, namespaces) + _by_object(webhook, request)
    remarks += [f"if this holds, which is not evaluated here: {x}" for x in webhook.conditions]
    if kind.group in REVIEWS:
        remarks.append("up to Kubernetes 1.36; later, nobody is asked about these")
    return reasons, remarks


def _case(request: whook.Request) -> Case:
    """What the user asked for, before any conversion."""
    group, version, resource = request.request_resource
    inside = bool(request.namespace) and (group, resource) != ("", "namespaces")
    sub = request.request_sub_resource or request.sub_resource
    return Case(request.operation, group, version, f"{resource}/{sub}".rstrip("/"), inside)


def _by_rules(webhook: Webhook, case: Case) -> tuple[list[str], list[str]]:
    """What the nearest rules are not for; or, if one matches, how the object comes to it."""
    misses = [rule.misses(case) for rule in webhook.rules]
    if not all(misses) or not misses:
        return ([] if misses else ["it has no rules"]), []
    exact, hint = webhook.fields.get("matchPolicy") == "Exact", ""
    for rule, other in itertools.product(webhook.rules, _equivalents(case)):
        if not rule.misses(other):
            form = "/".join(filter(None, [other.group, other.version or rule.versions[0]]))
            known = "" if other.version else ", if the cluster serves that too"
            hint = f"as {form}, by matchPolicy Equivalent{known}"
            break
    if hint and not exact:
        return [], [hint]
    fewest = min(map(len, misses))
    end = f" (it would come {hint})" if hint else ""
    lines = [f"rule {n} is for {'; for '.join(each)}{end}" for n, each in enumerate(misses, 1)]
    return [line for line, each in zip(lines, misses, strict=True) if len(each) == fewest], []


def _equivalents(case: Case) -> list[Case]:
    """The same object in each of its versions; in any, where they are not known."""
    groups = EVENTS if case.group in EVENTS and case.resource == "events" else (case.group,)
    return [
        case._replace(group=group, version=version)
        for group in groups
        for version in versions(group)
    ]


def _by_namespace(webhook: Webhook, request: whook.Request, namespaces: Namespaces) -> list[str]:
    """Requirements that the labels of the object's namespace don't meet, or a Namespace's own."""
    resource = _case(request).resource
    if not request.namespace and not resource.startswith("namespaces"):
        return []  # what lives in no namespace is never left out
    name = request.namespace or request.name
    labels = namespaces.get(name)
    if resource == "namespaces" and request.operation in ("CREATE", "UPDATE"):
        labels = _labels(request.object)
    found, reasons = {NAME: name, **(labels or {})}, []
    for each in webhook.namespaces:
        if not each.met(found.get(each.key)):
            has = f'namespace "{name}" has {each.key}={found.get(each.key)}'
            if each.key not in found:
                has = f'namespace "{name}" has no such label'
            if labels is None and each.key != NAME:
                has = f'the labels of namespace "{name}" are not known: say --namespace-label'
            reasons.append(f"namespaceSelector wants {each}, and {has}")
    return reasons


def _by_object(webhook: Webhook, request: whook.Request) -> list[str]:
    """Object or old object has to fit. What has no metadata, as an exec's options, never does."""
    either = [x for x in (request.object, request.old_object) if x is not None]
    if request.operation == "CONNECT":
        either = [x for x in either if "metadata" in x]
    unmet = [[e for e in webhook.objects if not e.met(_labels(x).get(e.key))] for x in either]
    if not webhook.objects or not all(unmet):
        return []
    wanted = ", ".join(map(str, unmet[0] if unmet else webhook.objects))
    return [f"objectSelector wants {wanted}, which the object's labels don't meet"]


def _labels(obj: dict[str, Any]) -> dict[str, str]:
    metadata = obj.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return labels if isinstance(labels, dict) else {}
