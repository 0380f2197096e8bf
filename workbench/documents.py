"""Kubernetes objects out of YAML and JSON, as kubectl reads them: no cluster is asked.

A source is a file, a folder or standard input. It is read in pieces, and an object is handed on
before the next one is read: of a List in JSON, too, only one item is held at a time. Every error
is a whook.ConfigError that names source and line.

YAML is what go-yaml v2, which kubectl uses, makes of it: `on` is true and 0644 is 420, but 12:30
and 2026-01-01 stay texts. What it lets pass and an API server refuses is an error here: a key that
stands there twice. YAML needs PyYAML, of which only the parser is used, never its constructors.
A number is the same in YAML and JSON: the number that an API server sends for it.
"""

from __future__ import annotations

import decimal
import io
import json
import marshal
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TextIO

import whook

CHUNK = 64 * 1024  # characters read at a time
LEVELS = 200  # how deep values may be nested: Python runs out of stack at a thousand calls
MAX_COPIED = whook.MAX_BODY  # bytes that the aliases of a YAML document may unfold into
ENDINGS = (".yaml", ".yml", ".json")
HINT = "give Kubernetes objects, or AdmissionReviews, as YAML or JSON"
FOLDER_HINT = "of a folder *.yaml, *.yml and *.json are read, and no folder in it"


class Document(NamedTuple):
    """An object, where it comes from, and the line on which it starts."""

    value: dict[str, Any]
    source: str
    line: int


Items = Iterator[tuple[Any, int]]  # a value and its line
Fields = Iterator[tuple[str, Any]]  # of one object; a list in `items` is an iterator, Items


def read(source: str) -> Iterator[Document]:
    """The objects in a file, in the files of a folder (not in folders below it, as kubectl does),
    or in standard input ("-"), in their order; ConfigError if there is none."""
    found, name = False, "standard input" if source == "-" else source
    try:
        for path in _files(source):
            name = "standard input" if path == "-" else path
            with _open(path) as stream:
                for document in _documents(stream, name):
                    found = True
                    yield document
    except OSError as error:
        raise whook.ConfigError(f"can't read {name}: {error.strerror}", HINT) from None
    except UnicodeDecodeError:
        raise whook.ConfigError(f"can't read {name}: it is not UTF-8", HINT) from None
    if not found:
        a_folder = Path(source).is_dir()
        name = source if a_folder else name
        raise whook.ConfigError(f"{name} holds nothing", FOLDER_HINT if a_folder else HINT)


def parse(text: str, source: str) -> Iterator[Document]:
    """The objects in a text; `source` is what errors call it."""
    return _documents(io.StringIO(text), source)


def _files(source: str) -> list[str]:
    folder = Path(source)
    if source == "-" or not folder.is_dir():
        return [source]
    files = [p for p in folder.iterdir() if p.suffix in ENDINGS and p.name[0] != "."]
    return [str(path) for path in sorted(files)]


def _open(path: str) -> TextIO:
    return open(0 if path == "-" else path, encoding="utf-8-sig", closefd=path != "-")


def _documents(stream: TextIO, source: str) -> Iterator[Document]:
    start = stream.read(CHUNK)
    json_ahead = start.lstrip()[:1] in ("{", "[")  # so does kubectl guess
    reader: Reader = (_Json if json_ahead else _Yaml)(start, stream, source)
    for line, fields in reader.documents():
        for value, place in _objects(fields, line, reader):
            if whynot := _no_json(value):
                reader.wrong(whynot, HINT, place)
            yield Document(value, source, place)


class Reader(Protocol):
    """What YAML and JSON have in common: the fields of each object, one after the other."""

    def documents(self) -> Iterator[tuple[int, Fields]]: ...

    def wrong(self, what: str, hint: str, line: int) -> NoReturn: ...


# ---------------------------------------------------------------------------- lists


