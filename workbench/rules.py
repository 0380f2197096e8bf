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
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import whook
from workbench.webhooks import (
    BUILT_IN,
    KINDS,
    NAME,
    SUB_RESOURCES,
    Case,
    Requirement,
    Rule,
    Webhook,
    built_in,
    either,
    exists,
    namespaced,
    possible,
    read_cluster,
    versions,
)

OPERATIONS = ("CREATE", "UPDATE", "DELETE", "CONNECT")
LABEL = "app.kubernetes.io/name"  # certs.py knows whook's configurations by it
SERVICE = "whook/whook"

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
        together = ", ".join(sorted({*each}, key=[*OPERATIONS, *each].index))
        resources.setdefault(together, []).append(name)
    return "; ".join(f"{each} of {', '.join(names)}" for each, names in resources.items())


class Docstring(NamedTuple):
    """A policy's docstring, and the line on which it starts."""

    path: str
    line: int
    text: str

    def fault(self, at: int, message: str, hint: str) -> whook.ConfigError:
        """An error that shows where it is."""
        start = self.text.rfind("\n", 0, at) + 1
        line = self.line + self.text.count("\n", 0, at)
        shown = self.text[start:].partition("\n")[0].replace("\t", " ")
        caret = " " * (at - start) + "^"
        return whook.ConfigError(f"{self.path}, line {line}: {message}\n  {shown}\n  {caret}", hint)


class Word(NamedTuple):
    text: str
    at: int


EXAMPLE = "as in `Rule: CREATE, UPDATE of pods, pods/ephemeralcontainers; apps/deployments.`"


def rule_of(path: str, source: bytes) -> list[Ask]:
    """What a policy's rule line asks for; ConfigError shows the fault in it, or says there is none.
    The source is one that loads."""
    body = ast.parse(source).body
    first = body[0] if body else None
    value = first.value if isinstance(first, ast.Expr) else None
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        raise whook.ConfigError(f"{path} has no docstring, so no rule line", EXAMPLE)
    docstring = Docstring(path, value.lineno, value.value)
    found = list(re.finditer(r"(?im)^[ \t]*(rules?[ \t]*:)", docstring.text))
    if not found:
        raise whook.ConfigError(f"{path} has no rule line in its docstring", EXAMPLE)
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
            if not any(possible(each, resource) for each in operations):
                raise _impossible(docstring, word, operations)
            asks |= {Ask(each, group, resource): None for each in operations}
    if not stop:
        raise docstring.fault(end, "the rule has no full stop at its end", EXAMPLE)
    return list(asks)


def _impossible(docstring: Docstring, word: Word, operations: Sequence[str]) -> whook.ConfigError:
    only = SUB_RESOURCES.get(word.text.rpartition("/")[2])
    hint = f"it comes by {only}" if only else "nobody is asked about what is only read"
    if only is None:
        hint = "CONNECT is to a sub-resource, as in CONNECT of pods/exec"
    message = f"there is no {either(operations)} of {word.text}"
    return docstring.fault(word.at, message, hint)


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
    """The policies behind the paths, each with its rule; ConfigError if one does not load, or its
    rule line has a fault."""
    sources = whook.read_sources(paths)
    policies = whook.load_policies(sources, whook.START_TIME_LIMIT).policies
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
    """A policy that is not asked about all that it looks at. One with both functions may have a
    part of its rule asked of either."""
    title = f'policy "{wanted.policy.name}"'
    real = [ask for ask in wanted.asks if possible(ask.operation, ask.resource)]
    left = real
    for verb in KINDS:
        mine = [ask for ask in wanted.of(verb) if ask in real]
        hooks = [w for w, called, behind in served if called == verb and wanted in behind]
        sent = {ask for ask in mine if any(_sends(hook, ask) for hook in hooks)}
        if mine and not sent:
            yield f"{title} is never asked to {verb}: no webhook sends it {write_rule(mine)}"
        elif verb == "validate" and _slips_past(wanted, hooks):
            yield (
                f"{title} reads containers, and neither pods/ephemeralcontainers nor pods/resize"
                " comes to it: kubectl debug and a resize slip past it"
            )
        left = [ask for ask in left if ask not in (sent or mine)]
    if left:
        yield f"{title} is not asked about {write_rule(left)}"


def _sends(webhook: Webhook, ask: Ask) -> bool:
    """A policy that takes any resource is asked if it is asked about one."""
    some = "*" in ask.name and any(_covers(ask, each) for each in _asks_of(webhook))
    return some or webhook.matches(*ask)


def _asks_of(webhook: Webhook) -> Iterator[Ask]:
    """All that its rules name, but for what does not exist."""
    for rule in webhook.rules:
        operations = OPERATIONS if "*" in rule.operations else rule.operations
        for resource, group, operation in itertools.product(
            rule.resources, rule.groups, operations
        ):
            if exists(group, resource) and possible(operation, resource):
                yield Ask(operation, group, resource)


def _covers(wide: Ask, ask: Ask) -> bool:
    rule = Rule([wide.operation], [wide.group], ["*"], [wide.resource], "*")
    return not rule.misses(Case(ask.operation, ask.group, None, ask.resource, None))


