"""Tests of policies/: each policy's patches and denials on real reviews, then all of them together
on every review, on broken objects, and before a real API server."""

import base64
import copy
import functools
import json
import random
import re
import textwrap
import time
import unittest
from pathlib import Path
from unittest import mock

import jsonpatch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import whook
from objects import add, containers_of, edit, kind_of, matches, pod_of, read, terminating
from tests import controlplane
from tests.server import Whook, wait_for
from workbench import cases
from workbench.cover import Cover

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [str(ROOT / "policies"), str(ROOT / "policies/library")]
POLICIES = whook.load_policies(whook.read_sources(FOLDERS)).policies
CASES = list(cases.read([str(ROOT / "policies")]))
BY_NAME = {policy.name: policy for policy in POLICIES}
MUTATING = [policy for policy in POLICIES if policy.mutate]
VALIDATING = [policy for policy in POLICIES if policy.validate]
REVIEWS = {
    path.stem: json.loads(path.read_text()) for path in (ROOT / "tests/reviews").glob("*.json")
}


def setUpModule():
    """A busy machine is no policy's fault."""
    patience = mock.patch.object(whook, "TIME_LIMIT", 30.0)
    patience.start()
    unittest.addModuleCleanup(patience.stop)


def review(name, changes=None) -> dict:
    """A real review, with values put at some JSON pointers in its request."""
    return changed(REVIEWS[name], changes or {})


def changed(document, changes) -> dict:
    steps = [
        {"op": "add", "path": f"/request{path}", "value": copy.deepcopy(value)}
        for path, value in changes.items()
    ]
    return jsonpatch.apply_patch(document, steps)


def policy_of(case) -> str:
    return Path(case.policies[0]).stem


def parse(document: dict) -> whook.Request:
    return whook.parse_review(json.dumps(document).encode())


def mutate(document: dict, *policies) -> dict:
    """The review with its object as the policies leave it; their patch applied by a library."""
    patch = whook.evaluate(parse(document), policies, "mutate").patch
    if not patch:
        return document
    fields = document["request"]
    return document | {
        "request": fields | {"object": jsonpatch.apply_patch(fields["object"], patch)}
    }


def verdict(document: dict, *policies) -> str | None:
    """What the policies deny it with; None if they don't."""
    response = whook.evaluate(parse(document), policies, "validate")
    return None if response.allowed else response.message


# ---------------------------------------------------------------------------- their tools