def _objects(fields: Fields, line: int, reader: Reader) -> Iterator[tuple[dict[str, Any], int]]:
    """The object with these fields; or, if it has a list of `items`, each of these, as kubectl
    takes it. The items of a PodList have no kind of their own, and theirs is Pod."""
    obj: dict[str, Any] = {}
    waiting: list[tuple[Any, int]] = []  # items that came before the kind of their list
    a_list = False
    for key, value in fields:
        obj[key] = value
        if isinstance(value, Iterator):
            a_list = True
            for item, place in value:
                if _is_named(item) or _is_named(obj):
                    yield from _item(item, obj, place, reader)
                else:
                    waiting.append((item, place))
    kind = str(obj.get("kind"))
    if not a_list and (kind == "List" or (kind.endswith("List") and "items" in obj)):
        reader.wrong(f"items of this {kind} must be a list", HINT, line)
    if not a_list:
        yield obj, line
    for item, place in waiting:
        yield from _item(item, obj, place, reader)


def _item(
    item: Any, a_list: dict[str, Any], line: int, reader: Reader
) -> Iterator[tuple[dict[str, Any], int]]:
    kind = str(a_list.get("kind"))
    if type(item) is dict and not _is_named(item) and _is_named(a_list) and kind != "List":
        item = {"apiVersion": a_list["apiVersion"], "kind": kind.removesuffix("List")} | item
    if not _is_named(item):
        reader.wrong("this item of a list has no apiVersion and kind", HINT, line)
    if type(item.get("items")) is not list:
        return iter([(item, line)])
    if whynot := _no_json(item):  # too deep, say
        reader.wrong(whynot, HINT, line)
    items = ((each, line) for each in item["items"])
    return _objects(iter((item | {"items": items}).items()), line, reader)


def _is_named(item: Any) -> bool:
    return type(item) is dict and bool(item.get("apiVersion")) and bool(item.get("kind"))


def _no_json(value: Any) -> str:
    """Why an API server could not be sent this value; "" if it can."""
    level = [value]
    for _ in range(LEVELS):
        level = [
            item
            for each in level
            if type(each) is dict or type(each) is list
            for item in (each.values() if type(each) is dict else each)
        ]
        if not level:
            break
    else:
        return f"it is nested more than {LEVELS} levels deep"
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        return f"it holds {half}, which is half a character (a lone surrogate)"
    except ValueError:
        return "it holds a number that JSON has not: infinite, or none"
    return ""


# ---------------------------------------------------------------------------- JSON


