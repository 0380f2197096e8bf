"""Tests of workbench/rules.py and workbench/webhooks.py: what policies want to be asked, what a
configuration asks, and what of it comes to an object. test_e2e holds them against an API server."""

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

import review
import whook
from tests.server import REVIEWS, ROOT
from workbench import rules, webhooks
from workbench.rules import Ask

SHIPPED = [str(path) for path in sorted(ROOT.glob("manifests/8*.yaml"))]
VALIDATE = "def validate(obj, request): pass"
MUTATE = "def mutate(obj, request): pass"


def rule(text: str) -> list[Ask]:
    return rules.rule_of("p.py", f'"""Does it.\n\n{text}\n"""\n'.encode())


def policies(**sources: str) -> list[rules.Wanted]:
    """Policies by name: their rule, a `|` and their code."""
    made = []
    for name, text in sources.items():
        line, _, code = text.partition("|")
        source = f'"""Does it.\n\nRule: {line}.\n"""\n{code}\n'.encode()
        (policy,) = whook.load_policies({f"{name}.py": source}).policies
        made.append(rules.Wanted(policy, rules.rule_of(f"{name}.py", source), source))
    return made


def configuration(*entries: dict, kind: str = "validate", **metadata) -> str:
    """A configuration of whook's as JSON, with good entries but for the fields named."""
    shipped = yaml.safe_load(Path(SHIPPED[kind == "validate"]).read_text())
    (entry,) = shipped["webhooks"]
    shipped["metadata"] |= metadata
    shipped["webhooks"] = [{**entry, **fields} for fields in entries]
    return json.dumps(shipped)


