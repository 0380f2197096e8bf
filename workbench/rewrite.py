"""Put another value in the place of one key of a YAML document, and leave the rest of the file as
it is: its order, its style, its comments. What comes of it is read again before it is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import whook
from workbench import documents

Edit = tuple[int, int, str]  # from, to, and what stands there instead


def set_key(text: str, source: str, index: int, key: str, value: Any) -> str:
    """The text with the value of a top-level key set in its index-th document: only where it
    differs if that can be done, else all of it. SetupError if neither comes out right."""
    before = [document.value for document in documents.parse(text, source)]
    nodes = _nodes(text, source)
    wanted = [each | {key: value} if i == index else each for i, each in enumerate(before)]
    for edits in _finely, _whole:
        try:
            found = list(edits(text, nodes[index], key, before[index].get(key), value))
        except (LookupError, AttributeError):
            continue  # aliases, merged keys: what stands there is written elsewhere
        new = _apply(text, found)
        if _read(new, source) == [_canonical(each) for each in wanted]:
            return new
    raise whook.SetupError(f"{source} can't be rewritten", f"edit its `{key}` by hand")


def _nodes(text: str, source: str) -> list[Any]:
    """The documents with the place of everything in them."""
    try:
        import yaml
    except ImportError:
        hint = "python -m pip install PyYAML"
        raise whook.SetupError(f"PyYAML is not there to rewrite {source}", hint) from None
    return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node.value]


def _read(text: str, source: str) -> list[str]:
    try:
        return [_canonical(document.value) for document in documents.parse(text, source)]
    except whook.SetupError:
        return []


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _apply(text: str, edits: list[Edit]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new.replace("\n", newline) + text[end:]
    return text


# ---------------------------------------------------------------------------- only what differs


def _finely(text: str, node: Any, key: str, old: Any, new: Any) -> Iterator[Edit]:
    for name, value in node.value:
        if name.value == key:
            yield from _pair(text, name, value, old, new, node.flow_style)


def _pair(text: str, name: Any, value: Any, old: Any, new: Any, flow: bool) -> Iterator[Edit]:
    """Edits for one key with its value."""
    if _alike(old, new):
        yield from _edits(text, value, old, new)
    elif whook.freeze(old) != whook.freeze(new):
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
        elif whook.freeze(was) != whook.freeze(now):
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
    start, end = text.rfind("\n", 0, start) + 1, text.find("\n", end) + 1
    return start, end or len(text), ""


def _end(text: str, node: Any) -> int:
    """Where the node's own text ends; PyYAML counts the comments after a block to it."""
    if not isinstance(node.value, str) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    end = int(node.end_mark.index)
    in_block = isinstance(node.value, str) and node.style in ("|", ">")
    return len(text[:end].rstrip()) if in_block else end


# ---------------------------------------------------------------------------- all of it


def _whole(text: str, node: Any, key: str, old: Any, new: Any) -> Iterator[Edit]:
    """The key with its whole value, up to the next key and what is commented above that."""
    places = [name.start_mark.index for name, _ in node.value] + [node.end_mark.index]
    for (name, _), start, end in zip(node.value, places, places[1:], strict=False):
        if name.value == key:
            yield start, start + _length(text[start:end]), _block({key: new}, name)
            return
    end = places[0] + _length(text[places[0] : places[-1]])
    yield end, end, f"\n{_block({key: new}, node)}"


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
