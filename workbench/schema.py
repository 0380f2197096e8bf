"""schema: what would the cluster's own schema refuse of what the policies changed?

The schemas are the cluster's: what `kubectl get --raw /openapi/v3/apis/apps/v1` prints (or another
group's, or /openapi/v3/api/v1), and the YAML or JSON of CustomResourceDefinitions. Nothing is asked
over the network. Read in them: the type (also int-or-string, nullable, embedded resources), which
fields there are, which are required, enum, pattern, bounds, formats, and the keys of a list.

Not read: x-kubernetes-validations (CEL), and what the API server checks in its own code, as that a
Deployment's selector matches its labels. And where the schema asks for more than the API server
does, the schema is believed: two variables of one name pass an API server, and are found here.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import whook
from workbench import documents

Schema = dict[str, Any]

NAME = "x-whook-name"  # what a definition is called, as in "PodSpec"
KEEPS_UNKNOWN = "x-kubernetes-preserve-unknown-fields"
ANYTHING: Schema = {}
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
RESOURCE = {  # what every object has, also where a CRD does not say so
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {"$ref": META},
}
MAX_REFERENCES = 20  # from one definition to the next
HINT = "give what `kubectl get --raw /openapi/v3/apis/apps/v1` prints, or a CRD's YAML"


# ---------------------------------------------------------------------------- reading


def load(paths: Sequence[str]) -> Schemas:
    """Return the schemas in these files, and in the JSON and YAML files of these folders. Raises
    whook.ConfigError that names a file that holds none."""
    schemas = Schemas()
    for path in paths:
        taken: dict[str, int] = {}
        for document in documents.read(path):
            taken[document.source] = taken.get(document.source, 0) + schemas.take(document)
        for source, count in taken.items():
            if not count:
                raise whook.ConfigError(f"{source} holds no schema", HINT)
    return schemas


# The keywords that are read, and what a schema must have there.
KEYWORDS: dict[str, tuple[type, ...]] = dict.fromkeys(
    ("type", "format", "pattern", "$ref", "x-kubernetes-list-type", "x-kubernetes-patch-merge-key"),
    (str,),
)
KEYWORDS |= dict.fromkeys(("minimum", "maximum"), (int, float))
KEYWORDS |= dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (int,))
KEYWORDS |= dict.fromkeys(("minProperties", "maxProperties"), (int,))
KEYWORDS |= dict.fromkeys(("enum", "required", "x-kubernetes-list-map-keys"), (list,))
KEYWORDS |= dict.fromkeys(("allOf", "anyOf", "oneOf"), (list,))
KEYWORDS |= {"properties": (dict,), "items": (dict,), "not": (dict,)}
KEYWORDS |= {"additionalProperties": (dict, bool)}


def _parts(schema: Schema) -> Iterator[tuple[str, Any]]:
    """The schemas that are in a schema, each with its place."""
    yield from schema.get("properties", {}).items()
    yield from ((key, schema[key]) for key in ("items", "not") if key in schema)
    if type(schema.get("additionalProperties")) is dict:
        yield "additionalProperties", schema["additionalProperties"]
    for key in ("allOf", "anyOf", "oneOf"):
        yield from ((key, part) for part in schema.get(key, ()))


def _check(schema: Any, place: str) -> None:
    """ValueError if it can't be judged by."""
    waiting = [(place, schema)]
    while waiting:
        place, one = waiting.pop()
        if type(one) is not dict:
            raise ValueError(f"{place} is no object")
        for key, kinds in KEYWORDS.items():
            if key in one and type(one[key]) not in kinds:
                raise ValueError(f"{place}: {key} is {_show(one[key])}")
        for key in ("required", "x-kubernetes-list-map-keys"):
            if any(type(name) is not str for name in one.get(key, ())):
                raise ValueError(f"{place}: {key} is not a list of names")
        waiting += [(f"{place}.{key}", part) for key, part in _parts(one)]


def _show(value: Any) -> str:
    return whook.truncate(json.dumps(value, ensure_ascii=False, default=str), 60)


# ---------------------------------------------------------------------------- judging