class Tools(unittest.TestCase):
    """The methods of a request that policies share."""

    def request(self, kind="Pod", group="", **fields) -> whook.Request:
        gvk = {"group": group, "version": "v1", "kind": kind}
        return parse(
            review("create-pod", {"/kind": gvk, **{f"/{k}": v for k, v in fields.items()}})
        )

    def test_pods_of_every_kind(self):
        pod = {"spec": {"containers": [{"name": "a"}]}}
        template = {"spec": {"template": pod}}
        cases = {("", "Pod"): pod, ("", "PodTemplate"): {"template": pod}}
        cases |= {("batch", "CronJob"): {"spec": {"jobTemplate": template}}}
        cases |= {("batch", "Job"): template, ("", "ReplicationController"): template}
        for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
            cases["apps", kind] = template
        for (group, kind), obj in cases.items():
            with self.subTest(kind=kind):
                request = self.request(kind, group)
                self.assertIs(pod_of(obj, request), pod)
                self.assertEqual(list(containers_of(obj, request)), [{"name": "a"}])
                for other in {"", "apps", "batch", "example.com"} - {
                    group
                }:  # such as Volcano's Job
                    request = self.request(kind, other)
                    self.assertIsNone(pod_of(obj, request))
                    self.assertEqual(list(containers_of(obj, request)), [])

    def test_kinds(self):
        self.assertEqual(kind_of(self.request("Service")), "Service")
        other = self.request("Service", "serving.knative.dev")
        self.assertEqual(kind_of(other), "serving.knative.dev/Service")

    def test_nothing_to_do(self):
        for kind, obj in (("Service", {"spec": {}}), ("Pod", None)):
            self.assertIsNone(pod_of(obj, self.request(kind)))
            self.assertEqual(list(containers_of(obj, self.request(kind))), [])

    def test_what_is_being_deleted(self):
        new = {"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}}
        for metadata, expected in (
            ({"deletionTimestamp": "2026-11-22T13:50:58Z", "finalizers": ["a/b"]}, True),
            ({"deletionTimestamp": None}, False),
            (None, False),
        ):
            with self.subTest(metadata=metadata):
                old = {"metadata": metadata, "spec": {}}
                request = self.request("Deployment", "apps", operation="UPDATE", oldObject=old)
                self.assertEqual(terminating(request), expected)
                self.assertEqual(pod_of(new, request) is None, expected)
                self.assertEqual(list(containers_of(new, request)) == [], expected)
        self.assertFalse(terminating(self.request()))

    def test_only_what_an_update_changes(self):
        one, other = {"name": "a", "image": "x"}, {"name": "b", "image": "y"}
        before = {"spec": {"template": {"spec": {"containers": [one, other]}}}}
        after = copy.deepcopy(before)
        request = self.request("Deployment", "apps", operation="UPDATE", oldObject=before)
        self.assertIsNone(pod_of(after, request))
        after["spec"]["template"]["spec"]["containers"][1]["image"] = "z"
        self.assertIs(pod_of(after, request), after["spec"]["template"])
        self.assertEqual(list(containers_of(after, request)), [{"name": "b", "image": "z"}])

    def test_containers_by_name(self):
        """Wherever they stand; and, if asked, only those in which one field changes."""
        old = [{"name": name, "image": "x"} for name in "abc"]
        resized, swapped = old[1] | {"resources": {"limits": {"cpu": "1"}}}, {"name": "c"}
        new = [{"name": "d", "image": "x"}, swapped, old[0], resized]
        obj, before = ({"spec": {"containers": each}} for each in (new, old))
        request = self.request(operation="UPDATE", oldObject=before)
        self.assertEqual(list(containers_of(obj, request)), [new[0], swapped, resized])
        self.assertEqual(list(containers_of(obj, request, field="image")), [new[0], swapped])

    def test_many_containers(self):
        """What may be as large as the API server lets it takes no longer than the webhook has."""
        names = [f"c{number}" for number in range(16_000)]
        old, new = ([{"name": n, "image": f"web:{tag}"} for n in names] for tag in "12")
        document = review(
            "update-pod", {"/object/spec/containers": new, "/oldObject/spec/containers": old}
        )
        request = parse(document)
        started = time.process_time()
        for verb in ("mutate", "validate"):
            policies = [BY_NAME["team-label"], BY_NAME["pinned-images"]]
            self.assertTrue(whook.evaluate(request, policies, verb).allowed)
        self.assertLess(time.process_time() - started, 1)

    def test_fields(self):
        obj = {"a": None, "b": {"c": ["x"]}, "n": True}
        self.assertEqual(read(obj, "a.b", dict), {})
        self.assertEqual(read(obj, "b.c", [str]), ["x"])
        for path, kind, default in (("a.b", int, 1), ("x", str, None), ("b.d", [str], ("y",))):
            self.assertIs(read(obj, path, kind, default), default)
        self.assertEqual(read(obj, "b.c", [str], ()), ["x"])
        self.assertEqual(obj, {"a": None, "b": {"c": ["x"]}, "n": True})
        edit(obj, "a.b", dict)["k"] = "v"
        self.assertEqual(obj["a"], {"b": {"k": "v"}})
        faults = [("b.c.d", str, "b.c must be an object"), ("n", int, "n must be a whole number")]
        faults += [("b.c", [dict], "b.c[0] must be an object"), ("b", [str], "b must be a list")]
        for path, kind, message in faults:
            with self.subTest(path=path), self.assertRaises(ValueError) as caught:
                read(obj, path, kind)
            self.assertEqual(str(caught.exception), message)

    def test_add(self):
        obj, item = {}, {"name": "a", "value": {}}
        for _ in range(2):
            add(obj, "spec.env", item)
        add(obj, "spec.env", {"name": "b"})
        for _ in range(2):
            add(obj, "spec.env", {"name": "c"}, first=True)
        self.assertEqual(obj, {"spec": {"env": [{"name": "c"}, item, {"name": "b"}]}})
        self.assertIsNot(obj["spec"]["env"][1]["value"], item["value"])

    def test_patterns(self):
        for text, pattern, expected in (
            ("docker.io/library/nginx:1.27", "docker.io/*", True),
            ("docker.io/library/nginx:1.27", "*/nginx:1.2?", True),
            ("docker.io/library/nginx:1.27", "nginx:1.27", False),
            ("dockerXio/nginx", "docker.io/*", False),
            ("quay.io/A", "quay.io/a", False),
            ("x\n" * 50_000 + "b", "*x*\n*x*\n*a", False),  # in time, whatever the text
        ):
            with self.subTest(pattern=pattern):
                self.assertIs(matches(text, pattern), expected)


# ---------------------------------------------------------------------------- each policy

OPTED_IN = {"example.com/inject-log-agent": "true"}
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
POD = "/object/spec/containers/0"
TEMPLATE = "/spec/template"
CLAIM = {
    "/kind": {"group": "", "version": "v1", "kind": "PersistentVolumeClaim"},
    "/object/kind": "PersistentVolumeClaim",
    "/object/spec": {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "10Gi"}},
        "storageClassName": "standard",
    },
}
INGRESS = {
    "/kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
    "/object/kind": "Ingress",
    "/object/apiVersion": "networking.k8s.io/v1",
    "/object/spec": {"rules": [{"host": "*.shop.test"}, {"host": "shop.test"}, {}]},
    "/object/metadata/annotations": {},
}


# Image references in all their forms, and where registry-mirror takes them.
IMAGES = {
    "nginx": "mirror.example.com/docker/library/nginx",
    "nginx:1.27": "mirror.example.com/docker/library/nginx:1.27",
    "nginx@sha256:ab": "mirror.example.com/docker/library/nginx@sha256:ab",
    "nginx:1.27@sha256:ab": "mirror.example.com/docker/library/nginx:1.27@sha256:ab",
    "grafana/grafana:11": "mirror.example.com/docker/grafana/grafana:11",
    "docker.io/nginx": "mirror.example.com/docker/library/nginx",
    "index.docker.io/library/nginx": "mirror.example.com/docker/library/nginx",
    "docker.io/a/b/c:1": "mirror.example.com/docker/a/b/c:1",
    "quay.io/a/b:1": "mirror.example.com/quay/a/b:1",
    "registry.k8s.io/pause:3.10": "mirror.example.com/k8s/pause:3.10",
    "localhost/a:1": "localhost/a:1",
    "localhost:5000/a:1": "localhost:5000/a:1",
    "registry:5000/a/b@sha256:ab": "registry:5000/a/b@sha256:ab",
    "gcr.io/a/b": "gcr.io/a/b",
    "mirror.example.com/docker/library/nginx": "mirror.example.com/docker/library/nginx",
    "": "",
}


