"""The schemas in tests/schemas/: an API server's own, with only what the tests need of them.

    kubectl get --raw /openapi/v3/api/v1 | python -m tests.schemas Pod,Service REGEX > core.json

The definitions whose names the regular expression finds are left out: they are judged as anything.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any


def trim(document: dict[str, Any], kinds: list[str], without: str) -> dict[str, Any]:
    """An OpenAPI document with these kinds only, what they refer to, and no description."""
    schemas = document["components"]["schemas"]
    waiting = [name for name in schemas if name.rpartition(".")[2] in kinds]
    kept: dict[str, Any] = {}
    while waiting:
        name = waiting.pop()
        if name not in kept and not re.search(without, name):
            kept[name] = _bare(schemas[name])
            waiting += _references(schemas[name])
    return {
        "openapi": document["openapi"],
        "info": document["info"],
        "components": {"schemas": dict(sorted(kept.items()))},
    }


def _bare(schema: Any) -> Any:
    if type(schema) is list:
        return [_bare(each) for each in schema]
    if type(schema) is not dict:
        return schema
    return {
        key: _bare(value)
        for key, value in schema.items()
        if key != "description" or type(value) is dict  # a field of that name
    }


def _references(schema: Any) -> list[str]:
    if type(schema) is list:
        return [name for each in schema for name in _references(each)]
    if type(schema) is not dict:
        return []
    own = [schema["$ref"].rpartition("/")[2]] if type(schema.get("$ref")) is str else []
    return own + _references(list(schema.values()))


if __name__ == "__main__":
    document = trim(json.load(sys.stdin), sys.argv[1].split(","), sys.argv[2])
    # A definition a line: short, and a change can be seen.
    schemas = document["components"].pop("schemas")
    lines = [f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in schemas.items()]
    start = json.dumps(document).removesuffix("{}}")
    print(start + '{"schemas": {\n' + ",\n".join(lines) + "\n}}}")