class Schemas:
    """Types by apiVersion and kind. A definition is found by the name that a $ref has for it,
    whichever file it came from."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self.types: dict[tuple[Any, Any], tuple[Schema, bool]] = {}

    def take(self, document: documents.Document) -> int:
        """How many schemas were in the document; whook.ConfigError if one is none."""
        fields, found = document.value, 0
        try:
            if "components" in fields:
                found = self._openapi(fields["components"]["schemas"])
            elif fields.get("kind") == "CustomResourceDefinition":
                found = self._crd(fields["spec"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is missing" if type(error) is KeyError else str(error)
            raise whook.ConfigError(
                f"{document.source}, line {document.line}: no good schema: {reason}", HINT
            ) from None
        return found

    def _openapi(self, definitions: dict[str, Schema]) -> int:
        for name, schema in definitions.items():
            _check(schema, name)
            own = name.startswith("io.k8s.api")  # and apimachinery, apiextensions-apiserver
            schema = {**schema, NAME: name.rpartition(".")[2]}
            self.definitions[name] = schema
            for kind in schema.get("x-kubernetes-group-version-kind", ()):
                version = f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]
                self.types[version, kind["kind"]] = (schema, own)
        return len(definitions)

    def _crd(self, spec: dict[str, Any]) -> int:
        kind = spec["names"]["kind"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            _check(schema, kind)
            schema = {**schema, "x-kubernetes-embedded-resource": True, NAME: kind}
            self.types[f"{spec['group']}/{version['name']}", kind] = (schema, False)
        return len(spec["versions"])

    def knows(self, obj: Any) -> bool:
        """Is there a schema for such an object?"""
        return (obj.get("apiVersion"), obj.get("kind")) in self.types

    def judge(self, before: Any, after: Any) -> list[str]:
        """What the schema refuses in `after`, of all that is not so in `before`: each with the
        field's path. Nothing is found in an object without a schema: see knows()."""
        if type(after) is not dict or not self.knows(after):
            return []
        schema, own = self.types[after["apiVersion"], after["kind"]]
        judge = Judge(self.definitions, own, secret=after["kind"] == "Secret")
        try:
            judge.value(schema, before, after, "")
        except RecursionError:
            return ["the object is nested too deeply to be judged by its schema"]
        return judge.found


