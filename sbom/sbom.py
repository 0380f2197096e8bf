"""Make an SBOM whole. On stdin what cyclonedx-py finds in an environment; on stdout the same, and
what it can't see: the program itself, Python, and the system below, which has packages of its own:
those are the base image's, and so is the list of them.

    cyclonedx-py environment --output-reproducible PYTHON | python sbom.py NAME VERSION
"""

import json
import platform
import sys


def whole(found: dict, name: str, version: str) -> dict:
    system = platform.freedesktop_os_release()
    python, release = platform.python_version(), system.get("VERSION_ID", "unstable")
    program = {"type": "application", "name": name, "version": version}
    below = [
        {
            "type": "platform",
            "name": "Python",
            "version": python,
            "cpe": f"cpe:2.3:a:python:python:{python}:*:*:*:*:*:*:*",
        },
        {"type": "operating-system", "name": system["ID"], "version": release},
    ]
    for item in (program, *below):
        item["bom-ref"] = f"{item['name']}=={item['version']}"
    return {
        **found,
        "metadata": {**found["metadata"], "component": program},
        "components": [*below, *found.get("components", [])],
    }


if __name__ == "__main__":
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = json.dumps(whole(json.load(sys.stdin), *sys.argv[1:]), indent=1)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"sbom.py: error: {error}")
    print(text)
