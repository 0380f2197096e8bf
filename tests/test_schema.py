"""Tests of workbench/schema.py. test_e2e.py asks a real API server about the same table."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import review
import whook
from workbench import documents, schema

SCHEMAS = Path(__file__).parent / "schemas"

CONTAINER = {
    "name": "web",
    "image": "shop:1",
    "env": [{"name": "A", "value": "1"}],
    "ports": [{"containerPort": 80}],
    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
}
POD_SPEC = {"containers": [CONTAINER], "volumes": [{"name": "v", "emptyDir": {}}]}
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": POD_SPEC}


def obj(version: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, **fields}


OBJECTS = {
    "Pod": obj("v1", "Pod", spec=POD_SPEC),
    "Deployment": obj(
        "apps/v1",
        "Deployment",
        spec={"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE},
    ),
    "Service": obj(
        "v1", "Service", spec={"ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    ),
    "Secret": obj("v1", "Secret", data={"k": "dg=="}),
    "Widget": obj(
        "schema.example.com/v1", "Widget", spec={"size": 3, "rules": [{"host": "x"}]}
    ),
}  # fmt: skip


class Change(NamedTuple):
    """A line of changes.txt, and those below it."""

    kind: str
    code: str
    found: list[str]
    refused: bool  # by an API server

    def made(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The object before and after."""
        before, after = OBJECTS[self.kind], copy.deepcopy(OBJECTS[self.kind])
        spec = after.get("spec", {})
        containers = spec.get("template", {}).get("spec", spec).get("containers", [None])
        exec(self.code, {"o": after, "c": containers[0]})
        return before, after


def changes() -> Iterator[Change]:
    lines = (SCHEMAS / "changes.txt").read_text().splitlines()
    for start, line in enumerate(lines):
        if not line or line[0] in " #":
            continue
        found = []
        for below in lines[start + 1 :]:
            if not below.startswith(" "):
                break
            found.append(below.strip())
        refused = bool(found)
        if found and found[-1].startswith("but the API server "):
            refused = found.pop().endswith("refuses it")
        kind, _, code = line.partition(": ")
        yield Change(kind, code, found, refused)


def pod(**fields: Any) -> dict[str, Any]:
    return obj("v1", "Pod", spec={"containers": [copy.deepcopy({**CONTAINER, **fields})]})