def _slips_past(wanted: Wanted, hooks: Sequence[Webhook]) -> bool:
    """kubectl debug and a resize change the containers of a pod, but not by an UPDATE of pods."""
    pods = any(hook.matches(op, "", "pods") for hook in hooks for op in ("CREATE", "UPDATE"))
    subs = ("pods/ephemeralcontainers", "pods/resize")
    come = any(hook.matches("UPDATE", "", sub) for hook in hooks for sub in subs)
    return pods and not come and reads_containers(wanted.source)


def reads_containers(source: bytes) -> bool:
    """Does the source name the lists of a pod's containers? Docstrings are longer texts."""
    pattern = re.compile(r"(.*\.)?(containers|initContainers|ephemeralContainers)")
    nodes = list(ast.walk(ast.parse(source)))
    texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    return "containers_of" in names or any(pattern.fullmatch(text) for text in texts)


def _needless(webhook: Webhook, verb: str, behind: Sequence[Wanted]) -> Iterator[str]:
    """What it asks about though nobody looks at it: the API server waits for nothing."""
    if not behind:
        answer = "passes all of it" if webhook.path.count("/") == 1 else "answers 404"
        yield f"no policy is behind {webhook.path or 'its path'}: whook {answer}"
        return
    for rule in webhook.rules:
        for resource in rule.resources:
            if not any(exists(group, resource) for group in rule.groups):
                yield f"there is no resource {resource} in group {either(rule.groups)}"
    wide = [ask for each in behind for ask in each.of(verb)]
    needless = [ask for ask in _asks_of(webhook) if not any(_covers(w, ask) for w in wide)]
    if needless:
        yield f"asks about {write_rule(needless)}, which no policy behind {webhook.path} looks at"


def _unreachable(webhook: Webhook, namespaces: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Selectors that nothing can meet, or none of a cluster's namespaces does."""
    if key := _hopeless(webhook.objects):
        yield f"objectSelector leaves it without an object: nothing is as it wants {key}"
    if not _reaches_namespaces(webhook):
        return
    whole = "kube-system" in namespaces  # so they are a cluster's, and all of them
    found = any(_all_met(webhook.namespaces, each) for each in namespaces.values())
    if key := _hopeless(webhook.namespaces):
        yield f"namespaceSelector leaves it without a namespace: none is as it wants {key}"
    elif whole and not found:
        wanted = ", ".join(map(str, webhook.namespaces))
        which = f"none of the {len(namespaces)} that there are has {wanted}"
        yield f"namespaceSelector leaves it without a namespace: {which}"


def _all_met(selector: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    return all(each.met(labels.get(each.key)) for each in selector)


def _reaches_namespaces(webhook: Webhook) -> bool:
    """Is anything that it asks about in a namespace, or one? Else its selector means nothing."""
    pairs = [(g, r) for rule in webhook.rules for g in rule.groups for r in rule.resources]
    return any(namespaced(*pair) is not False or pair[1].startswith("namespaces") for pair in pairs)


def _hopeless(selector: Sequence[Requirement], namespace: str | None = None) -> str:
    """The key of which no value, nor its absence, meets every requirement; "" if there is none.
    The selector may be held against the namespace of that name only, whatever its labels."""
    for key in dict.fromkeys(each.key for each in selector):
        own = [each for each in selector if each.key == key]
        values: list[str | None] = ["any other", *(v for each in own for v in each.values)]
        values += [None] if key != NAME else []  # which each namespace has
        if key == NAME and namespace:
            values = [namespace]
        if not any(all(each.met(value) for each in own) for value in values):
            return key
    return ""


def _without_exit(webhook: Webhook) -> Iterator[str]:
    """Fail is what the API server takes where nothing is said. Then whook must be able to start
    while it is down, and so must what runs it."""
    policy = webhook.fields.get("failurePolicy") or "Fail"
    own = [name for name in (webhook.service.partition("/")[0], "kube-system") if name]
    left_in = [name for name in own if not _hopeless(webhook.namespaces, name)]
    if policy == "Fail" and left_in and _reaches_namespaces(webhook):
        yield (
            f"failurePolicy is Fail, and namespaceSelector does not leave out {either(left_in)}:"
            " while whook is down it could keep itself from starting"
        )


def _settings(webhook: Webhook, verb: str) -> Iterator[str]:
    timeout = webhook.fields.get("timeoutSeconds", whook.DEFAULT_REVIEW_TIMEOUT)
    least = int(whook.TIME_LIMIT) + 1
    if isinstance(timeout, int) and timeout < least:
        yield (
            f"timeoutSeconds is {timeout}, but the policies alone may take {whook.TIME_LIMIT:g} s"
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
    """`review.py rules`; returns the exit status. ConfigError is for the caller to show."""
    options = _parse_arguments(argv)
    wanted = load(options.policy)
    if options.check:
        return _show_check(options, wanted)
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
    counts = {"webhooks of whook's": own, "policies": wanted, "findings": findings}
    print(*findings, ", ".join(f"{name}: {len(x)}" for name, x in counts.items()), sep="\n")
    return 1 if findings else 0