# The same for tables of other shapes: what imageswap's own tests want, in our words. A table; then
# images and where they go, None if they stay.
MIRRORS = [
    (  # a default for all registries that are not in the table, and without Docker Hub's "library/"
        {"docker.io/library/*": "m.test/{name}", "*": "m.test/{path}"},
        {
            "redis": "m.test/redis",
            "a.test/b/c/d:1": "m.test/b/c/d:1",
            "a.test:443/b/c:1": "m.test/b/c:1",
            "grafana/grafana@sha256:ab": "m.test/grafana/grafana@sha256:ab",
            "m.test/redis": None,
            "m.test.evil.test/redis": "m.test/redis",
        },
    ),
    (  # the registry's name goes into the path; what is at a mirror already stays
        {"*": "m.test/proxy-{host}/{path}"},
        {
            "redis:7.4-alpine": "m.test/proxy-docker.io/library/redis:7.4-alpine",
            "a/b/c:1": "m.test/proxy-docker.io/a/b/c:1",
            "quay.io/a/b": "m.test/proxy-quay.io/a/b",
            "a.test:8443/b:1": "m.test/proxy-a.test/b:1",
            "m.test/proxy-quay.io/a/b": None,
        },
    ),
    (  # no default, a registry left alone, with any port or none, and an empty table
        {"quay.io/*": "", "quay.io:*": "", "a.test/*": "m.test/{path}"},
        {"quay.io/a:1": None, "quay.io:443/a:1": None, "redis": None, "a.test/b": "m.test/b"},
    ),
    ({}, {"redis": None, "quay.io/a:1": None}),
    (  # a whole domain left alone, but for one registry of it; ports on either side
        {
            "in.a.test:8443/*": "m.test:5000/in/{path}",
            "out.test/*": "localhost:5000/{path}",
            "*a.test/*": "",
            "*a.test:*/*": "",
            "*": "m.test/{path}",
        },
        {
            "in.a.test:8443/b:1": "m.test:5000/in/b:1",
            "in.a.test/b:1": None,
            "x.y.a.test/b:1": None,
            "a.test:443/b:1": None,
            "out.test/b:1": "localhost:5000/b:1",
            "gcr.io/b": "m.test/b",
        },
    ),
    (  # single images by their exact name, tag and all, before what is for their registry
        {
            "docker.io/library/redis": "m.test/all:redis",
            "docker.io/library/debian:12": "m.test/all:debian-12",
            "docker.io/library/auto": "",
            "nvcr.io/nvidia:v1": "m.test/private:nvidia-v1",
            "nvcr.io/*": "n.test/{path}",
            "docker.io/*": "d.test/{path}",
        },
        {
            "redis": "m.test/all:redis",
            "redis:7": "d.test/library/redis:7",
            "debian:12": "m.test/all:debian-12",
            "auto": None,
            "nvcr.io/nvidia:v1": "m.test/private:nvidia-v1",
            "nvcr.io/nvidia:v2": "n.test/nvidia:v2",
        },
    ),
    (  # patterns: by beginning, end, both, middle, and one character; only the name is kept
        {
            "docker.io/library/hello-*": "m.test/a/{name}",
            "docker.io/library/deb*12": "m.test/b/{name}",
            "*-server:5.6": "m.test/c/{name}",
            "*/nvidia:plugin_*": "m.test/d/{name}",
            "docker.io/library/hello:v1.?": "m.test/e/{name}",
        },
        {
            "hello-world": "m.test/a/hello-world",
            "debian:12": "m.test/b/debian:12",
            "mysql/mysql-server:5.6": "m.test/c/mysql-server:5.6",
            "nvcr.io/nvidia:plugin_v0.9": "m.test/d/nvidia:plugin_v0.9",
            "hello:v1.1": "m.test/e/hello:v1.1",
            "hello:v1.10": None,
        },
    ),
    (  # a mirror that is a folder of Docker Hub
        {"*": "company/{host}-{name}"},
        {"redis": "company/docker.io-redis", "company/docker.io-redis": None},
    ),
]