def read(*texts: str):
    """The webhooks and namespaces in these texts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        path.write_text("\n".join(texts))
        return webhooks.read_cluster([str(path)])


def a_rule(*resources: str, operations=("CREATE", "UPDATE"), groups=("",), **fields) -> dict:
    return {
        "rules": [
            {
                "apiGroups": [*groups],
                "apiVersions": ["v1"],
                "resources": [*resources],
                "operations": [*operations],
                **fields,
            }
        ]
    }


class RuleLine(unittest.TestCase):
    def test_what_it_says(self):
        for text, expected in [
            ("CREATE of pods", [Ask("CREATE", "", "pods")]),
            (
                "CREATE,\nUPDATE of pods,\n  pods/resize",
                [Ask(op, "", x) for x in ("pods", "pods/resize") for op in ("CREATE", "UPDATE")],
            ),
            (
                "UPDATE of secrets; apps/deployments/scale; CONNECT of pods/exec",
                [
                    Ask("UPDATE", "", "secrets"),
                    Ask("UPDATE", "apps", "deployments/scale"),
                    Ask("CONNECT", "", "pods/exec"),
                ],
            ),
            ("CREATE of pods, pods", [Ask("CREATE", "", "pods")]),
            ("* of example.com/widgets", [
                Ask(each, "example.com", "widgets") for each in rules.OPERATIONS]),
            ("CREATE of networking.k8s.io/ingresses", [
                Ask("CREATE", "networking.k8s.io", "ingresses")]),
            ("CREATE of pods/*, apps/*, apps/deployments/*", [
                Ask("CREATE", "", "pods/*"), Ask("CREATE", "apps", "*"),
                Ask("CREATE", "apps", "deployments/*")]),
            ("CREATE of *, */*/*", [Ask("CREATE", "*", "*"), Ask("CREATE", "*", "*/*")]),
        ]:  # fmt: skip
            with self.subTest(text):
                self.assertEqual(rule(f"Rule: {text}. And more; of that, CREATE."), expected)
                self.assertEqual(rule(f"Rule: {text}."), expected)

    def test_faults(self):
        example = rules.EXAMPLE
        missing = "a comma, a semicolon or the full stop is missing before this"
        for text, message, hint in [
            ("Rule: CREATE of pod.\n                ^", "`pod` is no resource of the core group",
             "did you mean `pods`?"),
            ("Rule: CREATE of Pods.\n                ^", "`Pods` is no resource of the core group",
             "did you mean `pods`?"),
            ("Rule: CREATE of pods, deployments.\n                      ^",
             "`deployments` is no resource of the core group", "did you mean `apps/deployments`?"),
            ("Rule: CREATE of apps/deployment.\n                ^",
             "`apps/deployment` is no resource of apps", "did you mean `apps/deployments`?"),
            ("Rule: CREATE of pods/resizes.\n                ^",
             "`pods/resizes` is no resource of the core group", "did you mean `pods/resize`?"),
            ("Rule: CREATE of app/deployments.\n                ^",
             "`app` is neither a core resource nor an API group",
             "did you mean `apps/deployments`?"),
            ("Rule: CREATE of */scale.\n                ^",
             "`*` is neither a core resource nor an API group",
             "a core resource as `pods`, or a group and its resource as `apps/deployments`"),
            ("Rule: create of pods.\n      ^",
             "`create` is no operation", "did you mean `CREATE`?"),
            ("Rule: CREATE, PATCH of pods.\n              ^", "`PATCH` is no operation",
             "there are CREATE, UPDATE, DELETE, CONNECT and *"),
            ("Rule: CREATE pods.\n             ^", "`of` is missing after the operations", example),
            ("Rule: CREATE UPDATE of pods.\n             ^", missing, example),
            ("Rule: CREATE of pods services.\n                     ^", missing, example),
            ("Rule: CREATE of pods, , services.\n                      ^",
             "a resource is missing here", example),
            ("Rule: CREATE of pods,.\n                     ^",
             "a resource is missing here", example),
            ("Rule: CREATE of pods;.\n                     ^",
             "a resource is missing here", example),
            ("Rule: of pods.\n      ^", "an operation is missing here", example),
            ("Rule: pods.\n      ^", "the first rule names no operation", example),
            ("Rule: .\n      ^", "the first rule names no operation", example),
            ("Rule: CREATE of pods\n                    ^",
             "the rule has no full stop at its end", example),
            ("Rule: CREATE of pods, pods/exec.\n                      ^",
             "there is no CREATE of pods/exec", "it comes by CONNECT"),
            ("Rule: CREATE, DELETE of pods/resize.\n                        ^",
             "there is no CREATE or DELETE of pods/resize", "it comes by UPDATE"),
            ("Rule: * of pods/log.\n           ^",
             "there is no CREATE or UPDATE or DELETE or CONNECT of pods/log",
             "nobody is asked about what is only read"),
            ("Rule: CONNECT of apps/*.\n                 ^", "there is no CONNECT of apps/*",
             "CONNECT is to a sub-resource, as in CONNECT of pods/exec"),
            ("rule: CREATE of pods.\n^", "`rule:` is written `Rule:`", example),
            ("Rules: CREATE of pods.\n^", "`Rules:` is written `Rule:`", example),
            ("  Rule : CREATE of pods.\n  ^", "`Rule :` is written `Rule:`", example),
        ]:  # fmt: skip
            line, caret = text.split("\n")
            with self.subTest(line), self.assertRaises(whook.ConfigError) as caught:
                rule(line)
            self.assertEqual(str(caught.exception), f"p.py, line 3: {message}\n  {line}\n  {caret}")
            self.assertEqual(caught.exception.hint, hint)

    def test_the_line_of_a_fault(self):
        for text, line in [
            ("Rule: CREATE of pods,\npod.", 4),
            ("Rule: CREATE of pods.\nMore.\nRule: CREATE of pods.", 5),
            ("Rule: CREATE of pods\nA label that is there stays.", 4),
        ]:
            with self.subTest(text), self.assertRaises(whook.ConfigError) as caught:
                rule(text)
            self.assertIn(f"p.py, line {line}: ", str(caught.exception))

    def test_none(self):
        for source, message in [
            ("", "p.py has no docstring, so no rule line"),
            ("x = 1", "p.py has no docstring, so no rule line"),
            ("1", "p.py has no docstring, so no rule line"),
            ('"""Does it. The Rule: CREATE of pods."""', "p.py has no rule line in its docstring"),
        ]:
            with self.subTest(source), self.assertRaises(whook.ConfigError) as caught:
                rules.rule_of("p.py", source.encode())
            self.assertEqual(str(caught.exception), message)

    OPERATION = st.sampled_from(rules.OPERATIONS)
    RESOURCE = st.sampled_from(
        [("", "pods/proxy"), ("", "pods/*"), ("apps", "*"), ("example.com", "x/*"), ("*", "*/*")]
    )
    ASK = st.builds(lambda op, what: Ask(op, *what), OPERATION, RESOURCE)

    @given(st.lists(ASK.filter(lambda ask: webhooks.possible(ask[0], ask[2])), min_size=1))
    def test_written_and_read_again(self, asks):
        self.assertEqual(set(rule(f"Rule: {rules.write_rule(asks)}.")), set(asks))

    WORD = st.sampled_from([*"of,;.*/ \n", "Rule:", "CREATE", " of ", "pods", "apps/x", "é"])

    @given(st.lists(WORD).map("".join))
    def test_anything_is_a_rule_or_a_fault(self, text):
        with contextlib.suppress(whook.ConfigError):
            self.assertTrue(rules.rule_of("p.py", f'"""Rule: {text}"""'.encode()))

    def test_all_that_whook_ships(self):
        """The policies, their copies in the ConfigMap, and the README's first one."""
        files = [*(ROOT / "policies").rglob("*.py")]
        sources = {str(path.relative_to(ROOT)): path.read_bytes() for path in files}
        manifest = yaml.safe_load((ROOT / "manifests/40-configmap.yaml").read_text())
        sources |= {f"40/{name}": text.encode() for name, text in manifest["data"].items()}
        page = (ROOT / "README.md").read_text()
        sources["README"] = re.search("```python\n(.*?)```", page, re.S)[1].encode()
        self.assertGreater(len(sources), 30)
        for name, source in sources.items():
            with self.subTest(name):
                self.assertTrue(rules.rule_of(name, source))


