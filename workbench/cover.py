"""What of a policy did its cases not reach? Lines, and branches by line arcs, as sys.settrace
tells them on every Python from 3.11 on.

Only what stands in functions counts: the rest runs when the file is loaded. A branch whose two
ways stand on one line (`if x: return`, `a or b`) can't be told apart and is not looked at.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Arc = tuple[int, int]  # from one line to the next; 0 is outside of the function


class Cover:
    """The arcs that were taken in some files while watch() was entered, by file."""

    def __init__(self) -> None:
        self.arcs: dict[str, set[Arc]] = {}

    @contextlib.contextmanager
    def watch(self, paths: Iterable[str]) -> Iterator[None]:
        """Note the arcs. review.TimeLimit interrupts no policy that is being traced: enter this
        only for policies that are known to end."""
        for path in paths:
            self.arcs.setdefault(path, set())
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)

    def _called(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        arcs = self.arcs.get(frame.f_code.co_filename)
        if arcs is None:
            return None
        at: int | None = frame.f_lineno
        arcs.add((0, frame.f_lineno))

        def follow(frame: types.FrameType, event: str, argument: Any) -> Any:
            nonlocal at
            if event == "exception" and argument[0] is not StopIteration:
                at = None  # what comes next is no branch
            elif event in ("line", "return"):
                to = frame.f_lineno if event == "line" else 0
                arcs.add((at or 0, to))
                at = to
            return follow

        return follow


class Branch(NamedTuple):
    """A statement that goes two ways: on to its body, or past it."""

    kind: str
    header: range
    body: range

    def missed(self, arcs: set[Arc]) -> Iterator[str]:
        left = {to for at, to in arcs if at in self.header and to not in self.header}
        into, past = WAYS[self.kind]
        if any(to in self.header for _, to in arcs):
            if not left & {*self.body}:
                yield f"{self.header[0]}: {into}"
            if not left - {*self.body}:
                yield f"{self.header[0]}: {past}"


WAYS = {
    "If": ("this is never true", "this is never false"),
    "While": ("this loop never begins", "this loop never comes to its end"),
    "For": ("this loop never has an item", "this loop never comes to its end"),
    "match_case": ("this never matches", "this always matches"),
}


def missed(path: str, source: bytes, arcs: set[Arc]) -> list[str]:
    """What no arc reached, in the order of the lines: "12-14: no case comes here"."""
    reached = {to for _, to in arcs}
    found = [(lines[0], _as_text(lines)) for lines in _runs(_lines(path, source), reached)]
    branches = sorted(_branches(ast.parse(source)), key=lambda each: each.header[0])
    found += [(b.header[0], text) for b in branches for text in b.missed(arcs)]
    return [text for _, text in sorted(found)]


def _as_text(lines: list[int]) -> str:
    place = f"{lines[0]}-{lines[-1]}" if len(lines) > 1 else str(lines[0])
    return f"{place}: no case comes here"


def _runs(lines: list[int], reached: set[int]) -> Iterator[list[int]]:
    """The lines that were not reached; those that follow each other, together."""
    for hit, run in itertools.groupby(lines, lambda line: line in reached):
        if not hit:
            yield list(run)


def _lines(path: str, source: bytes) -> list[int]:
    """The lines of functions on which something happens."""
    module = compile(source, path, "exec", dont_inherit=True)
    return sorted({line for code in _functions(module, False) for line in _lines_of(code)})


def _functions(code: types.CodeType, within: bool) -> Iterator[types.CodeType]:
    """The code of functions; a comprehension outside of any runs with the file."""
    for inner in code.co_consts:
        if type(inner) is types.CodeType and inner.co_name != "__annotate__":
            named = inner.co_name[0] != "<" or inner.co_name == "<lambda>"
            function = bool(inner.co_flags & OPTIMIZED) and (within or named)
            yield from (inner,) if function else ()
            yield from _functions(inner, function)


def _lines_of(code: types.CodeType) -> set[int]:
    lines = {line for _, _, line in code.co_lines() if line}
    return lines - {code.co_firstlineno} or lines  # the `def` itself runs with the file


OPTIMIZED = 0x1  # flag of a function's code; a module and a class have it not


def _branches(tree: ast.AST) -> set[Branch]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = [each for each in ast.walk(tree) if isinstance(each, functions)]
    found = {branch for each in inside for node in ast.walk(each) for branch in _branch(node)}
    return {branch for branch in found if branch.body[0] not in branch.header}


def _branch(node: ast.AST) -> Iterator[Branch]:
    head: ast.expr | ast.pattern
    if isinstance(node, ast.match_case):
        always = isinstance(node.pattern, ast.MatchAs) and not node.pattern.pattern
        if always and not node.guard:
            return
        head, line = node.guard or node.pattern, node.pattern.lineno
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Constant):
        head, line = node.test, node.lineno
    elif isinstance(node, ast.For):
        head, line = node.iter, node.lineno
    else:
        return
    header = range(line, (head.end_lineno or line) + 1)
    body = range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)
    yield Branch(type(node).__name__, header, body)