class EachPolicy(unittest.TestCase):
    """What one policy does, to the letter: the cases beside it, and what no case can say."""

    def test_cases(self):
        for result in cases.run_all(CASES):
            with self.subTest(result.case.place):
                self.assertEqual(cases.why(result), [], result.case.title)

    def test_every_policy_is_tested(self):
        """By cases for all that it does, down to each line and branch."""
        cover = Cover()
        ends = {(policy_of(result.case), *result.found) for result in cases.run_all(CASES, cover)}
        changed = {policy_of(case) for case in CASES if "changes" in case.expect}
        self.assertEqual(changed, {p.name for p in MUTATING})
        self.assertEqual({end[0] for end in ends if "denied" in end}, {p.name for p in VALIDATING})
        uncovered = cases.uncovered_by(cover, CASES)
        self.assertEqual({Path(path).stem for path in uncovered}, set(BY_NAME))
        self.assertEqual({path: lines for path, lines in uncovered.items() if lines}, {})

    def test_messages(self):
        """Kubernetes puts a sentence's beginning before them."""
        for message in filter(None, (case.expect.get("denied") for case in CASES)):
            self.assertRegex(message, r"^[a-z].*[^.\s]$")

    def test_image_references(self):
        for image, expected in IMAGES.items():
            with self.subTest(image=image):
                document = review("create-pod-dryrun", {f"{POD}/image": image})
                after = mutate(document, BY_NAME["registry-mirror"])["request"]["object"]
                self.assertEqual(after["spec"]["containers"][0]["image"], expected)

    def test_mirrors(self):
        policy = BY_NAME["registry-mirror"]
        for table, images in MIRRORS:
            for image, expected in images.items():
                document = review("create-pod-dryrun", {f"{POD}/image": image})
                constants = mock.patch.dict(policy.mutate.__globals__, MIRRORS=table)
                with self.subTest(table=table, image=image), constants:
                    once = mutate(document, policy)
                    container = once["request"]["object"]["spec"]["containers"][0]
                    self.assertEqual(container["image"], expected or image)
                    self.assertEqual(mutate(once, policy), once)

    def test_kinds_of_other_groups(self):
        """A Knative Service is no Service, a Volcano Job no Job, an Ingress of old no Ingress."""
        any_kind = {"team-label", "labels-by-namespace", "labels-by-group", "created-by"}
        any_kind |= {"required-labels", "immutable-labels", "protected-objects"}
        other = {"/kind/group": "example.com", "/resource/group": "example.com"}
        for case in CASES:
            with self.subTest(case.place):
                document = changed(case.review, other)
                if policy_of(case) not in any_kind:
                    self.assertEqual(mutate(document, *cases.load(case)), document)
                    self.assertIsNone(verdict(document, *cases.load(case)))

    def test_what_is_being_deleted(self):
        """Nothing is changed in it, and a controller can take its finalizer off, whatever else
        may be wrong with it."""
        for case in CASES:
            old = copy.deepcopy(case.review["request"].get("object"))
            if old is None or case.review["request"]["operation"] not in ("CREATE", "UPDATE"):
                continue
            if policy_of(case) == "no-exec":
                continue  # a shell in a pod that ends is a shell
            old.setdefault("metadata", {})
            old["metadata"] |= {"deletionTimestamp": "2026-11-22T13:50:58Z", "finalizers": ["a/b"]}
            document = changed(case.review, {"/operation": "UPDATE", "/oldObject": old})
            with self.subTest(case.place):
                self.assertEqual(mutate(document, *cases.load(case)), document)
                self.assertIsNone(verdict(document, *cases.load(case)))

    def test_constants_from_json(self):
        """NAME.json may set each of them: what JSON makes of it does as well."""
        sources, changed = {}, 0
        for policy in POLICIES:
            scope = (policy.mutate or policy.validate).__globals__
            constants = {key: value for key, value in scope.items() if key.isupper()}
            changed += json.loads(json.dumps(constants)) != constants
            sources[policy.path] = Path(policy.path).read_bytes()
            sources[str(Path(policy.path).with_suffix(".json"))] = json.dumps(constants).encode()
        self.assertGreater(changed, 5)
        for policy in whook.load_policies(sources).policies:
            for case in CASES:
                if policy_of(case) == policy.name and not case.parameters:
                    with self.subTest(case.place):
                        result = cases.judge(case, cases.run(case, [policy]))
                        self.assertEqual(cases.why(result), [])

    def test_constants_stay(self):
        """What one review's policies do to an injected container is not in the next review's."""
        document = review("create-pod-dryrun", {"/object/metadata/annotations": OPTED_IN})
        alone, first = mutate(document, BY_NAME["sidecar"]), mutate(document, *MUTATING)
        self.assertEqual(mutate(document, *MUTATING), first)
        self.assertEqual(mutate(document, BY_NAME["sidecar"]), alone)


# ---------------------------------------------------------------------------- all of them

# Besides the real reviews: those that more policies have something to do with.
VARIANTS = {
    "opted-in": ("create-pod", {"/object/metadata/annotations": OPTED_IN, "/namespace": "batch"}),
    "opted-in-deployment": (
        "create-deployment",
        {f"/object{TEMPLATE}/metadata/annotations": OPTED_IN},
    ),
    "claim": ("create-service", CLAIM | {"/namespace": "shop"}),
    "ingress": ("create-service", INGRESS),
    "balancer": ("create-service", {"/object/spec/type": "LoadBalancer"}),
    "developer": ("create-deployment", {"/userInfo/groups": ["shop-developers"]}),
}
DOCUMENTS = REVIEWS | {name: review(*variant) for name, variant in VARIANTS.items()}