class Entries(unittest.TestCase):
    def written(self, wanted, together=False, name="whook", service="whook/whook") -> dict:
        text = rules.write(wanted, together, name, service)
        return {item["kind"]: item for item in yaml.safe_load_all(text)}

    def test_as_the_manifests_have_them(self):
        """For the shipped policies in one entry they are what is shipped, but for the comments."""
        wanted = rules.load([str(ROOT / "policies")])
        shipped = [yaml.safe_load(Path(path).read_text()) for path in SHIPPED]
        self.assertEqual([*self.written(wanted, together=True).values()], shipped)

    def test_one_for_each_policy(self):
        wanted = policies(
            b="CREATE, DELETE of pods; UPDATE of pods/resize; DELETE of namespaces|"
            + MUTATE
            + "\n"
            + VALIDATE,
            a_B="CREATE of apps/deployments, autoscaling/horizontalpodautoscalers; "
            "* of example.com/widgets, *|" + MUTATE,
        )
        written = self.written(wanted, service="admission/guard", name="mine")
        self.assertEqual([item["metadata"]["name"] for item in written.values()], ["mine"] * 2)
        (one, other), (third,) = (item["webhooks"] for item in written.values())
        self.assertEqual(
            [each["clientConfig"]["service"]["path"] for each in (one, other, third)],
            ["/mutate/b", "/mutate/a_B", "/validate/b"],
        )
        self.assertEqual(
            [each["name"] for each in (one, other, third)],
            ["b.whook.local", "a-b.whook.local", "b.whook.local"],
        )
        self.assertEqual("reinvocationPolicy" in one, True)
        self.assertEqual("reinvocationPolicy" in third, False)
        service = one["clientConfig"]["service"]
        self.assertEqual((service["namespace"], service["name"]), ("admission", "guard"))
        self.assertEqual(
            one["namespaceSelector"]["matchExpressions"][0]["values"],
            ["kube-system", "admission", "whook-renewal"],
        )
        self.assertEqual(
            [self.brief(each) for each in one["rules"]],
            [
                "CREATE of /v1 pods Namespaced",  # no DELETE: mutate is not called there
                "UPDATE of /v1 pods/resize Namespaced",
            ],
        )
        self.assertEqual(
            [self.brief(each) for each in other["rules"]],
            [
                "CREATE of apps/v1 deployments Namespaced",
                "CREATE of autoscaling/v2 horizontalpodautoscalers Namespaced",
                "CREATE UPDATE CONNECT of example.com/* widgets *",
                "CREATE UPDATE CONNECT of */* * *",
            ],
        )
        self.assertEqual(
            [self.brief(each) for each in third["rules"]],
            [
                "CREATE DELETE of /v1 pods Namespaced",
                "UPDATE of /v1 pods/resize Namespaced",
                "DELETE of /v1 namespaces Cluster",
            ],
        )

    def brief(self, fields: dict) -> str:
        lists = ("operations", "apiGroups", "apiVersions", "resources")
        operations, group, version, resources = (" ".join(fields[key]) for key in lists)
        return f"{operations} of {group}/{version} {resources} {fields['scope']}"

    def test_what_was_written_passes_the_check(self):
        wanted = rules.load([str(ROOT / "policies"), str(ROOT / "policies/library")])
        for together in (False, True):
            with self.subTest(together=together):
                text = rules.write(wanted, together, "whook", "whook/whook")
                self.assertEqual(rules.check(read(text)[0], wanted, {}), [])