class _Json:
    """JSON documents, one after the other, between which a line of --- may stand."""

    def __init__(self, start: str, stream: TextIO, source: str) -> None:
        self.text, self.at, self.line = start, 0, 1
        self.stream, self.source = stream, source
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self.unique,
            parse_constant=lambda _: math.nan,
            parse_int=number,
            parse_float=number,
        )

    def wrong(self, what: str, hint: str, line: int = 0) -> NoReturn:
        raise whook.ConfigError(f"{self.source}, line {line or self.line}: {what}", hint)

    def documents(self) -> Iterator[tuple[int, Fields]]:
        while char := self.peek():
            if char == "-":
                self.take("---")
            elif char == "{":
                yield self.line, self.fields()
            else:
                self.wrong("what stands here is no object", HINT)

    def fields(self) -> Fields:
        seen: set[str] = set()
        self.take("{")
        while self.peek() != "}":
            self.take("," if seen else "")
            self.peek()
            key = self.value()
            if type(key) is not str or key in seen:
                self.wrong(f"not JSON: {key!r} can't be a key here", "once, and in quotes")
            seen.add(key)
            self.take(":")
            yield key, self.items() if self.peek() == "[" and key == "items" else self.value()
        self.take("}")

    def items(self) -> Items:
        self.take("[")
        first = True
        while self.peek() != "]":
            self.take("" if first else ",")
            self.peek()
            line, first = self.line, False
            yield self.value(), line
        self.take("]")

    def value(self) -> Any:
        """The next value, whole."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except RecursionError:
                self.wrong(f"it is nested more than {LEVELS} levels deep", HINT)
            except ValueError as error:
                if not self.more():
                    line = self.line + self.text.count("\n", self.at, getattr(error, "pos", 0))
                    self.wrong(f"not JSON: {getattr(error, 'msg', error)}", HINT, line)
            else:
                if end < len(self.text) or not self.more():  # else a number may go on
                    self.move(end)
                    return value

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self.wrong(f'the key "{twice}" stands twice in what starts here', "take one away")
        return found

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            self.move(_BLANK.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, what: str) -> None:
        for char in what:
            if self.peek() != char:
                self.wrong(f"not JSON: {what} is missing", HINT)
            self.at += 1

    def move(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def more(self) -> bool:
        """Read on, twice as far each time, so that a large value is not begun too often."""
        rest = self.text[self.at :]
        chunk = self.stream.read(max(CHUNK, len(rest)))
        self.text, self.at = rest + chunk, 0
        return bool(chunk)


_BLANK = re.compile(r"[ \t\r\n]*")


# ---------------------------------------------------------------------------- YAML


class _Yaml:
    """YAML documents, of which PyYAML reads the syntax."""

    def __init__(self, start: str, stream: TextIO, source: str) -> None:
        try:
            import yaml
        except ImportError:
            raise whook.ConfigError(
                f"{source} is YAML, and PyYAML is not there to read it",
                "python -m pip install PyYAML; or give JSON, as yq -o=json makes it",
            ) from None
        self.start, self.stream, self.source, self.yaml = start, stream, source, yaml
        self.events = self.parsed()
        self.anchors: dict[str, bytes | None] = {}  # None: not at its end yet
        self.copied = 0

    def read(self, size: int = CHUNK, /) -> str:
        """What the parser reads from: first what was read ahead."""
        start, self.start = self.start, ""
        return start or self.stream.read(size)

    def wrong(self, what: str, hint: str, line: int) -> NoReturn:
        raise whook.ConfigError(f"{self.source}, line {line}: {what}", hint)

    def parsed(self) -> Iterator[Any]:
        loader = getattr(self.yaml, "CSafeLoader", self.yaml.SafeLoader)  # ten times as fast
        try:
            yield from self.yaml.parse(self, Loader=loader)
        except self.yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            what, hint = _problem(str(error.problem))
            self.wrong(f"not YAML: {what}", hint, line)
        except self.yaml.YAMLError:
            what = f"can't read {self.source}: it holds a control character"
            raise whook.ConfigError(what, HINT) from None

    def documents(self) -> Iterator[tuple[int, Fields]]:
        for event in self.events:
            kind, line = type(event), event.start_mark.line + 1
            if kind is self.yaml.DocumentStartEvent:
                self.anchors, self.copied = {}, 0
            elif kind is self.yaml.MappingStartEvent:
                yield line, self.fields(event, 1)
            elif isinstance(event, self.yaml.NodeEvent) and self.value(event, 1) is not None:
                self.wrong("what stands here is no object", HINT, line)

    def fields(self, start: Any, depth: int) -> Fields:
        seen: set[str] = set()
        while type(event := next(self.events)) is not self.yaml.MappingEndEvent:
            key, line = self.key(event), event.start_mark.line + 1
            if key in seen:
                what = f'the key "{key}" stands there twice'
                self.wrong(what, "put a line of --- between two documents", line)
            seen.add(key)
            event = next(self.events)
            if key == "<<":
                yield from self.merge(self.value(event, depth), line).items()
            elif depth == 1 and key == "items" and type(event) is self.yaml.SequenceStartEvent:
                yield key, self.items(depth + 1)
            else:
                yield key, self.value(event, depth)

    def items(self, depth: int) -> Items:
        while type(event := next(self.events)) is not self.yaml.SequenceEndEvent:
            line = event.start_mark.line + 1
            yield self.value(event, depth), line

    def value(self, event: Any, depth: int) -> Any:
        kind, line = type(event), event.start_mark.line + 1
        if kind is self.yaml.AliasEvent:
            return self.alias(event.anchor, line)
        if event.anchor:
            self.anchors[event.anchor] = None
        if depth > LEVELS:
            self.wrong(f"it is nested more than {LEVELS} levels deep", HINT, line)
        if kind is self.yaml.ScalarEvent:
            value = self.scalar(event)
        elif kind is self.yaml.SequenceStartEvent:
            value = [item for item, _ in self.items(depth + 1)]
        else:
            value = dict(self.fields(event, depth + 1))
        if event.anchor:
            self.anchors[event.anchor] = self.frozen(value, line)
        return value

    def frozen(self, value: Any, line: int) -> bytes:
        try:
            return marshal.dumps(value, 2)
        except ValueError:
            return self.wrong(f"it is nested more than {LEVELS} levels deep", HINT, line)

    def alias(self, name: str, line: int) -> Any:
        """A copy of what &name stands before."""
        frozen = self.anchors.get(name)
        if frozen is None:
            why = "stands inside of" if name in self.anchors else "comes without"
            self.wrong(f"the alias *{name} {why} &{name}", "name a value that ends above it", line)
        self.copied += len(frozen)
        if self.copied > MAX_COPIED:
            what = f"the aliases up to here unfold into more than {MAX_COPIED} bytes"
            self.wrong(what, "no API server takes as much; write out what is needed", line)
        return marshal.loads(frozen)  # noqa: S302 - frozen() made it

    def merge(self, value: Any, line: int) -> dict[str, Any]:
        """The fields for `<<: value`; of several objects the first counts. They replace those above
        them, and those below replace them: go-yaml goes by the order, against the rule."""
        merged: dict[str, Any] = {}
        for each in value if type(value) is list else [value]:
            if type(each) is not dict:
                self.wrong("<< takes an object, or a list of objects", "as in <<: *name", line)
            merged = each | merged
        return merged

    def key(self, event: Any) -> str:
        value = self.scalar(event) if type(event) is self.yaml.ScalarEvent else None
        if value is None:
            line = event.start_mark.line + 1
            self.wrong("what stands here can't be a key", "put it into quotes", line)
        return value if type(value) is str else json.dumps(value)

    def scalar(self, event: Any) -> Any:
        tag = event.tag and event.tag.removeprefix("tag:yaml.org,2002:")
        if tag is None:
            return plain(event.value) if event.implicit[0] else event.value
        if tag in ("int", "float", "bool", "null"):
            return plain(event.value)
        if tag == "binary":
            line = event.start_mark.line + 1
            self.wrong("the tag !!binary stands here", "write the text itself", line)
        return event.value


def _problem(found: str) -> tuple[str, str]:
    """What is wrong, and a hint, in the same words with libyaml and without."""
    if "tab" in found or "cannot start any token" in found:
        hint = "indent with spaces, never with a tab, and quote a text that starts with @, % or `"
        return "found a tab, or another character that nothing can start with", hint
    if "mapping values" in found:
        hint = "quote a text that has one; a file that another is added to must end in a line break"
        return "found a colon too many", hint
    return found, HINT


_WORDS = {"null": None, "y yes true on": True, "n no false off": False, ".nan .inf": math.nan}
_CONSTANTS = {"": None, "~": None} | {
    form: value
    for words, value in _WORDS.items()
    for word in words.split()
    for form in (word, word.title(), word.upper())
}
_WHOLE = re.compile("([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def plain(text: str) -> Any:
    """The value of a YAML scalar without quotes. A whole number may be written as 1.0 or 1e3."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    if whole := _WHOLE.fullmatch(digits):  # go-yaml keeps 64 bits, and JSON makes it decimal
        sign, *groups = whole.groups()
        forms = zip(groups, (16, 2, 8, 10), strict=True)
        form, base = next(each for each in forms if each[0])
        if base != 10 and -(2**63) <= (value := int(sign + form, base)) < 2**64:
            return number(str(value))
    if not _REAL.fullmatch(digits):
        return text
    real = number(digits)
    return real if math.isfinite(real) else text


def number(text: str) -> int | float:
    """Return the number that an API server makes of a decimal number, and sends to webhooks.

    An integer has 64 bits. A larger one becomes a 64-bit real number, of which the digits that are
    not significant become zeros. A whole real number below 1e21 is sent as an integer. A number
    that is too large for a real number is infinite."""
    if len(text) < 21 and _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    real = float(text)
    return int(decimal.Decimal(repr(real))) if real.is_integer() and abs(real) < 1e21 else real


_INTEGER = re.compile("[-+]?[0-9]+")