class Judging(unittest.TestCase):
    schemas = schema.load([str(SCHEMAS)])

    def test_what_a_policy_did(self) -> None:
        for change in changes():
            with self.subTest(change.kind, code=change.code):
                self.assertEqual(self.schemas.judge(*change.made()), change.found)

    def test_the_table_is_read(self) -> None:
        read = list(changes())
        self.assertGreater(len(read), 120)
        self.assertGreater(len([each for each in read if each.found]), 70)
        self.assertEqual({each.kind for each in read}, set(OBJECTS))

    def test_whole_objects(self) -> None:
        """Without an object before, all of it is judged."""
        for kind, good in OBJECTS.items():
            self.assertEqual(self.schemas.judge(None, good), [], kind)
        bad = pod(imag="x") | {"metadat": {}}
        self.assertEqual(
            self.schemas.judge(None, bad),
            [
                "spec.containers[web].imag is no field of Container, and vanishes without a word; "
                "did you mean image?",
                "metadat is no field of Pod, and vanishes without a word; did you mean metadata?",
            ],
        )

    def test_only_what_was_changed(self) -> None:
        """What the user got wrong is the user's: beside it, other things change."""
        wrong = {
            "unknown field": {"imag": "x"},
            "type": {"args": "x"},
            "enum": {"imagePullPolicy": "always"},
            "missing": {"livenessProbe": {"httpGet": {}}},
            "duplicate": {"env": [{"name": "A"}, {"name": "A"}]},
            "quantity": {"resources": {"limits": {"cpu": "x"}}},
        }
        for what, fields in wrong.items():
            with self.subTest(what):
                before, after = pod(**fields), pod(**copy.deepcopy(fields))
                self.assertNotEqual(self.schemas.judge(None, before), [])
                after["spec"]["containers"].insert(0, {"name": "new"})
                container = after["spec"]["containers"][1]
                container["image"] = "other"
                container.setdefault("env", []).append({"name": "B"})
                self.assertEqual(self.schemas.judge(before, after), [])

    def test_a_change_beside_what_the_schema_already_refused(self) -> None:
        before = obj("schema.example.com/v1", "Widget", spec={"size": 1, "either": {}})
        after = copy.deepcopy(before)
        after["spec"]["either"]["c"] = "x"
        self.assertEqual(
            self.schemas.judge(before, after),
            ["spec.either.c is no field in the schema, and vanishes without a word"],
        )

    def test_items_of_a_list_without_keys(self) -> None:
        before = obj(
            "v1", "Pod", spec={"tolerations": [{"operator": 5, "value": "v"}, {"key": "a"}]}
        )
        for tolerations, expected in (
            ([{"operator": 5}, {"key": "b"}], []),  # as many: by place
            ([{"key": "b"}, {"value": "v", "operator": 5}, {"key": "a"}], []),  # equal ones
            ([{"operator": 6}], ["spec.tolerations[0].operator is 6, and must be a string"]),
        ):
            with self.subTest(tolerations):
                after = obj("v1", "Pod", spec={"tolerations": tolerations})
                found = self.schemas.judge(before, after)
                self.assertEqual([f for f in found if "containers" not in f], expected)

    def test_a_key_that_is_no_word(self) -> None:
        after = pod()
        after["metadata"]["labels"] = {"example.com/team": 5}
        self.assertEqual(
            self.schemas.judge(pod(), after),
            ["metadata.labels[example.com/team] is 5, and must be a string"],
        )

    def test_true_is_not_1(self) -> None:
        before, after = pod(stdin=True), pod(stdin=1)
        self.assertEqual(
            self.schemas.judge(before, after),
            ["spec.containers[web].stdin is 1, and must be true or false"],
        )

    def test_no_schema(self) -> None:
        other = obj("example.com/v2", "Widget", spec=5)
        self.assertFalse(self.schemas.knows(other))
        self.assertTrue(self.schemas.knows(pod()))
        self.assertEqual(self.schemas.judge(None, other), [])
        self.assertEqual(self.schemas.judge(None, None), [])

    def test_no_metadata_schema(self) -> None:
        """A CRD alone knows nothing of metadata."""
        widgets = schema.load([str(SCHEMAS / "widget.yaml")])
        after = copy.deepcopy(OBJECTS["Widget"])
        after["metadata"]["labels"] = 5
        after["spec"]["size"] = 11
        self.assertEqual(
            widgets.judge(OBJECTS["Widget"], after), ["spec.size is 11, and must be at most 10"]
        )

    def test_values_of_a_secret_are_not_shown(self) -> None:
        before, after = OBJECTS["Secret"], copy.deepcopy(OBJECTS["Secret"])
        after["data"]["k"] = after["type"] = "hunter2!"
        after["immutable"] = after["metadata"]["labels"] = "hunter2!"
        found = self.schemas.judge(before, after)
        self.assertEqual(len(found), 3)
        self.assertNotIn("hunter2", " ".join(found))

    def test_deep_and_large(self) -> None:
        """The schema of a schema refers to itself; and time grows with the object."""
        document = openapi({"properties": {"not": {"$ref": "#/components/schemas/a.Pod"}}})
        with tempfile.TemporaryDirectory() as folder:
            deep: dict[str, Any] = {"x": 1}
            for _ in range(1500):
                deep = {"not": deep}
            after = obj("v1", "Pod", **deep)
            (Path(folder) / "a.json").write_text(json.dumps(document))
            self.assertEqual(
                schema.load([folder]).judge(None, after),
                ["the object is nested too deeply to be judged by its schema"],
            )
        env = [{"name": f"A{number}", "value": "x"} for number in range(20_000)]
        started = time.process_time()
        self.assertEqual(self.schemas.judge(pod(), pod(env=env)), [])
        self.assertLess(time.process_time() - started, 5)  # it takes a quarter of a second


def openapi(definition: Any) -> dict[str, Any]:
    kind = {"x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Pod"}]}
    return {"components": {"schemas": {"a.Pod": {**definition, **kind}}}}