class Together(unittest.TestCase):
    """Every policy on every review."""

    def test_idempotent_alone(self):
        for name, document in DOCUMENTS.items():
            for policy in MUTATING:
                with self.subTest(review=name, policy=policy.name):
                    once = mutate(document, policy)
                    self.assertEqual(mutate(once, policy), once)

    def test_idempotent_in_any_order(self):
        shuffled = random.Random(8)
        orders = [MUTATING, MUTATING[::-1]]
        orders += [shuffled.sample(MUTATING, len(MUTATING)) for _ in range(20)]
        for order in orders:
            for name, document in DOCUMENTS.items():
                with self.subTest(review=name, order=[policy.name for policy in order]):
                    once = mutate(document, *order)
                    response = whook.evaluate(parse(once), order)
                    self.assertEqual(response.patch, [])

    def test_mirror_pods(self):
        """A node's own pods are left alone."""
        mirror = {"/object/metadata/annotations": {"kubernetes.io/config.mirror": "1"}}
        document = review("create-pod", mirror | {"/namespace": "batch"})
        whole = {"team-label", "labels-by-namespace", "created-by"}  # any object's metadata
        rest = [policy for policy in MUTATING if policy.name not in whole]
        self.assertEqual(mutate(document, *rest), document)
        self.assertIsNone(verdict(document, BY_NAME["pinned-images"], BY_NAME["no-host-access"]))

    def test_an_update_of_something_else(self):
        """What is there before a policy is can still be scaled, labelled and deleted, and does not
        restart because of it; metadata aside, nothing changes."""
        changes = {"/object/metadata/labels/x": "y", "/object/metadata/finalizers": []}
        for name in ("update-deployment", "update-pod"):
            document = review(name)
            spec = document["request"]["oldObject"]["spec"]
            document = review(name, {"/object/spec": spec} | changes)
            with self.subTest(review=name):
                self.assertEqual(mutate(document, *MUTATING)["request"]["object"]["spec"], spec)
                validating = [p for p in VALIDATING if p.name not in ("created-by", "no-exec")]
                self.assertIsNone(verdict(document, *validating))

    def test_immutable_fields(self):
        """Of a pod that exists, no policy changes what the API server keeps as it is."""
        document = review("update-pod", {"/object/spec/containers/1/image": "quay.io/a:1"})
        for name, candidate in {"update-pod": document, **DOCUMENTS}.items():
            request = candidate["request"]
            if request["operation"] == "UPDATE" and request["kind"]["kind"] == "Pod":
                with self.subTest(review=name):
                    after = mutate(candidate, *MUTATING)["request"]["object"]
                    specs = [copy.deepcopy(obj["spec"]) for obj in (request["object"], after)]
                    for spec in specs:
                        for part in ("initContainers", "containers", "ephemeralContainers"):
                            for container in spec.get(part, []):
                                container.pop("image")
                    self.assertEqual(*specs)

    def test_the_library_agrees_with_itself(self):
        """What the mutating ones make of a tidy Deployment, the validating ones let through."""
        labels = {"example.com/team": "shop", "app.kubernetes.io/name": "web"}
        document = review("create-deployment", {"/object/metadata/labels": labels})
        self.assertIsNone(verdict(mutate(document, *MUTATING), *VALIDATING))


# ---------------------------------------------------------------------------- broken objects

MANGLED = [None, {}, [], "", "x", 5, True, [None], ["x"], {"x": None}, [{}]]
STRINGS = [str]
NAMED = {"name": str}
REFERENCE = {"name": str, "key": str, "optional": bool}
CONTAINER = {
    "name": str, "image": str, "imagePullPolicy": str, "args": STRINGS, "restartPolicy": str,
    "resources": {"requests": {"*": str}, "limits": {"*": str}},
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "capabilities": {"drop": STRINGS, "add": STRINGS},
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
    "env": [
        {
            "name": str,
            "value": str,
            "valueFrom": {
                "fieldRef": {"fieldPath": str},
                "configMapKeyRef": REFERENCE,
                "secretKeyRef": REFERENCE,
            },
        }
    ],
    "lifecycle": {"preStop": {"sleep": {"seconds": int}}},
}  # fmt: skip
EXPRESSION = {"key": str, "operator": str, "values": STRINGS}
METADATA = {"labels": {"*": str}, "annotations": {"*": str}}
POD_SHAPE = {
    "metadata": METADATA,
    "spec": {
        "containers": [CONTAINER],
        "initContainers": [CONTAINER],
        "ephemeralContainers": [CONTAINER],
        "volumes": [{"name": str, "emptyDir": {"sizeLimit": str}, "configMap": {"name": str}}],
        "imagePullSecrets": [NAMED],
        "securityContext": {"runAsNonRoot": bool, "seccompProfile": {"type": str}},
        "automountServiceAccountToken": bool,
        "nodeSelector": {"*": str},
        "tolerations": [{"key": str, "operator": str, "effect": str}],
        "affinity": {
            "nodeAffinity": {
                PREFERRED: [{"weight": int, "preference": {"matchExpressions": [EXPRESSION]}}]
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": int,
                "topologyKey": str,
                "whenUnsatisfiable": str,
                "labelSelector": {"matchLabels": {"*": str}},
            }
        ],
        "dnsConfig": {"options": [{"name": str, "value": str}]},
        "terminationGracePeriodSeconds": int,
    },
}
# What Kubernetes expects of each field that the library writes, in pods, templates and the rest.
SHAPE = {
    "metadata": METADATA,
    "spec": POD_SHAPE["spec"]
    | {
        "template": POD_SHAPE,
        "jobTemplate": {"spec": {"template": POD_SHAPE}},
        "ingressClassName": str,
        "tls": [{"hosts": STRINGS, "secretName": str}],
        "storageClassName": str,
        "ttlSecondsAfterFinished": int,
    },
}


def misshapen(value, shape, path=""):
    """Where a value is not as Kubernetes expects it; unknown keys are."""
    if isinstance(shape, list) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from misshapen(item, shape[0], f"{path}/{index}")
    elif isinstance(shape, dict) and isinstance(value, dict):
        for key, item in value.items():
            inner = shape.get(key, shape.get("*"))
            if inner is None:
                yield f"{path}/{key}"
            else:
                yield from misshapen(item, inner, f"{path}/{key}")
    elif type(value) is not shape:
        yield path


def shape_at(path: str):
    """What belongs at a JSON pointer."""
    shape = SHAPE
    for key in path.split("/")[1:]:
        key = 0 if isinstance(shape, list) else key if key in shape else "*"
        shape = shape[key]
    return shape