class Check(unittest.TestCase):
    PODS = "CREATE, UPDATE of pods"
    WHERE = "validate.whook.local (ValidatingWebhookConfiguration whook): "

    def findings(self, wanted, *texts: str) -> list[str]:
        found, namespaces = read(*texts)
        return [line.removeprefix(self.WHERE) for line in rules.check(found, wanted, namespaces)]

    def test_what_is_shipped(self):
        wanted = rules.load([str(ROOT / "policies")])
        found, namespaces = webhooks.read_cluster([str(ROOT / "manifests")])
        self.assertEqual(len(found), 2)
        self.assertEqual([*namespaces], ["whook"])
        self.assertEqual(rules.check(found, wanted, namespaces), [])

    def test_what_the_page_shows(self):
        """The entries in policies/README.md, with the policies that they are for."""
        page = (ROOT / "policies/README.md").read_text()
        block = textwrap.dedent(re.search(r"( *)```yaml\n(.*?)```", page, re.S)[2])
        library = ROOT / "policies/library"
        wanted = rules.load([str(library / f"{name}.py") for name in ("sidecar", "pod-hardening")])
        found, _ = read(json.dumps(yaml.safe_load(block)))
        self.assertEqual(len(found), 2)
        self.assertEqual(rules.check(found, wanted, {}), [])

    def test_never_asked(self):
        wanted = policies(a=f"{self.PODS}|{VALIDATE}", b=f"{self.PODS}; apps/deployments|{MUTATE}")
        good = a_rule("pods")
        lost = 'policy "b" is never asked to mutate: no webhook sends it '
        lost += "CREATE, UPDATE of pods, apps/deployments"
        path = {"clientConfig": {"service": {"path": "/validate/b"}}}
        self.assertEqual(self.findings(wanted, configuration(good)), [lost])
        self.assertEqual(
            self.findings(wanted, configuration(good | path)),
            [
                f'policy "a" is never asked to validate: no webhook sends it {self.PODS}',
                lost,
                "no policy is behind /validate/b: whook answers 404",
            ],
        )
        alone = policies(b=f"{self.PODS}|{MUTATE}")
        self.assertIn(
            "no policy is behind /validate: whook passes all of it",
            self.findings(alone, configuration(good)),
        )
        entry = a_rule("pods", "deployments", groups=["apps", ""], operations=["CREATE"])
        self.assertEqual(
            self.findings(wanted, configuration(good), configuration(entry, kind="mutate")),
            ['policy "b" is not asked about UPDATE of pods, apps/deployments'],
        )

    def test_asked_by_either_function(self):
        """A policy with both may have a part of its rule asked of one only, but each of some."""
        wanted = policies(a=f"{self.PODS}|{VALIDATE}\n{MUTATE}")
        create, update = (a_rule("pods", operations=[each]) for each in ("CREATE", "UPDATE"))
        both = configuration(update), configuration(create, kind="mutate")
        self.assertEqual(self.findings(wanted, *both), [])
        self.assertEqual(
            self.findings(wanted, configuration(a_rule("pods"))),
            [f'policy "a" is never asked to mutate: no webhook sends it {self.PODS}'],
        )

    def test_what_stops_a_rule(self):
        for rule_fields, sent in [
            (a_rule("pods"), True),
            (a_rule("pods/*", operations=["*"], groups=["*"], apiVersions=["*"]), True),
            (a_rule("pods", scope="Cluster"), False),
            (a_rule("pods", apiVersions=["v1beta1"]), False),
            (a_rule("pods", groups=["core"]), False),
            (a_rule("pods/status"), False),
            (a_rule("*/status"), False),
        ]:
            with self.subTest(rule_fields):
                wanted = policies(a=f"{self.PODS}, pods/*|{VALIDATE}")[:1]
                wanted[0] = wanted[0]._replace(asks=[Ask("CREATE", "", "pods")])
                lost = 'policy "a" is never asked to validate: no webhook sends it CREATE of pods'
                self.assertEqual(
                    lost not in self.findings(wanted, configuration(rule_fields)), sent
                )

    def test_asked_about_what_nobody_looks_at(self):
        wanted = policies(a=f"{self.PODS}|{VALIDATE}")
        for entry, expected in [
            (a_rule("pods", "services"),
             "asks about CREATE, UPDATE of services, which no policy behind /validate looks at"),
            (a_rule("pods", operations=["*"]),
             "asks about DELETE of pods, which no policy behind /validate looks at"),
            (a_rule("*"),
             "asks about CREATE, UPDATE of *, which no policy behind /validate looks at"),
            (a_rule("pods", groups=["", "apps"]), None),  # apps has no pods
            (a_rule("pods", operations=["CREATE", "UPDATE", "PATCH"]),
             "asks about PATCH of pods, which no policy behind /validate looks at"),
            (a_rule("pods", "pod"), 'there is no resource pod in group ""'),
            (a_rule("pods", "deployments"), 'there is no resource deployments in group ""'),
        ]:  # fmt: skip
            with self.subTest(entry):
                expected = [expected] if expected else []
                self.assertEqual(self.findings(wanted, configuration(entry)), expected)

    def test_mutate_is_not_called_on_delete(self):
        wanted = policies(a=f"* of pods|{MUTATE}")
        entry = configuration(a_rule("pods", operations=["*"]), kind="mutate")
        where = "mutate.whook.local (MutatingWebhookConfiguration whook): "
        self.assertEqual(
            self.findings(wanted, entry)[-1],
            f"{where}asks about DELETE of pods, which no policy behind /mutate looks at",
        )

    def test_what_does_not_exist_is_not_missed(self):
        """There is no CREATE of an ephemeral container, and no CONNECT to a pod."""
        wanted = policies(a=f"CREATE, UPDATE of pods, pods/ephemeralcontainers|{VALIDATE}")
        split = {
            "rules": a_rule("pods")["rules"]
            + a_rule("pods/ephemeralcontainers", operations=["UPDATE"])["rules"]
        }
        self.assertEqual(self.findings(wanted, configuration(split)), [])
        wide = a_rule(
            "pods", "pods/ephemeralcontainers", operations=["CREATE", "UPDATE", "CONNECT"]
        )
        self.assertEqual(self.findings(wanted, configuration(wide)), [])
        self.assertEqual(
            [*rules.check([], policies(a=f"CREATE, UPDATE of pods/resize|{VALIDATE}"), {})],
            ['policy "a" is never asked to validate: no webhook sends it UPDATE of pods/resize'],
        )

    def test_a_policy_for_everything(self):
        """It is asked enough if it is asked about something."""
        wanted = policies(a=f"CREATE of *|{VALIDATE}")
        entry = a_rule("pods", "configmaps", operations=["CREATE"])
        self.assertEqual(self.findings(wanted, configuration(entry)), [])
        entry = a_rule("pods/exec", operations=["CONNECT"])
        self.assertEqual(len(self.findings(wanted, configuration(entry))), 2)

    def test_what_slips_past(self):
        finding = (
            'policy "a" reads containers, and neither pods/ephemeralcontainers nor pods/resize'
            " comes to it: kubectl debug and a resize slip past it"
        )
        reading = 'def validate(o, r): o["spec"]["containers"]'
        for rule_text, code, found in [
            ("pods", reading, True),
            ("pods", 'def validate(o, r): r.read(o, "spec.initContainers")', True),
            ("pods", "from objects import containers_of\n" + VALIDATE, False),
            ("pods", "def validate(o, r): containers_of(o, r)", True),
            ("pods", VALIDATE + "\n'A text about containers.'", False),
            ("pods, pods/resize", reading, False),
            ("pods, pods/ephemeralcontainers", reading, False),
            ("apps/deployments", reading, False),
            ("pods", reading.replace("validate", "mutate"), False),
        ]:
            with self.subTest(rule=rule_text, code=code):
                wanted = policies(a=f"CREATE, UPDATE of {rule_text}|{code}")
                texts = rules.write(wanted, False, "whook", "whook/whook")
                self.assertEqual(self.findings(wanted, texts), [finding] if found else [])

    def test_selectors_that_nothing_meets(self):
        name, own = "kubernetes.io/metadata.name", {"whook": "enabled"}
        nowhere = "namespaceSelector leaves it without a namespace: "
        wanted = policies(a=f"{self.PODS}|{VALIDATE}")
        for labels, expressions, expected in [
            ({}, [], None),
            (own, [("whook", "NotIn", ["enabled"])], "none is as it wants whook"),
            (own, [("whook", "NotIn", ["disabled"])], None),
            (own, [("whook", "DoesNotExist", None)], "none is as it wants whook"),
            ({}, [("a", "Exists", None), ("a", "NotIn", ["b"])], None),
            ({}, [("a", "In", ["b", "c"]), ("a", "NotIn", ["b"])], None),
            ({}, [("a", "In", ["b"]), ("a", "In", ["c"])], "none is as it wants a"),
            ({name: "x"}, [(name, "NotIn", ["x"])], f"none is as it wants {name}"),
            ({}, [(name, "DoesNotExist", None)], f"none is as it wants {name}"),
        ]:
            with self.subTest(labels=labels, expressions=expressions):
                keys = ("key", "operator", "values")
                parts = [dict(zip(keys, each, strict=True)) for each in expressions]
                selector = {"matchLabels": labels, "matchExpressions": parts}
                entry = a_rule("pods") | {"namespaceSelector": selector}
                expected_findings = [nowhere + expected] if expected else []
                self.assertEqual(self.findings(wanted, configuration(entry)), expected_findings)
                entry["objectSelector"] = entry.pop("namespaceSelector")
                if expected and name not in expected:
                    self.assertEqual(
                        self.findings(wanted, configuration(entry)),
                        ["objectSelector leaves it without an object: nothing is as it wants "
                         + expected.split()[-1]],
                    )  # fmt: skip

    def test_namespaces_that_there_are(self):
        wanted = policies(a=f"{self.PODS}|{VALIDATE}")
        shop, system = (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in ("shop", "kube-system")
        )
        entry = configuration(a_rule("pods"))
        self.assertEqual(self.findings(wanted, entry, json.dumps(shop)), [])  # not all there are
        self.assertEqual(
            self.findings(wanted, entry, json.dumps(shop), json.dumps(system)),
            [
                "namespaceSelector leaves it without a namespace: none of the 2 that there are has"
                " whook=enabled, kubernetes.io/metadata.name NotIn kube-system, whook,"
                " whook-renewal"
            ],
        )
        shop["metadata"]["labels"] = {"whook": "enabled"}
        self.assertEqual(self.findings(wanted, entry, json.dumps(shop), json.dumps(system)), [])

    def test_selectors_that_do_not_count(self):
        """What lives in no namespace is never left out; a Namespace is, by its own labels."""
        never = {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}
        nowhere = "namespaceSelector leaves it without a namespace: none is as it wants a"
        fail = (
            "failurePolicy is Fail, and namespaceSelector does not leave out whook or kube-system:"
            " while whook is down it could keep itself from starting"
        )
        for resource, counts in (("nodes", False), ("namespaces", True), ("example.com/x", True)):
            group, _, name = f"/{resource}".rpartition("/")
            wanted = policies(a=f"CREATE, UPDATE of {resource}|{VALIDATE}")
            entry = a_rule(name, groups=[group.strip("/")])
            for fields, finding in [
                ({"namespaceSelector": never}, nowhere),
                ({"namespaceSelector": None, "failurePolicy": "Fail"}, fail),
            ]:
                with self.subTest(resource=resource, fields=fields):
                    self.assertEqual(
                        self.findings(wanted, configuration(entry | fields)),
                        [finding] if counts else [],
                    )

    def test_no_way_back(self):
        wanted = policies(a=f"{self.PODS}|{VALIDATE}")
        name = "kubernetes.io/metadata.name"
        for left_out, policy, named in [
            (["whook", "kube-system"], "Fail", None),
            (["kube-system"], "Fail", "whook"),
            (["whook"], "Fail", "kube-system"),
            ([], "Fail", "whook or kube-system"),
            ([], None, "whook or kube-system"),  # Fail is the default
            ([], "Ignore", None),
        ]:
            with self.subTest(left_out=left_out, policy=policy):
                excluded = {"key": name, "operator": "NotIn", "values": left_out}
                entry = a_rule("pods") | {"failurePolicy": policy}
                entry["namespaceSelector"] = {"matchExpressions": [excluded]}
                expected = (
                    f"failurePolicy is Fail, and namespaceSelector does not leave out {named}:"
                    " while whook is down it could keep itself from starting"
                )
                self.assertEqual(
                    self.findings(wanted, configuration(entry)), [expected] if named else []
                )

    def test_settings(self):
        wanted = policies(a=f"{self.PODS}|{VALIDATE}", b=f"{self.PODS}|{MUTATE}")
        wanted, mutating = wanted[:1], wanted[1:]
        for seconds, good in ((1, False), (2, True), (None, True)):
            with self.subTest(seconds=seconds):
                expected = "timeoutSeconds is 1, but the policies alone may take 1 s together; "
                entry = a_rule("pods") | {"timeoutSeconds": seconds}
                self.assertEqual(
                    self.findings(wanted, configuration(entry)),
                    [] if good else [f"{expected}2 or more"],
                )
        entry = a_rule("pods") | {"clientConfig": {"service": {"path": "/mutate"}}}
        self.assertEqual(
            self.findings(mutating, configuration(entry)),
            ["/mutate changes nothing here: a validating webhook's patch is not taken"],
        )

    def test_whose_they_are(self):
        for client, labels, own in [
            ({"service": {"namespace": "whook", "name": "whook"}}, {}, True),
            ({"service": {"namespace": "other", "name": "whook"}}, {}, False),
            ({"url": "https://127.0.0.1:9443/validate"}, {}, False),
            ({"url": "https://127.0.0.1:9443/validate"}, {rules.LABEL: "whook"}, True),
        ]:
            with self.subTest(client=client, labels=labels):
                (webhook,), _ = read(configuration({"clientConfig": client}, labels=labels))
                self.assertEqual(rules.is_whooks(webhook, "whook/whook"), own)
                if "url" in client:
                    self.assertEqual(webhook.path, "/validate")

    def test_what_can_not_be_read(self):
        where = "x.json, line 1: ValidatingWebhookConfiguration whook: "
        for entry, message in [
            ({"rules": {}}, "rules must be a list"),
            ({"rules": [5]}, "rules must be an object"),
            ({"rules": [{"resources": "pods"}]}, "resources must be a list"),
            ({"rules": [{"resources": [5]}]}, "resources must be a string"),
            ({"clientConfig": "x"}, "clientConfig must be an object"),
            ({"objectSelector": {"matchLabels": []}}, "matchLabels must be an object"),
            ({"namespaceSelector": {"matchExpressions": [{"operator": "Is"}]}},
             "a selector's operator is 'Is'"),
        ]:  # fmt: skip
            with self.subTest(message), self.assertRaises(whook.ConfigError) as caught:
                read(configuration(entry))
            self.assertTrue(str(caught.exception).endswith(where + message), caught.exception)

    PLACES = ("webhooks", 0), ("metadata",), ("metadata", "labels"), ("webhooks", 0, "rules", 0)
    PLACES += tuple(("webhooks", 0, key) for key in ("clientConfig", "namespaceSelector"))
    PLACES += (("webhooks", 0, "namespaceSelector", "matchExpressions", 0),)
    ANY = st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["", "*", "x", "https://["]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("x"), inner),
    )

    @given(st.sampled_from(PLACES), st.integers(0), ANY)
    def test_anything_is_read_or_refused(self, place, choice, value):
        """Whatever stands in a field: a ConfigError, or findings and lines."""
        document = json.loads(configuration(a_rule("pods")))
        target = document
        for key in place:
            target = target[key]
        keys = sorted(target)
        target[keys[choice % len(keys)]] = value
        with contextlib.suppress(whook.ConfigError):
            found, namespaces = read(json.dumps(document))
            rules.check(found, policies(a=f"{self.PODS}|{VALIDATE}"), namespaces)
            webhooks.asked(found, json.loads(REVIEWS["create-pod"]), namespaces)