class Keywords(unittest.TestCase):
    """What Kubernetes' own schemas have no example of."""

    def judge(self, definition: dict[str, Any], value: Any) -> list[str]:
        schemas = schema.Schemas()
        document = openapi({"type": "object", "properties": {"spec": definition}})
        schemas.take(documents.Document(document, "made up", 1))
        return schemas.judge({}, {"apiVersion": "v1", "kind": "Pod", "spec": value})

    def found(self, definition: dict[str, Any], value: Any) -> list[str]:
        return [each for each in self.judge(definition, value) if each.startswith("spec")]

    def test_table(self) -> None:
        any_of = {"anyOf": [{"minimum": 5}, {"enum": [1]}]}
        bounds = {"minimum": 1, "maximum": 2, "exclusiveMinimum": True, "exclusiveMaximum": True}
        for definition, value, expected in (
            (any_of, 7, None),
            (any_of, 1, None),
            (any_of, 3, "spec fits none of the schema's alternatives"),
            ({"anyOf": [{"properties": {"a": {"enum": [1]}}}]}, {"a": 1, "b": 2}, None),
            ({"oneOf": [{"type": "string"}, {"minimum": 5}]}, 6, None),
            ({"not": {"enum": ["x"]}}, "x", "spec is what the schema rules out"),
            ({"not": {"enum": ["x"]}}, "y", None),
            ({"allOf": [{"minimum": 5}, {"maximum": 6}]}, 4, "spec is 4, and must be at least 5"),
            (bounds, 1, "spec is 1, and must be over 1"),
            (bounds, 2, "spec is 2, and must be under 2"),
            (bounds, 1.5, None),
            ({"pattern": r"^\pL+$"}, "5", None),  # which Python can't read
            ({"type": "new"}, 5, None),
            ({"format": "cidr"}, "10.0.0.0/8", None),
            ({"format": "cidr"}, "10.0.0.0/80", "spec is \"10.0.0.0/80\", and must be a network, "
             "as 10.0.0.0/8"),
            ({"format": "ipv6"}, "::1", None),
            ({"format": "password"}, "x", None),
            ({"format": "int64", "type": "integer"}, 2**63, "spec is 9223372036854775808, and must "
             "be a whole number of 64 bits"),
            ({"nullable": True, "type": "string"}, None, None),
            ({"type": "object", "minProperties": 1}, {}, "spec has 0 fields, and must have at "
             "least 1"),
            ({"additionalProperties": True}, {"a": 1}, None),
            ({"$ref": "#/components/schemas/elsewhere"}, {"a": 1}, None),
            ({"type": "array", "items": {"type": "string"}, "x-kubernetes-patch-merge-key": "a"},
             ["x"], None),
            ({"items": {}, "x-kubernetes-patch-merge-key": "a"}, [{"a": "x"}, {"a": "x", "b": 1}],
             "spec[x] is there 2 times, and must be there once (by a)"),
        ):  # fmt: skip
            with self.subTest(definition, value=value):
                self.assertEqual(self.found(definition, value), [expected] if expected else [])


class Reading(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def fault(self, name: str, text: str) -> str:
        file = self.folder / name
        file.write_text(text)
        with self.assertRaises(whook.ConfigError) as caught:
            schema.load([str(file)])
        self.assertNotIn("\n", caught.exception.message)
        self.assertNotEqual(caught.exception.hint, "")
        return caught.exception.message.replace(str(file), "FILE")

    def test_what_is_no_schema(self) -> None:
        crd = "kind: CustomResourceDefinition\nspec: {group: x, names: {kind: K}, versions: [%s]}"
        bad = [
            ("", "FILE holds nothing"),
            ("5", "FILE, line 1: what stands here is no object"),
            ("kind: Pod", "FILE holds no schema"),
            ("components: {}", "FILE, line 1: no good schema: 'schemas' is missing"),
            ("components: {schemas: {}}", "FILE holds no schema"),
            ("components: {schemas: {a: 5}}", "FILE, line 1: no good schema: a is no object"),
            ("components: {schemas: {a: {properties: [b]}}}",
             'FILE, line 1: no good schema: a: properties is ["b"]'),
            ("components: {schemas: {a: {properties: {b: {required: [5]}}}}}",
             "FILE, line 1: no good schema: a.b: required is not a list of names"),
            (crd % "{name: v1}", "FILE, line 1: no good schema: 'schema' is missing"),
            (crd % "{name: v1, schema: {openAPIV3Schema: {items: {minLength: x}}}}",
             'FILE, line 1: no good schema: K.items: minLength is "x"'),
        ]  # fmt: skip
        for text, expected in bad:
            with self.subTest(text):
                self.assertEqual(self.fault("schema.yaml", text), expected)
        self.assertRegex(self.fault("schema.yaml", "a: ["), "^FILE, line [12]: not YAML: ")

    def test_files_and_folders(self) -> None:
        with self.assertRaises(whook.ConfigError) as caught:
            schema.load([str(self.folder)])
        self.assertEqual(str(caught.exception), f"{self.folder} holds nothing")
        with self.assertRaises(whook.ConfigError) as caught:
            schema.load(["/nowhere.json"])
        self.assertIn("can't read /nowhere.json: ", str(caught.exception))
        shutil.copy(SCHEMAS / "core.json", self.folder)
        (self.folder / "b.yaml").write_text("a: b")
        with self.assertRaises(whook.ConfigError) as caught:
            schema.load([str(self.folder)])
        self.assertEqual(str(caught.exception), f"{self.folder}/b.yaml holds no schema")

    def test_a_list_of_crds(self) -> None:
        """As `kubectl get crds -o yaml` prints them; and several documents, of other kinds too."""
        (crd,) = documents.read(str(SCHEMAS / "widget.yaml"))
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [crd.value]})
        for name, content in (
            ("list.json", text),
            ("list.yaml", f"kind: Namespace\n---\n{text}\n---\n"),
        ):
            (self.folder / name).write_text(content)
            self.assertTrue(schema.load([str(self.folder / name)]).knows(OBJECTS["Widget"]), name)

    def test_references_in_a_circle(self) -> None:
        document = openapi({"properties": {"spec": {"$ref": "#/components/schemas/a"}}})
        document["components"]["schemas"]["a"] = {"$ref": "#/components/schemas/a"}
        (self.folder / "a.json").write_text(json.dumps(document))
        after = {"apiVersion": "v1", "kind": "Pod", "spec": 5}
        self.assertNotIn("spec", " ".join(schema.load([str(self.folder)]).judge({}, after)))