def places(value, path=()):
    """The path of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


PLACES = {
    name: [
        place
        for place in places(document["request"]["object"])
        if place[0] in ("metadata", "spec") and "managedFields" not in place
    ]
    for name, document in DOCUMENTS.items()
    if document["request"].get("object")
}
PLACES = {name: found for name, found in PLACES.items() if found}


@st.composite
def mangled_reviews(draw):
    """A review with up to three fields of its object missing, null, empty or of another type."""
    name = draw(st.sampled_from(sorted(PLACES)))
    document = copy.deepcopy(DOCUMENTS[name])
    for place in draw(st.lists(st.sampled_from(PLACES[name]), min_size=1, max_size=3)):
        parent = document["request"]["object"]
        try:
            for key in place[:-1]:
                parent = parent[key]
            if draw(st.booleans()):
                parent[place[-1]] = copy.deepcopy(draw(st.sampled_from(MANGLED)))
            else:
                del parent[place[-1]]
        except (LookupError, TypeError):
            continue  # an earlier change took it away
    return document


class BrokenObjects(unittest.TestCase):
    """An API server sends no such thing, but review.py's user may, and a custom resource can."""

    def check(self, document):
        """Each policy works, or its fault names a field; what it writes is well-formed."""
        request = parse(document)
        for policy in POLICIES:
            for verb in ("mutate", "validate"):
                try:
                    patch = whook.evaluate(request, [policy], verb).patch
                except whook.PolicyError as fault:
                    self.assertRegex(fault.message, NAMES_A_FIELD)
                    continue
                for step in patch:
                    if step["op"] != "remove":
                        wrong = misshapen(step["value"], shape_at(step["path"]), step["path"])
                        self.assertEqual(list(wrong), [], policy.name)

    @settings(max_examples=200, deadline=None)
    @given(mangled_reviews())
    def test_fuzz(self, document):
        self.check(document)

    def test_one_field(self):
        """Each field of the objects that most policies deal with, in every wrong way."""
        for name in VARIANTS:
            for place in PLACES[name]:
                document = copy.deepcopy(DOCUMENTS[name])
                parent = document["request"]["object"]
                for key in place[:-1]:
                    parent = parent[key]
                for value in MANGLED:
                    parent[place[-1]] = value
                    with self.subTest(review=name, place=place, value=value):
                        self.check(document)

    def test_the_shapes_are_looked_at(self):
        """The check above can fail."""
        wrong = misshapen({"env": [{"name": 5}], "x": 1}, CONTAINER)
        self.assertEqual(list(wrong), ["/env/0/name", "/x"])

    def test_faults(self):
        cases = [
            ("environment", {f"{POD}/env": {}}, "env must be a list"),
            ("environment", {f"{POD}/env": ["x"]}, "env[0] must be an object"),
            ("default-resources", {f"{POD}/resources": []}, "resources must be an object"),
            ("pull-policy", {f"{POD}/image": 5}, "image must be a string"),
            ("ca-bundle", {"/object/spec/containers": "x"}, "spec.containers must be a list"),
            ("sidecar", {"/object/spec": []}, "spec must be an object"),
        ]
        for name, changes, expected in cases:
            document = review("create-pod-dryrun", {"/object/metadata/annotations": OPTED_IN})
            steps = [{"op": "add", "path": f"/request{k}", "value": v} for k, v in changes.items()]
            with (
                self.subTest(policy=name, changes=changes),
                self.assertRaises(whook.PolicyError) as caught,
            ):
                whook.evaluate(parse(jsonpatch.apply_patch(document, steps)), [BY_NAME[name]])
            self.assertTrue(caught.exception.message.endswith(f"ValueError: {expected}"))


NAMES_A_FIELD = (
    r'^policy "[a-z-]+" failed: line \d+: ValueError: '
    r"([A-Za-z]+(\.[A-Za-z]+)*(\[\d+\])? must be (an object|a list|a string|true or false|"
    r'a whole number)|storage ".*" is not a quantity such as 10Gi)$'
)


# ---------------------------------------------------------------------------- a real API server


def webhook_configuration() -> dict:
    """The one that policies/README.md shows."""
    text = (ROOT / "policies/README.md").read_text()
    return yaml.safe_load(textwrap.dedent(re.search(r"( +)```yaml\n(.*?)```", text, re.S)[2]))


KINDS = {"Pod", "apps/Deployment", "apps/StatefulSet", "apps/DaemonSet", "batch/Job"}
KINDS |= {
    "batch/CronJob",
    "Service",
    "networking.k8s.io/Ingress",
    "PersistentVolumeClaim",
    "Secret",
}
GRUDGED = {"privileged", "kubernetes.io/ingress.class"}  # forbidden there, and warned of
OF_THE_SERVER = ("managedFields", "uid", "resourceVersion", "creationTimestamp", "generation")


def sendable(document: dict) -> dict:
    """The review's object as a user would send it."""
    obj = copy.deepcopy(document["request"]["object"])
    obj["metadata"] = {k: v for k, v in obj["metadata"].items() if k not in OF_THE_SERVER}
    obj["metadata"]["namespace"] = document["request"]["namespace"]
    obj.pop("status", None)
    return obj