class Judge:
    """Goes through an object, and what it was before, along its schema; `found` is what is wrong.

    `own` says that the type is one of Kubernetes' own. Its decoder takes null, and "" where there
    is an enum, for a field that is not there; a CRD's schema has null for that, and defaults.
    In a `part`, as of a oneOf, no field is unknown: the schema around it knows them. Of a `secret`
    no value is shown."""

    def __init__(
        self, definitions: dict[str, Schema], own: bool, part: bool = False, secret: bool = False
    ) -> None:
        self.definitions, self.own, self.part, self.secret = definitions, own, part, secret
        self.found: list[str] = []

    def value(self, schema: Schema, old: Any, new: Any, path: str) -> None:
        if old is not None and whook.same_json(old, new):
            return
        schema = self.resolved(schema)
        kinds = _kinds(schema)
        if new is None and schema.get("nullable"):
            return
        if kinds and not any(self.fits(new, kind) for kind in kinds):
            names = " or ".join(TYPES[kind][0] for kind in kinds)
            self.found.append(f"{path} is {self.show(new)}, and must be {names}")
            return
        self.scalar(schema, new, path)
        self.size(schema, new, path)
        if type(new) is dict:
            self.fields(schema, old if type(old) is dict else {}, new, path)
        if type(new) is list:
            self.items(schema, old if type(old) is list else [], new, path)
        self.combined(schema, old, new, path)

    def fits(self, value: Any, kind: str) -> bool:
        """1.0 is a whole number for a CRD's schema, but not for Kubernetes' decoder."""
        _, types = TYPES.get(kind, ("", (type(value),)))
        if kind == "integer" and type(value) is float:
            return not self.own and value.is_integer()
        return type(value) in types

    def resolved(self, schema: Schema) -> Schema:
        """The schema together with what its $ref points at, or the one in its allOf."""
        for _ in range(MAX_REFERENCES):
            several = schema.get("allOf", [])
            inner = several[0] if len(several) == 1 else schema
            if "$ref" not in inner:
                break
            target = self.definitions.get(inner["$ref"].rpartition("/")[2], ANYTHING)
            outer = {k: v for k, v in schema.items() if k not in ("$ref", "allOf")}
            schema = {**target, **outer}
        if schema.get("x-kubernetes-embedded-resource"):
            properties = {**schema.get("properties", {}), **RESOURCE}
            required = list(dict.fromkeys([*schema.get("required", []), "apiVersion", "kind"]))
            schema = {**schema, "properties": properties, "required": required}
        return schema

    def fields(self, schema: Schema, old: Schema, new: Schema, path: str) -> None:
        known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
        for key, value in new.items():
            place = _place(path, key)
            inner = known.get(key, others or self.is_open(schema))
            if type(inner) is dict:
                if value is not None:  # null is as if it were not there
                    self.value(inner, old.get(key), value, place)
            elif not inner and (key not in old or old[key] != value):
                self.found.append(f"{place} {self.unknown(schema, key)}")
        for key in schema.get("required", []):
            if not self.has(known, key, new) and (self.has(known, key, old) or not old):
                self.found.append(f"{_place(path, key)} is missing, and is required")

    def is_open(self, schema: Schema) -> bool:
        """May there be fields that it does not name? A CRD's object without any has none."""
        if "properties" in schema or not (self.own or NAME in schema):
            return self.part or schema.get(KEEPS_UNKNOWN, False) or "type" not in schema
        return True

    def unknown(self, schema: Schema, key: str) -> str:
        owner = f"of {schema[NAME]}" if NAME in schema else "in the schema"
        near = difflib.get_close_matches(key, schema.get("properties", {}), 1)
        question = f"; did you mean {near[0]}?" if near else ""
        return f"is no field {owner}, and vanishes without a word{question}"

    def has(self, known: Schema, key: str, fields: Schema) -> bool:
        """Is the field there, or made by a default? In Kubernetes' own schemas those of required
        fields are "" and {}: what the decoder leaves where there was nothing."""
        schema = known.get(key, {})
        if fields.get(key) is not None or (key in fields and schema.get("nullable")):
            return True
        return "default" in schema and not self.own

    def items(self, schema: Schema, old: list[Any], new: list[Any], path: str) -> None:
        """Each item of a list is compared with the old one of the same keys; where the list has
        no keys, with an equal one, or with the one in its place if there are as many."""
        item = self.resolved(schema.get("items", ANYTHING))
        keys = _keys(schema)
        ids, old_ids = ([self.identity(item, keys, each) for each in some] for some in (new, old))
        was = dict(zip(old_ids, old, strict=True))
        for index, value in enumerate(new):
            place = f"{path}[{_label(value, keys, index)}]"
            before = was.get(ids[index], old[index] if len(old) == len(new) else None)
            if value is None and self.own:
                value = {} if "properties" in item else before  # the decoder's zero value
            if value is not None or not self.own:
                self.value(item, before, value, place)
        if keys or schema.get("x-kubernetes-list-type") == "set":
            counts, old_counts = Counter(ids), Counter(old_ids)
            for one, count in counts.items():
                if count > max(1, old_counts[one]):
                    place = f"{path}[{_label(new[ids.index(one)], keys, ids.index(one))}]"
                    self.found.append(
                        f"{place} is there {count} times, and must be there once"
                        + (f" (by {', '.join(keys)})" if keys else "")
                    )

    def show(self, value: Any) -> str:
        if not self.secret or value is None:
            return _show(value)
        return next(name for name, types in TYPES.values() if type(value) in types)

    def identity(self, item: Schema, keys: list[str], value: Any) -> str:
        if keys and type(value) is dict:
            known = item.get("properties", {})
            value = [value.get(key, known.get(key, {}).get("default")) for key in keys]
        return json.dumps(value, sort_keys=True)

    def scalar(self, schema: Schema, new: Any, path: str) -> None:
        choice, pattern = schema.get("enum", [new]), schema.get("pattern")
        if new not in choice and not (self.own and new == ""):
            names = ", ".join(map(_show, choice))
            self.found.append(f"{path} is {self.show(new)}, and must be one of {names}")
        if type(new) is str and pattern and not _matches(pattern, new):
            self.found.append(f"{path} is {self.show(new)}, and must match {pattern}")
        name, kinds, good = FORMATS.get(schema.get("format", ""), ("", (), bool))
        if schema.get(NAME) == "Quantity":
            name, kinds, good = "a quantity, as 100m or 1.5Gi", (str,), QUANTITY
        if type(new) in kinds and not good(new):
            self.found.append(f"{path} is {self.show(new)}, and must be {name}")

    def size(self, schema: Schema, new: Any, path: str) -> None:
        for what, (kinds, measure, fact, wish) in SIZES.items():
            if type(new) not in kinds:
                continue
            size, least, most = measure(new), schema.get("min" + what), schema.get("max" + what)
            open_least, open_most = (schema.get(f"exclusive{end}{what}") for end in ("Min", "Max"))
            is_now = f"{path} {fact.format(size)}, and must {wish}"
            if least is not None and (size < least or (open_least and size == least)):
                self.found.append(f"{is_now} {'over' if open_least else 'at least'} {least}")
            if most is not None and (size > most or (open_most and size == most)):
                self.found.append(f"{is_now} {'under' if open_most else 'at most'} {most}")

    def combined(self, schema: Schema, old: Any, new: Any, path: str) -> None:
        for part in schema.get("allOf", ()):
            self.found += self.within(part, old, new, path)
        for keyword, fact in COMBINED.items():
            parts = schema.get(keyword)
            if parts is None or self.agrees(keyword, parts, new, path):
                continue
            if old is None or self.agrees(keyword, parts, old, path):
                self.found.append(f"{path} {fact}")

    def within(self, part: Schema, old: Any, new: Any, path: str) -> list[str]:
        judge = Judge(self.definitions, self.own, part=True)
        judge.value(part, old, new, path)
        return judge.found

    def agrees(self, keyword: str, parts: Any, value: Any, path: str) -> bool:
        parts = [parts] if keyword == "not" else parts
        fitting = sum(not self.within(part, None, value, path) for part in parts)
        return {"not": fitting == 0, "oneOf": fitting == 1, "anyOf": fitting > 0}[keyword]


TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "object": ("an object", (dict,)),
    "array": ("a list", (list,)),
    "string": ("a string", (str,)),
    "boolean": ("true or false", (bool,)),
    "number": ("a number", (int, float)),
    "integer": ("a whole number", (int, float)),
}
# What a bound is of: the types, how it is measured, and how a message says it.
SIZES: dict[str, tuple[tuple[type, ...], Callable[[Any], Any], str, str]] = {
    "imum": ((int, float), lambda value: value, "is {}", "be"),
    "Length": ((str,), len, "has {} characters", "have"),
    "Items": ((list,), len, "has {} items", "have"),
    "Properties": ((dict,), len, "has {} fields", "have"),
}
COMBINED = {
    "anyOf": "fits none of the schema's alternatives",
    "oneOf": "must fit one of the schema's alternatives, and one only",
    "not": "is what the schema rules out",
}


def _kinds(schema: Schema) -> list[str]:
    """The JSON types that a value may have; none where the schema does not say."""
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return ["integer", "string"]
    if "type" in schema:
        return [schema["type"]]
    parts = [part.get("type") for part in schema.get("oneOf", ())]  # as a Quantity has it
    return parts if None not in parts else []


def _keys(schema: Schema) -> list[str]:
    """The fields that tell a list's items apart."""
    if "x-kubernetes-list-type" in schema:
        return list(schema.get("x-kubernetes-list-map-keys", ()))
    key = schema.get("x-kubernetes-patch-merge-key")
    return [key] if key else []


def _label(item: Any, keys: list[str], index: int) -> str:
    """What stands in the brackets of a path."""
    key = keys[0] if len(keys) == 1 else "name"
    value = item.get(key) if type(item) is dict else None
    return value if type(value) is str and value else str(index)


def _place(path: str, key: str) -> str:
    if "." in key or "/" in key:
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


# ---------------------------------------------------------------------------- formats


def _matches(pattern: str, text: str) -> bool:
    """As an API server has it, which writes patterns a little differently: one that Python can't
    read matches anything."""
    with contextlib.suppress(re.error):
        return re.search(pattern, text) is not None
    return True


def _accepts(convert: Callable[[str], Any]) -> Callable[[str], bool]:
    def good(text: str) -> bool:
        with contextlib.suppress(ValueError):
            convert(text)
            return True
        return False

    return good


def _from_base64(text: str) -> bytes:
    """As an API server's decoder, which passes over line breaks and nothing else."""
    return base64.b64decode(re.sub("[\r\n]", "", text), validate=True)


_DIGITS = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
QUANTITY = re.compile(rf"[+-]?{_DIGITS}([KMGTPE]i|[numkMGTPE]|[eE][+-]?{_DIGITS})?").fullmatch
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)").fullmatch
FORMATS: dict[str, tuple[str, tuple[type, ...], Callable[[Any], Any]]] = {
    "int32": ("a whole number of 32 bits", (int, float), lambda n: -(2**31) <= n < 2**31),
    "int64": ("a whole number of 64 bits", (int, float), lambda n: -(2**63) <= n < 2**63),
    "date-time": ("a time, as 2026-11-22T13:50:58Z", (str,), _TIME),
    "byte": ("base64", (str,), _accepts(_from_base64)),
    "ipv4": ("an IPv4 address", (str,), _accepts(ipaddress.IPv4Address)),
    "ipv6": ("an IPv6 address", (str,), _accepts(ipaddress.IPv6Address)),
    "cidr": ("a network, as 10.0.0.0/8", (str,), _accepts(ipaddress.ip_interface)),
}