class CommandLine(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        for name, item in OBJECTS.items():
            (self.folder / f"{name}.json").write_text(json.dumps(item))

    def review(self, mutate: str, *arguments: str) -> tuple[int, list[str]]:
        (self.folder / "a.py").write_text(f"def mutate(o, r): {mutate}")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = review.main(["--policy", str(self.folder / "a.py"), *arguments])
        return status, [line for line in out.getvalue().splitlines() if line[0] not in "+- @{}"]

    def test_schema(self) -> None:
        pod, schemas = str(self.folder / "Pod.json"), ("--schema", str(SCHEMAS))
        for mutate, expected in (
            ('o["spec"]["hostNetwork"] = True', []),
            # Each is found by the schema only, though that its type changed could be known:
            ('o["spec"]["containers"] = {}', ["spec.containers is {}, and must be a list"]),
            ('o["metadata"]["labels"] = {"a": 5}',
             ["metadata.labels.a is 5, and must be a string"]),
            ('o["metadata"]["name"] = "b"', ["metadata.name was changed from 'a' to 'b'"]),
        ):  # fmt: skip
            with self.subTest(mutate):
                status, (heading, *lines) = self.review(mutate, *schemas, pod)
                self.assertEqual(heading, "CREATE Pod default/a")
                start = "an API server would not take the result: "
                self.assertEqual(lines, [start + each for each in expected])
                self.assertEqual(status, 1 if expected else 0)

    def test_whose_fault_it_is(self) -> None:
        (self.folder / "b.py").write_text('def mutate(o, r): o["spec"]["container"] = []')
        arguments = ("--policy", str(self.folder / "b.py"), "--schema", str(SCHEMAS))
        pod, summary = str(self.folder / "Pod.json"), ("-o", "summary")
        status, lines = self.review('o["spec"]["priority"] = 5', *arguments, *summary, pod)
        table = {row.split()[0]: row.split()[2:] for row in lines[1:3]}
        self.assertEqual(status, 1)
        self.assertEqual(table["a"], ["1", "0", "0", "0", "1"])
        self.assertEqual(table["b"], ["1", "0", "1", "0", "1"])

    def test_a_kind_without_a_schema(self) -> None:
        arguments = ("--schema", str(SCHEMAS / "widget.yaml"), str(self.folder / "Pod.json"))
        note = "none of the schemas is for v1 Pod: its fields are not judged"
        self.assertEqual(self.review('o["spec"]["x"] = 5', *arguments)[1][1:], [note])
        self.assertEqual(self.review("pass", *arguments)[1][1:], [])

    def test_a_bad_file(self) -> None:
        pod, error = str(self.folder / "Pod.json"), io.StringIO()
        with contextlib.redirect_stderr(error):
            self.assertEqual(self.review("pass", "--schema", pod, pod)[0], 1)
        self.assertEqual(
            error.getvalue(),
            f"whook: error: {pod} holds no schema\nwhook: hint: {schema.HINT}\n",
        )


if __name__ == "__main__":
    unittest.main()