class Asked(unittest.TestCase):
    """The lines; whom a real API server asks is in test_e2e."""

    def asked(self, name: str | dict, *entries: dict, namespaces=None) -> list[str]:
        found, _ = read(configuration(*entries))
        body = json.loads(REVIEWS[name]) if isinstance(name, str) else name
        known = {"shop2": {"whook": "enabled"}} if namespaces is None else namespaces
        return webhooks.asked(found, body, known)

    NO = "validate.whook.local (ValidatingWebhookConfiguration whook) is not asked"
    YES = "validate.whook.local (ValidatingWebhookConfiguration whook) is asked"

    def test_is_asked(self):
        self.assertEqual(self.asked("create-pod", a_rule("pods")), [self.YES])
        self.assertEqual(self.asked("create-pod"), ["there is no webhook to be asked"])

    def test_what_of_a_rule_stops_it(self):
        for name, entry, reason in [
            ("create-pod", a_rule("pods", operations=["DELETE", "CONNECT"]),
             "rule 1 is for operation DELETE or CONNECT, and this is CREATE"),
            ("create-pod", a_rule("pods", groups=["apps"]),
             'rule 1 is for group apps, and this is ""'),
            ("create-pod", a_rule("pods", apiVersions=["v2"]),
             "rule 1 is for version v2, and this is v1"),
            ("create-pod", a_rule("services", "pods/*x"),
             "rule 1 is for services or pods/*x, and this is pods"),
            ("update-pod-ephemeralcontainers", a_rule("pods"),
             "rule 1 is for pods, and this is pods/ephemeralcontainers"),
            ("create-pod", a_rule("pods", scope="Cluster"),
             "rule 1 is for scope Cluster, and this lives in a namespace"),
            ("connect-pod-exec", a_rule("pods"),
             "rule 1 is for operation CREATE or UPDATE, and this is CONNECT; for pods, and this is"
             " pods/exec"),
            ("create-pod", {"rules": a_rule("nodes", groups=["apps"])["rules"]
                            + a_rule("services")["rules"]},
             "rule 2 is for services, and this is pods"),
            ("create-pod", {"rules": None}, "it has no rules"),
        ]:  # fmt: skip
            with self.subTest(reason):
                self.assertEqual(self.asked(name, entry), [self.NO, f"  {reason}"])

    def test_other_versions(self):
        scaler = {"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler"}
        body = review.as_review(scaler | {"metadata": {"namespace": "shop2", "name": "x"}})
        widget = json.loads(REVIEWS["create-widget-custom-resource"])
        widget["request"]["namespace"] = "shop2"
        second = a_rule("horizontalpodautoscalers", groups=["autoscaling"], apiVersions=["v2"])
        beta = a_rule("widgets", groups=["example.com"], apiVersions=["v1beta1"])
        form = "as example.com/v1beta1, by matchPolicy Equivalent, if the cluster serves that too"
        for request, entry, lines in [
            (body, second, [self.YES, "  as autoscaling/v2, by matchPolicy Equivalent"]),
            (body, second | {"matchPolicy": "Exact"}, [
                self.NO, "  rule 1 is for version v2, and this is v1 (it would come as"
                " autoscaling/v2, by matchPolicy Equivalent)"]),
            (widget, beta, [self.YES, f"  {form}"]),
            (widget, beta | {"matchPolicy": "Exact"}, [
                self.NO,
                f"  rule 1 is for version v1beta1, and this is v1 (it would come {form})"]),
        ]:  # fmt: skip
            with self.subTest(lines):
                self.assertEqual(self.asked(request, entry), lines)

    def test_the_namespace(self):
        wants = "  namespaceSelector wants whook=enabled, and "
        for namespaces, lines in [
            ({}, [f'{wants}the labels of namespace "shop2" are not known: say --namespace-label']),
            ({"shop2": {}}, [f'{wants}namespace "shop2" has no such label']),
            ({"shop2": {"whook": "x"}}, [f'{wants}namespace "shop2" has whook=x']),
        ]:
            with self.subTest(namespaces):
                self.assertEqual(
                    self.asked("create-pod", a_rule("pods"), namespaces=namespaces),
                    [self.NO, *lines],
                )
        system = json.loads(REVIEWS["create-pod"])
        system["request"]["namespace"] = "kube-system"
        namespaces = {"kube-system": {"whook": "enabled"}}
        self.assertEqual(
            self.asked(system, a_rule("pods"), namespaces=namespaces),
            [
                self.NO,
                "  namespaceSelector wants kubernetes.io/metadata.name NotIn kube-system, whook,"
                ' whook-renewal, and namespace "kube-system" has'
                " kubernetes.io/metadata.name=kube-system",
            ],
        )

    def test_the_object(self):
        entry = a_rule("pods") | {"objectSelector": {"matchLabels": {"app": "none"}}}
        wants = "  objectSelector wants app=none, which the object's labels don't meet"
        self.assertEqual(self.asked("create-pod", entry), [self.NO, wants])

    def test_what_an_exec_sends_has_no_labels(self):
        """Not even none, which a selector could want."""
        absent = {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}
        entry = a_rule("pods/exec", operations=["CONNECT"]) | {"objectSelector": absent}
        wants = "  objectSelector wants app DoesNotExist, which the object's labels don't meet"
        self.assertEqual(self.asked("connect-pod-exec", entry), [self.NO, wants])

    def test_a_namespace(self):
        """It lives in none, though the review names one, and its own labels count."""
        outside = "  rule 1 is for scope Namespaced, and this lives in none"
        wants = '  namespaceSelector wants whook=enabled, and namespace "shop" has no such label'
        created = json.loads(REVIEWS["create-namespace"])
        labelled = json.loads(REVIEWS["create-namespace"])
        labelled["request"]["object"]["metadata"]["labels"]["whook"] = "enabled"
        known = {"shop": {"whook": "other"}}
        for request, scope, lines in [
            (created, "Cluster", [self.NO, wants]),
            (labelled, "Cluster", [self.YES]),
            (labelled, "Namespaced", [self.NO, outside]),
        ]:
            with self.subTest(lines):
                entry = a_rule("namespaces", scope=scope)
                self.assertEqual(self.asked(request, entry, namespaces=known), lines)
        deleted = json.loads(json.dumps(labelled))
        deleted["request"] |= {"operation": "DELETE", "object": None}
        entry = a_rule("namespaces", operations=["DELETE"])
        self.assertEqual(
            self.asked(deleted, entry, namespaces=known),
            [self.NO, wants.replace("no such label", "whook=other")],
        )

    def test_what_lives_in_no_namespace(self):
        node = review.as_review({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}})
        self.assertEqual(self.asked(node, a_rule("nodes")), [self.YES])

    def test_conditions_are_shown(self):
        condition = {"name": "mine", "expression": "request.userInfo.username ==\n  'me'"}
        entry = a_rule("pods") | {"matchConditions": [condition]}
        self.assertEqual(
            self.asked("create-pod", entry),
            [
                self.YES,
                "  if this holds, which is not evaluated here: mine: request.userInfo.username =="
                " 'me'",
            ],
        )

    def test_configurations_themselves(self):
        """Only what an API server has from its own files is asked about these."""
        entry = a_rule("*", groups=["*"]) | {"namespaceSelector": None}
        body = review.as_review(yaml.safe_load(Path(SHIPPED[0]).read_text()))
        why = "  about a MutatingWebhookConfiguration only static configurations are asked"
        self.assertEqual(self.asked(body, entry), [self.NO, why])
        (static,), _ = read(configuration(entry, name="x.static.k8s.io"))
        self.assertEqual(webhooks.asked([static], body, {}), [f"{static} is asked"])

    def test_what_later_servers_ask_nobody_about(self):
        entry = a_rule("*", groups=["*"], apiVersions=["*"])
        token = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}}
        body = review.as_review(token)
        body["request"]["namespace"] = ""
        self.assertEqual(
            self.asked(body, entry),
            [self.YES, "  up to Kubernetes 1.36; later, nobody is asked about these"],
        )

    def test_the_order(self):
        """As an API server asks: mutating before validating, by the configuration's name."""
        kinds = [("validate", "a"), ("mutate", "c"), ("mutate", "b")]
        two = {"name": "one.whook.local"}, {"name": "another.whook.local"}
        texts = [configuration(*two, kind=kind, name=name) for kind, name in kinds]
        found, _ = read(*texts)
        self.assertEqual(
            [str(each) for each in found],
            [
                f"{name} ({kind})"
                for kind in (
                    "MutatingWebhookConfiguration b",
                    "MutatingWebhookConfiguration c",
                    "ValidatingWebhookConfiguration a",
                )
                for name in ("one.whook.local", "another.whook.local")
            ],
        )