@unittest.skipIf(controlplane.missing(), str(controlplane.missing()))
class RealServer(unittest.TestCase):
    """What comes of the policies is what a real API server takes, with strict field validation."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.enterClassContext(controlplane.network_namespace())
        cls.plane = cls.enterClassContext(controlplane.ControlPlane())
        for namespace in ("default", "shop", "shop2", "batch", "monitoring", "other"):
            if namespace != "default":
                cls.plane.kubectl("create", "namespace", namespace)
            deadline = time.monotonic() + 60
            account = ("get", "serviceaccount", "default", f"-n{namespace}", "--ignore-not-found")
            while not cls.plane.kubectl(*account).stdout and time.monotonic() < deadline:
                time.sleep(0.1)
        cls.plane.kubectl("create", "serviceaccount", "flux", "-ndefault")

    def accepted(self, objects, *words):
        """One kubectl for all of them: each costs a process."""
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        done = self.plane.kubectl(*words, "--validate=strict", "-f-", stdin=items, check=False)
        self.assertEqual(done.stderr, "")
        self.assertEqual(len(done.stdout.splitlines()), len(objects))

    def test_create(self):
        """Each policy alone, and all together in three orders; on what its cases show, too."""
        orders = [[policy] for policy in MUTATING]
        orders += [MUTATING, MUTATING[::-1], random.Random(1).sample(MUTATING, len(MUTATING))]
        changed = []
        passing = [case for case in CASES if not case.expect.keys() & {"denied", "failed"}]
        given = [case.review for case in passing if not GRUDGED & set(json.dumps(case).split('"'))]
        for document in [*DOCUMENTS.values(), *given]:
            request = document["request"]
            if request["operation"] == "CREATE" and kind_of(parse(document)) in KINDS:
                changed += [after for o in orders if (after := mutate(document, *o)) != document]
        self.assertGreater(len(changed), 1000)
        self.accepted([sendable(document) for document in changed], "create", "--dry-run=server")

    def register(self, server):
        """Send all that happens in the namespace "live" to a running whook, and wait for it."""
        authority = base64.b64encode(server.authority.pem).decode()
        operations = {"mutate": ["CREATE", "UPDATE"], "validate": ["*"]}
        for verb, kind in (("mutate", "Mutating"), ("validate", "Validating")):
            url = f"https://127.0.0.1:{server.port}/{verb}"
            webhook = {
                "name": f"{verb}.whook.local",
                "clientConfig": {"url": url, "caBundle": authority},
                "rules": [
                    {
                        "apiGroups": ["", "apps", "autoscaling"],
                        "apiVersions": ["*"],
                        "resources": ["pods", "deployments", "deployments/scale"],
                        "operations": operations[verb],
                    }
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "live"}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
            if verb == "mutate":
                webhook["reinvocationPolicy"] = "IfNeeded"
            configuration = {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": f"{kind}WebhookConfiguration",
                "metadata": {"name": "whook"},
                "webhooks": [webhook],
            }
            self.plane.kubectl("create", "-f-", stdin=json.dumps(configuration))
        run = ("run", "x", "-nlive", "--image=x:1", "--dry-run=server")
        refused = functools.partial(self.plane.kubectl, *run, check=False)
        wait_for(lambda: refused().returncode, "a denial by the webhook")

    def test_live(self):
        """The whole library behind a real API server: a Deployment, its pods, and what is done to
        them afterwards."""
        self.plane.kubectl("create", "namespace", "live")
        labels = {"app.kubernetes.io/name": "web", "example.com/team": "shop"}
        document = review(
            "create-deployment", {"/object/metadata/labels": labels, "/namespace": "live"}
        )
        deployment = sendable(document)
        deployment["spec"]["template"]["metadata"] |= {"annotations": OPTED_IN}
        deployment["spec"]["template"]["metadata"]["labels"] |= labels
        policies = [f"--policy={ROOT}/policies/library", f"--policy={ROOT}/policies/team-label.py"]
        with Whook(*policies) as server:
            self.register(server)
            self.plane.kubectl("create", "-f-", stdin=json.dumps(deployment))
            get = functools.partial(self.plane.kubectl, "get", "-nlive", "-ojson")
            made = json.loads(get("deployment", "web").stdout)
            pods = wait_for(lambda: json.loads(get("pods").stdout)["items"], "the pods")
            self.plane.kubectl("label", "-nlive", "deployment", "web", "x=y")
            later = json.loads(get("deployment", "web").stdout)
            scale = ("scale", "-nlive", "deployment", "web", "--replicas=51")
            refusal = self.plane.kubectl(*scale, check=False).stderr
        spec = pods[0]["spec"]
        self.assertEqual([c["name"] for c in spec["initContainers"]], ["log-agent"])
        self.assertEqual([v["name"] for v in spec["volumes"]], ["company-ca", "app-logs"])
        self.assertEqual(
            [c["image"] for c in spec["containers"]],
            ["mirror.example.com/docker/library/nginx:1.27"],
        )
        self.assertEqual(made["metadata"]["annotations"]["example.com/created-by"], "admin")
        self.assertEqual(later["spec"], made["spec"])
        self.assertIn("spec.replicas: 51 is not within 1 to 50", refusal)
        self.assertEqual(server.logged("ERROR"), [])

    def test_webhook_entries(self):
        self.accepted([webhook_configuration()], "create", "--dry-run=server")

    def test_resize(self):
        """What default-resources adds to a resize is taken, in a pod that is older than it."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "older", "namespace": "shop2"},
            "spec": {
                "containers": [
                    {"name": "a", "image": "x:1", "resources": {"requests": {"cpu": "1"}}},
                    {"name": "b", "image": "x:1"},
                ]
            },
        }
        self.plane.kubectl("create", "-f-", stdin=json.dumps(pod))
        before = json.loads(self.plane.kubectl("get", "pod", "older", "-nshop2", "-ojson").stdout)
        after = copy.deepcopy(before)
        after["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "2"}}
        changes = {"/subResource": "resize", "/object": after, "/oldObject": before}
        mutated = mutate(review("update-pod", changes), *MUTATING)["request"]["object"]
        path = "/api/v1/namespaces/shop2/pods/older/resize"
        answer = self.plane.kubectl("replace", f"--raw={path}", "-f-", stdin=json.dumps(mutated))
        self.assertEqual(
            [each["resources"] for each in json.loads(answer.stdout)["spec"]["containers"]],
            [{"requests": {"cpu": "2", "memory": "128Mi"}}, {}],
        )

    def test_update(self):
        """Of what exists, nothing immutable changes: the image of a pod's container may."""
        for name in ("update-pod", "update-deployment"):
            document = review(name)
            before = document | {
                "request": document["request"] | {"object": document["request"]["oldObject"]}
            }
            self.accepted([sendable(before)], "create")
        pod = review("update-pod", {"/object/spec/containers/1/image": "quay.io/a:1"})
        after = [mutate(document, *MUTATING) for document in (pod, review("update-deployment"))]
        self.assertEqual(
            after[0]["request"]["object"]["spec"]["containers"][1]["image"],
            "mirror.example.com/quay/a:1",
        )
        self.accepted([sendable(document) for document in after], "replace", "--dry-run=server")
        debugged = sendable(mutate(review("update-pod-ephemeralcontainers"), *MUTATING))
        path = "/api/v1/namespaces/shop2/pods/tricky/ephemeralcontainers"
        answer = self.plane.kubectl("replace", f"--raw={path}", "-f-", stdin=json.dumps(debugged))
        self.assertEqual(
            [c["image"] for c in json.loads(answer.stdout)["spec"]["ephemeralContainers"]],
            ["mirror.example.com/docker/library/busybox"],
        )


# ---------------------------------------------------------------------------- the documentation

ROW = re.compile(r"^\| \[([a-z-]+)\]\(([a-z/-]+\.py)\) \| (.+) \| (.+) \| (.+) \| (\d+) \|$", re.M)


class Documentation(unittest.TestCase):
    """policies/README.md and the files' own headers."""

    def setUp(self):
        self.readme = (ROOT / "policies/README.md").read_text()
        self.files = {Path(policy.path).stem: Path(policy.path) for policy in POLICIES}

    def test_table(self):
        rows = {match[1]: match for match in ROW.finditer(self.readme)}
        self.assertEqual(set(rows), set(self.files))
        for name, (_, path, _, _, rule, lines) in ((n, m.groups()) for n, m in rows.items()):
            with self.subTest(policy=name):
                self.assertEqual(ROOT / "policies" / path, self.files[name])
                text = self.files[name].read_text()
                self.assertEqual(int(lines), len(text.splitlines()))
                self.assertIn(f" Rule: {rule}. ", f" {self.header(text)} ")

    def test_rules(self):
        """Each names operations and resources as a webhook configuration does."""
        resource = r"((apps|batch|networking\.k8s\.io)/)?[a-z]+(/[a-z]+)?"
        operations = "(CREATE|UPDATE|DELETE|CONNECT)"
        clause = rf"({operations}(, {operations})* of )?{resource}(, {resource})*"
        core = {"pods", "services", "configmaps", "secrets", "namespaces", "persistentvolumeclaims"}
        for name, path in self.files.items():
            with self.subTest(policy=name):
                rule = re.search(r"Rule: (.*?)\. ", self.header(path.read_text()) + " ")[1]
                self.assertRegex(rule, rf"^{operations}.* of ")
                for part in rule.split("; "):
                    self.assertRegex(part, f"^{clause}$")
                    for each in part.rpartition(" of ")[2].split(", "):
                        grouped = each.startswith(("apps/", "batch/", "networking.k8s.io/"))
                        self.assertTrue(grouped or each.partition("/")[0] in core, each)

    def header(self, text: str) -> str:
        docstring = re.match(r'"""(.*?)"""', text, re.S)
        return " ".join(docstring[1].split())

    def test_house_rules(self):
        """Short, with no import but objects, and a header that says what is read or written."""
        for name, path in self.files.items():
            with self.subTest(policy=name):
                text = path.read_text()
                self.assertLess(len(text.splitlines()), 60)
                self.assertNotRegex(text, r"(?m)^\s*(import|from) (?!objects import )")
                self.assertRegex(self.header(text), r"(Reads|Writes) ")

    def test_webhook_entries_stop_nobody(self):
        """Whoever copies them asks as little of the cluster as the shipped configurations do, and
        finds them again: certs.py and the removal go by the label."""
        path = ROOT / "manifests/80-mutatingwebhookconfiguration.yaml"
        shipped = yaml.safe_load(path.read_text())
        example = webhook_configuration()
        self.assertEqual(example["metadata"]["labels"], shipped["metadata"]["labels"])
        selector = shipped["webhooks"][0]["namespaceSelector"]
        for entry in example["webhooks"]:
            with self.subTest(entry=entry["name"]):
                for key in ("failurePolicy", "sideEffects", "admissionReviewVersions"):
                    self.assertEqual(entry[key], shipped["webhooks"][0][key])
                own = entry["namespaceSelector"]
                self.assertEqual(own["matchLabels"], selector["matchLabels"])
                left_out = [set(each["matchExpressions"][0]["values"]) for each in (own, selector)]
                self.assertGreaterEqual(*left_out)

    def test_webhook_entries(self):
        """They are for policies that there are, with the operations that these need."""
        for entry in webhook_configuration()["webhooks"]:
            verb, name = entry["clientConfig"]["service"]["path"].strip("/").split("/")
            with self.subTest(policy=name):
                self.assertTrue(getattr(BY_NAME[name], verb))
                header = self.header(self.files[name].read_text())
                for rule in entry["rules"]:
                    what = f"{', '.join(rule['operations'])} of {', '.join(rule['resources'])}"
                    self.assertIn(f"Rule: {what}.", header)


if __name__ == "__main__":
    unittest.main()
