"""Put another value in the place of one key of a YAML document, and leave the rest of the file as
it is: its order, its style, its comments. What comes of it is read again before it is believed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import whook
from workbench import documents

Edit = tuple[int, int, str]  # from, to, and what stands there instead


def set_key(text: str, source: str, key: str, values: Mapping[int, Any]) -> str:
    """The text with a top-level key set in some of its documents, by their number from 0: only
    where the value differs if that can be done, else all of it. ConfigError if neither comes out
    right."""
    before = [document.value for document in documents.parse(text, source)]
    nodes = _nodes(text, source)
    wanted = [
        before[i] | {key: values[i]} if i in values else before[i] for i in range(len(before))
    ]
    ways = dict.fromkeys(values, _finely)
    for _ in range(2):
        edits: list[Edit] = []
        for number, way in ways.items():
            edits += way(text, nodes[number], key, before[number].get(key), values[number])
        new = _apply(text, edits)
        found = _read(new, source)
        wrong = [i for i, value in enumerate(wanted) if found[i : i + 1] != [_canonical(value)]]
        if not wrong and len(found) == len(wanted):
            return new
        ways |= {number: _whole for number in wrong if number in values}
    raise whook.ConfigError(f"{source} can't be rewritten", f"edit its `{key}` by hand")


def _nodes(text: str, source: str) -> list[Any]:
    """The documents with the place of everything in them."""
    try:
        import yaml
    except ImportError:
        hint = "python -m pip install PyYAML"
        raise whook.ConfigError(f"PyYAML is not there to rewrite {source}", hint) from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [node for node in yaml.compose_all(text, Loader=loader) if node.value]


def _read(text: str, source: str) -> list[str]:
    try:
        return [_canonical(document.value) for document in documents.parse(text, source)]
    except whook.ConfigError:
        return []


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _apply(text: str, edits: list[Edit]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new.replace("\n", newline) + text[end:]
    return text


# ---------------------------------------------------------------------------- only what differs


def _finely(text: str, node: Any, key: str, old: Any, new: Any) -> list[Edit]:
    """All of it, if what differs does not stand here, but where an alias or a merged key leads."""
    edits: list[Edit] = []
    for name, value in node.value:
        if name.value == key:
            with contextlib.suppress(LookupError, AttributeError):
                edits = list(_pair(text, name, value, old, new, node.flow_style))
    whole = _whole(text, node, key, old, new)
    here = all(whole[0][0] <= start and end <= whole[0][1] for start, end, _ in edits)
    return edits if edits and here else whole


def _pair(text: str, name: Any, value: Any, old: Any, new: Any, flow: bool) -> Iterator[Edit]:
    """Edits for one key with its value."""
    if _alike(old, new):
        yield from _edits(text, value, old, new)
    elif not whook.same_json(old, new):
        new = _flow({name.value: new})[1:-1] if flow else _block({name.value: new}, name)
        yield name.start_mark.index, _end(text, value), new


def _edits(text: str, node: Any, old: Any, new: Any) -> Iterator[Edit]:
    """Edits within a mapping or a list."""
    same_size = old.keys() == new.keys() if type(old) is dict else len(old) == len(new)
    if node.flow_style and not same_size:
        yield node.start_mark.index, _end(text, node), _flow(new)
    elif type(old) is list:
        yield from _items(text, node, old, new)
    elif kept := [pair for pair in node.value if pair[0].value in new]:
        for name, value in node.value:
            if name.value in new:
                pair = old[name.value], new[name.value]
                yield from _pair(text, name, value, *pair, node.flow_style)
            else:
                yield _lines(text, name.start_mark.index, _end(text, value))
        more = {key: value for key, value in new.items() if key not in old}
        yield from _more(text, kept[0][0], kept[-1][1], more)
    else:
        yield node.start_mark.index, _end(text, node), _block(new, node)


def _items(text: str, node: Any, old: list[Any], new: list[Any]) -> Iterator[Edit]:
    for item, was, now in zip(node.value, old, new, strict=False):
        if _alike(was, now):
            yield from _edits(text, item, was, now)
        elif not whook.same_json(was, now):
            changed = _flow(now) if node.flow_style else _block(now, item)
            yield item.start_mark.index, _end(text, item), changed
    for item in node.value[len(new) :]:
        yield _lines(text, item.start_mark.index, _end(text, item))
    yield from _more(text, node, node.value[-1], new[len(old) :])


def _alike(old: Any, new: Any) -> bool:
    """Are these two mappings, or two lists, with something in both?"""
    return type(old) is type(new) and type(old) in (dict, list) and bool(old and new)


def _more(text: str, first: Any, last: Any, values: Any) -> Iterator[Edit]:
    """What is new comes last, in the column of what is first."""
    if values:
        place = _end(text, last)
        yield place, place, f"\n{' ' * first.start_mark.column}{_block(values, first)}"


def _lines(text: str, start: int, end: int) -> Edit:
    """Taking this out, with the lines that it stands on."""
    last = text.find("\n", end)
    return max(text.rfind("\n", 0, start), 0), len(text) if last < 0 else last, ""


def _end(text: str, node: Any) -> int:
    """Where the node's own text ends; PyYAML counts the comments after a block to it."""
    if not isinstance(node.value, str) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    end = int(node.end_mark.index)
    in_block = isinstance(node.value, str) and node.style in ("|", ">")
    return len(text[:end].rstrip()) if in_block else end


# ---------------------------------------------------------------------------- all of it


def _whole(text: str, node: Any, key: str, old: Any, new: Any) -> list[Edit]:
    """The key with its whole value, up to the next key and what is commented above that."""
    places = [name.start_mark.index for name, _ in node.value] + [node.end_mark.index]
    for (name, _), start, end in zip(node.value, places, places[1:], strict=False):
        if name.value == key:
            return [(start, start + _length(text[start:end]), _block({key: new}, name))]
    end = places[0] + _length(text[places[0] : places[-1]])
    return [(end, end, f"\n{_block({key: new}, node)}")]


def _length(text: str) -> int:
    """Of the text without the comments and empty lines at its end."""
    lines = text.splitlines(keepends=True)
    while len(lines) > 1 and re.fullmatch(r"\s*(#.*)?", lines[-1].rstrip()):
        lines.pop()
    return len("".join(lines).rstrip())


# ---------------------------------------------------------------------------- YAML from values


def _block(value: Any, node: Any) -> str:
    """The value as it is written where the node begins."""
    lines = as_yaml(value).rstrip("\n").removesuffix("\n...").split("\n")
    return "\n".join(" " * node.start_mark.column + line if line else "" for line in lines).lstrip()


def _flow(value: Any) -> str:
    return as_yaml(value, flow=True).rstrip("\n").removesuffix("\n...")


def as_yaml(value: Any, flow: bool = False) -> str:
    """A JSON value as YAML: keys in their order, no aliases, texts of several lines as blocks.
    Without PyYAML it is the JSON that it is, which is YAML, too."""
    try:
        import yaml
    except ImportError:
        return json.dumps(value, indent=2, ensure_ascii=False)

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        style = None
        if re.search(r"[\n\r\x85\u2028\u2029]", data):
            style = "|" if re.fullmatch(r"[^\r\x85\u2028\u2029]*\S\n?", data) else '"'
        elif documents.plain(data) != data:
            style = "'"  # `y`, 0o17: texts that kubectl would not take for one
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    width = float("inf") if flow else 100
    return str(
        yaml.dump(
            value,
            Dumper=Dumper,
            default_flow_style=flow,
            sort_keys=False,
            allow_unicode=True,
            width=width,
        )
    )