class CommandLine(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def run_review(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = review.main(arguments)
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def test_printing(self):
        policy = str(ROOT / "policies/team-label.py")
        status, out, err = self.run_review("rules", "--policy", policy)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out, rules.write(rules.load([policy]), False, "whook", "whook/whook"))
        status, out, _ = self.run_review("rules", "--policy", policy, "--together", "--name", "x")
        self.assertEqual(out, rules.write(rules.load([policy]), True, "x", "whook/whook"))

    def test_checking(self):
        policy = ("rules", "--policy", str(ROOT / "policies"))
        self.assertEqual(
            self.run_review(*policy, "--check", *SHIPPED),
            (0, "webhooks of whook's: 2, policies: 2, findings: 0\n", ""),
        )
        status, out, _ = self.run_review(*policy, "--check", SHIPPED[1])
        self.assertEqual(status, 1)
        self.assertEqual(
            out,
            'policy "team-label" is never asked to mutate: no webhook sends it CREATE of pods\n'
            "webhooks of whook's: 1, policies: 2, findings: 1\n",
        )
        status, out, _ = self.run_review(*policy, "--check", *SHIPPED, "--service", "other/whook")
        self.assertEqual((status, len(out.splitlines())), (1, 3))

    def test_a_cluster_on_standard_input(self):
        """As `kubectl get … -o yaml` prints it."""
        items = [yaml.safe_load(Path(path).read_text()) for path in SHIPPED]
        cluster = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items})
        command = [sys.executable, ROOT / "review.py", "rules", "--policy", ROOT / "policies"]
        done = subprocess.run(
            [*command, "--check", "-"], input=cluster.encode(), capture_output=True
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_a_fault(self):
        (self.folder / "a.py").write_text(f'"""Rule: CREATE of pod."""\n{VALIDATE}\n')
        path = self.folder / "a.py"
        self.assertEqual(
            self.run_review("rules", "--policy", str(path)),
            (
                1,
                "",
                textwrap.dedent(f"""\
                    whook: error: {path}, line 1: `pod` is no resource of the core group
                      Rule: CREATE of pod.
                                      ^
                    whook: hint: did you mean `pods`?
                    """),
            ),
        )

    def test_wrong_usage(self):
        for arguments in (
            [],
            ["--policy", "x", "--service", "whook"],
            ["--policy", "x", "--check"],
        ):
            with self.subTest(arguments):
                status, out, err = self.run_review("rules", *arguments)
                self.assertEqual((status, out), (2, ""))
                self.assertIn("usage: python review.py rules ", err)

    def test_webhooks(self):
        (self.folder / "pod.json").write_text(
            json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})
        )
        pod, manifests = str(self.folder / "pod.json"), ["--webhooks", str(ROOT / "manifests")]
        label = ["--namespace-label", "whook=enabled"]
        status, out, err = self.run_review(*manifests, *label, pod)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out,
            "CREATE pods default/x\n"
            "  mutate.whook.local (MutatingWebhookConfiguration whook) is asked\n"
            "  validate.whook.local (ValidatingWebhookConfiguration whook) is asked\n",
        )
        self.assertEqual(self.run_review(*manifests, pod)[0], 1)
        (self.folder / "namespaces.json").write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": "default", "labels": {"whook": "enabled"}},
                }
            )
        )
        known = ["--webhooks", str(self.folder / "namespaces.json")]
        self.assertEqual(self.run_review(*manifests, *known, pod)[:2], (0, out))
        status, _, err = self.run_review(*manifests, "--namespace-label", "whook", pod)
        self.assertEqual(
            (status, err),
            (1, "whook: error: 'whook' is no label\n"
                "whook: hint: as in --namespace-label whook=enabled\n"),
        )  # fmt: skip

    def test_webhooks_of_what_is_no_review(self):
        path = self.folder / "review.json"
        path.write_text('{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}')
        self.assertEqual(
            self.run_review("--webhooks", *SHIPPED[:1], str(path))[2].splitlines()[0],
            f"whook: error: {path}, line 1: the AdmissionReview has no request",
        )

    def test_webhooks_and_policies(self):
        status, _, err = self.run_review("--webhooks", "x", "--policy", "y", "z")
        self.assertEqual(status, 2)
        self.assertIn("--webhooks runs no policy: leave --policy out", err)


if __name__ == "__main__":
    unittest.main()
