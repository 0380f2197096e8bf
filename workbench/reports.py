"""What came of many reviews: a table by policy and namespace, JSON for programs, JUnit for CI."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax import saxutils

from workbench import documents

if TYPE_CHECKING:
    from review import Outcome


def as_entry(document: documents.Document, outcome: Outcome) -> dict[str, Any]:
    """One outcome for `-o json`: what each policy did, by its name."""
    request, answers = outcome.request, outcome.responses.values()
    return {
        "source": document.source,
        "line": document.line,
        "operation": request.operation,
        "kind": request.kind.kind,
        "namespace": request.namespace,
        "name": request.name,
        "good": outcome.good,
        "denied": outcome.denials,
        "changed": {step.policy: step.patch for step in outcome.steps if step.patch},
        "failed": outcome.failures,
        "notIdempotent": outcome.not_idempotent,
        "refused": outcome.refusals,
        "warnings": [warning for answer in answers for warning in answer.warnings],
        "audit": {key: value for answer in answers for key, value in answer.audit.items()},
        "lints": outcome.lints,
    }


class Summary:
    """How many objects each policy would deny, change or fail on, by namespace."""

    COLUMNS = ("would deny", "would fail", "not idempotent", "would change")  # the worst first

    def __init__(self) -> None:
        self.objects: collections.Counter[str] = collections.Counter()  # by namespace
        self.counts: dict[tuple[str, str], collections.Counter[str]] = {}

    def add(self, outcome: Outcome) -> None:
        namespace = outcome.request.namespace
        self.objects[namespace] += 1
        changed = [step.policy for step in outcome.steps if step.patch]
        found = (outcome.denials, outcome.failures, outcome.not_idempotent, changed)
        for column, names in zip(self.COLUMNS, found, strict=True):
            for policy in names:
                self.counts.setdefault((policy, namespace), collections.Counter())[column] += 1

    def render(self) -> str:
        """A table, and a line for those without a place in it."""
        rows = [["policy", "namespace", "objects", *self.COLUMNS]]
        for (policy, namespace), counts in sorted(self.counts.items(), key=self.rank):
            numbers = [self.objects[namespace], *(counts[column] for column in self.COLUMNS)]
            rows.append([policy, namespace or "-", *map(str, numbers)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                c.ljust(w) if i < 2 else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        total = f"{self.objects.total()} reviewed, namespaces: {len(self.objects)}"
        return "\n".join([*lines, total] if self.counts else [f"{total}; none denied or changed"])

    def rank(self, row: tuple[tuple[str, str], collections.Counter[str]]) -> Any:
        (policy, namespace), counts = row
        return [-counts[column] for column in self.COLUMNS], policy, namespace


def junit(suite: str, results: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """A JUnit report. A result is a class, a name, and the lines of what is wrong, if anything."""
    quote, cases, failed = saxutils.quoteattr, [], 0
    for group, name, wrong in results:
        case = f"  <testcase classname={quote(_xml(group))} name={quote(_xml(name))}"
        failed += bool(wrong)
        if wrong:
            first, text = quote(_xml(wrong[0])), saxutils.escape(_xml("\n".join(wrong)))
            cases.append(f"{case}>\n    <failure message={first}>{text}</failure>\n  </testcase>")
        else:
            cases.append(f"{case}/>")
    counts = f'tests="{len(cases)}" failures="{failed}" errors="0"'
    start = f"<testsuite name={quote(_xml(suite))} {counts}>"
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', start, *cases, "</testsuite>"])


def _xml(text: str) -> str:
    """A text without the characters that XML can't hold."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
