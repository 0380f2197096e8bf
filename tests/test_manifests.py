"""The manifests and the Dockerfile, checked as text: against the rules they follow, against each
other, and against the programs they start. test_e2e.py applies them to a real API server."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import yaml

import whook
from sbom import sbom
from tests import controlplane

TOP = Path(__file__).resolve().parent.parent
MANIFESTS = TOP / "manifests"
FILES = sorted(f for f in MANIFESTS.rglob("*.yaml") if "kustomize" not in f.parts)
LABEL = "app.kubernetes.io/name"
STATIC_PAGE = (TOP / "docs/static.md").read_text()

# What a cluster of 1.27 serves and one of today still does, and the Prometheus operator's.
APIS = {
    "AdmissionConfiguration": "apiserver.config.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "ConfigMap": "v1",
    "CronJob": "batch/v1",
    "Deployment": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "MutatingWebhookConfiguration": "admissionregistration.k8s.io/v1",
    "Namespace": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Pod": "v1",
    "PodDisruptionBudget": "policy/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "ValidatingWebhookConfiguration": "admissionregistration.k8s.io/v1",
}
COMPANIONS = {  # what may stand in one file with it
    "Role": ["RoleBinding"],
    "ClusterRole": ["ClusterRoleBinding"],
}
NO_OBJECTS = {"AdmissionConfiguration"}
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "MutatingWebhookConfiguration",
    "Namespace",
    "ValidatingWebhookConfiguration",
}


def load(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def one(kind: str, folder: str = ".") -> dict[str, Any]:
    """The one object of that kind in that folder of manifests/."""
    found = [o for f in (MANIFESTS / folder).glob("*.yaml") for o in load(f) if o["kind"] == kind]
    if len(found) != 1:
        raise AssertionError(f"manifests/{folder}: {len(found)} objects of kind {kind}, not 1")
    return found[0]


def pod_of(owner: dict[str, Any]) -> dict[str, Any]:
    """The pod template of a Deployment or a CronJob."""
    spec = owner["spec"]["jobTemplate"]["spec"] if owner["kind"] == "CronJob" else owner["spec"]
    template: dict[str, Any] = spec["template"]
    return template


def container_of(owner: dict[str, Any]) -> dict[str, Any]:
    containers: list[dict[str, Any]] = pod_of(owner)["spec"]["containers"]
    (container,) = containers
    return container


def flags_of(container: dict[str, Any]) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


class FilesTest(unittest.TestCase):
    def test_every_file_is_named_after_the_one_thing_in_it(self) -> None:
        for path in FILES:
            with self.subTest(path.name):
                if path.parent.name == "examples":
                    continue
                self.assertRegex(path.name, r"^\d\d-[a-z]+\.yaml$")
                kinds = {item["kind"].lower(): item["kind"] for item in load(path)}
                main = kinds.pop(path.stem[3:], None)
                self.assertIsNotNone(main)
                self.assertEqual(list(kinds.values()), COMPANIONS.get(str(main), []))

    def test_every_file_says_why(self) -> None:
        for path in FILES:
            with self.subTest(path.name):
                self.assertRegex(path.read_text(), r"(?m)^ *# \w")

    def test_the_namespace_comes_first(self) -> None:
        for folder in (MANIFESTS, MANIFESTS / "renewal"):
            first = min(folder.glob("*.yaml"))
            self.assertEqual([o["kind"] for o in load(first)], ["Namespace"])

    def test_webhook_configurations_come_last(self) -> None:
        kinds = [o["kind"] for f in sorted(MANIFESTS.glob("*.yaml")) for o in load(f)]
        self.assertEqual(
            kinds[-2:], ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]
        )

    def test_versions_and_namespaces(self) -> None:
        for path in FILES:
            for item in load(path):
                with self.subTest(f"{path.name}: {item['kind']}"):
                    self.assertEqual(item["apiVersion"], APIS[item["kind"]])
                    if item["kind"] in NO_OBJECTS:
                        continue
                    inside = path.parent.name != "examples" and item["kind"] not in CLUSTER_WIDE
                    expected = "whook" if inside else None
                    if path.parent.name == "static" and inside:
                        expected = "kube-system"  # where nothing asks whook
                    if inside and path.parent.name == "renewal" and "Role" not in item["kind"]:
                        expected = "whook-renewal"  # its rights are where the Secret is
                    self.assertEqual(item["metadata"].get("namespace"), expected)

    def test_no_object_is_there_twice(self) -> None:
        for folder in (".", "renewal"):
            names = [
                (o["kind"], o["metadata"]["name"])
                for f in (MANIFESTS / folder).glob("*.yaml")
                for o in load(f)
            ]
            self.assertEqual(len(names), len(set(names)), folder)

    def test_everything_of_ours_carries_its_name(self) -> None:
        for path in FILES:
            for item in load(path):
                if path.parent.name != "examples" and item["kind"] not in NO_OBJECTS:
                    name = "whook-certs" if path.parent.name == "renewal" else "whook"
                    self.assertEqual(item["metadata"]["labels"][LABEL], name, path.name)


class WebhookConfigurationTest(unittest.TestCase):
    def test_the_whole_of_each_webhook(self) -> None:
        expected = {
            "matchPolicy": "Equivalent",
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "timeoutSeconds": 5,
            "admissionReviewVersions": ["v1"],
            "namespaceSelector": {
                "matchLabels": {"whook": "enabled"},
                "matchExpressions": [
                    {
                        "key": "kubernetes.io/metadata.name",
                        "operator": "NotIn",
                        "values": ["kube-system", "whook", "whook-renewal"],
                    }
                ],
            },
        }
        pods = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        pods |= {"operations": ["CREATE"], "scope": "Namespaced"}
        changed = {"resources": ["pods", "pods/ephemeralcontainers"]}
        changed |= {"operations": ["CREATE", "UPDATE"]}
        for kind, verb, more in (
            (
                "MutatingWebhookConfiguration",
                "mutate",
                {"reinvocationPolicy": "IfNeeded", "rules": [pods]},
            ),
            ("ValidatingWebhookConfiguration", "validate", {"rules": [pods | changed]}),
        ):
            with self.subTest(verb):
                configuration = one(kind)
                self.assertEqual(configuration["metadata"]["name"], "whook")
                service = {"namespace": "whook", "name": "whook", "port": 443, "path": f"/{verb}"}
                self.assertEqual(
                    configuration["webhooks"],
                    [
                        {
                            **expected,
                            **more,
                            "name": f"{verb}.whook.local",
                            "clientConfig": {"service": service},
                        }
                    ],
                )

    def test_ca_bundle_is_left_to_certs_py(self) -> None:
        for path in FILES:
            if path.parent.name == "static":
                continue  # no object, so certs.py can't; see StaticTest
            self.assertNotRegex(path.read_text(), r"(?m)^\s*caBundle:", path.name)

    def test_emergency_removal_is_in_the_file(self) -> None:
        """Whoever opens the configuration in an emergency finds the way out in it."""
        text = (MANIFESTS / "80-mutatingwebhookconfiguration.yaml").read_text()
        command = (
            "kubectl delete mutatingwebhookconfigurations,validatingwebhookconfigurations "
            f"-l {LABEL}=whook\n"
        )
        self.assertIn(command, text)
        for page in ("README.md", "docs/operate.md", "docs/deploy.md", "policies/README.md"):
            with self.subTest(page=page):
                self.assertIn(command, (TOP / page).read_text())


class RolloutTest(unittest.TestCase):
    """examples/rollout.yaml is the shipped entries, for one value of the namespace's label each."""

    def test_entries(self) -> None:
        expected = {
            "MutatingWebhookConfiguration": [
                ("team-label", "mutate/team-label", "enabled", "Ignore"),
                ("strict.team-label", "mutate/team-label", "strict", "Fail"),
            ],
            "ValidatingWebhookConfiguration": [
                ("warn.pinned-images", "warn/pinned-images", "warn", "Ignore"),
                ("pinned-images", "validate/pinned-images", "enabled", "Ignore"),
                ("strict.pinned-images", "validate/pinned-images", "strict", "Fail"),
            ],
        }
        found = load(MANIFESTS / "examples/rollout.yaml")
        self.assertEqual([item["kind"] for item in found], list(expected))
        for item in found:
            shipped = one(item["kind"])
            (entry,) = shipped["webhooks"]
            shipped["webhooks"] = []
            for name, path, label, failure_policy in expected[item["kind"]]:
                webhook = json.loads(json.dumps(entry))
                webhook |= {"name": f"{name}.whook.local", "failurePolicy": failure_policy}
                webhook["clientConfig"]["service"]["path"] = f"/{path}"
                webhook["namespaceSelector"]["matchLabels"] = {"whook": label}
                shipped["webhooks"].append(webhook)
            self.assertEqual(item, shipped)


class StaticTest(unittest.TestCase):
    """The static files are the ordinary ones, but for what the page docs/static.md says."""

    def test_configurations(self) -> None:
        for kind, verb in (
            ("MutatingWebhookConfiguration", "mutate"),
            ("ValidatingWebhookConfiguration", "validate"),
        ):
            with self.subTest(verb):
                ordinary, static = one(kind), one(kind, "static")
                self.assertEqual(static["metadata"].pop("name"), "whook.static.k8s.io")
                del ordinary["metadata"]["name"]
                (webhook,) = ordinary["webhooks"]
                (expression,) = webhook["namespaceSelector"]["matchExpressions"]
                webhook |= {
                    "name": f"{verb}.static.whook.local",
                    "clientConfig": {
                        "url": f"https://127.0.0.1:8443/{verb}",
                        "caBundle": "${CA_BUNDLE}",
                    },
                    "namespaceSelector": {
                        "matchExpressions": [expression | {"values": ["kube-system"]}]
                    },
                    "failurePolicy": "Fail",
                }
                self.assertEqual(static, ordinary)

    def test_each_plugin_has_its_folder(self) -> None:
        plugins = one("AdmissionConfiguration", "static")["plugins"]
        folders = {p["name"]: p["configuration"]["staticManifestsDir"] for p in plugins}
        self.assertEqual(
            folders,
            {
                f"{kind}AdmissionWebhook": f"/etc/kubernetes/whook/{kind.lower()}"
                for kind in ("Mutating", "Validating")
            },
        )

    def test_the_pod_is_the_deployments_on_the_nodes_loopback(self) -> None:
        pod, ordinary = one("Pod", "static"), pod_of(one("Deployment"))["spec"]
        (container,) = pod["spec"]["containers"]
        expected = ordinary["containers"][0]
        for name in ("readinessProbe", "livenessProbe"):
            expected[name]["httpGet"] |= {"host": "127.0.0.1", "port": 8080}
        del expected["ports"]
        expected["args"] = [
            "--tls-cert=/certs/server-cert.pem",
            "--tls-key=/certs/server-key.pem",
            "--policy=/policies",
            "--host=127.0.0.1",
        ]
        self.assertEqual(container, expected)
        for key in (
            "enableServiceLinks",
            "shareProcessNamespace",
            "terminationGracePeriodSeconds",
        ):
            self.assertEqual(pod["spec"][key], ordinary[key])
        del ordinary["securityContext"]["fsGroup"]
        self.assertEqual(pod["spec"]["securityContext"], ordinary["securityContext"])
        self.assertIs(pod["spec"]["hostNetwork"], True)

    def test_the_folder_of_policies_has_a_version(self) -> None:
        """A new version is a change of the pod, so the kubelet replaces it; whook reads policies
        only when it starts."""
        volumes = {volume["name"]: volume for volume in one("Pod", "static")["spec"]["volumes"]}
        path = volumes["policies"]["hostPath"]["path"]
        self.assertRegex(path, r"^/etc/kubernetes/whook/policies-v\d+$")
        self.assertIn(f"policies={path.replace('/etc/kubernetes/whook', '$node')}\n", STATIC_PAGE)

    def test_the_pod_needs_no_object_of_the_api(self) -> None:
        """The kubelet refuses a static pod that names one."""
        spec = one("Pod", "static")["spec"]
        self.assertFalse({"serviceAccountName", "imagePullSecrets"} & set(spec))
        self.assertEqual([set(volume) - {"name"} for volume in spec["volumes"]], [{"hostPath"}] * 2)
        for key in ("env", "envFrom"):
            self.assertNotIn(key, spec["containers"][0])


class DeploymentTest(unittest.TestCase):
    def setUp(self) -> None:
        self.deployment = one("Deployment")
        self.template = pod_of(self.deployment)
        self.container = container_of(self.deployment)

    def test_rollout(self) -> None:
        spec = self.deployment["spec"]
        self.assertEqual(
            spec["strategy"],
            {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        )
        self.assertEqual(spec["revisionHistoryLimit"], 5)
        mount = 122  # seconds that a kubelet waits at most before it looks for a Secret again
        self.assertGreater(spec["progressDeadlineSeconds"], 2 * mount)
        self.assertEqual(spec["replicas"], 2)
        scaler = one("HorizontalPodAutoscaler")["spec"]
        self.assertEqual(scaler["minReplicas"], spec["replicas"])
        self.assertGreater(scaler["maxReplicas"], 2)
        self.assertEqual(
            scaler["scaleTargetRef"],
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "whook"},
        )

    def test_an_unhealthy_pod_stops_no_drain_and_a_single_node_is_told_the_way_out(self) -> None:
        budget = one("PodDisruptionBudget")["spec"]
        self.assertEqual(budget["maxUnavailable"], 1)
        self.assertEqual(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow")
        text = (MANIFESTS / "70-poddisruptionbudget.yaml").read_text()
        self.assertIn("#   kubectl delete poddisruptionbudget whook -n whook\n", text)

    def test_spreading_is_left_to_the_scheduler(self) -> None:
        """Constraints of ours turn its own off, and were ignored on nodes without a zone."""
        self.assertNotIn("topologySpreadConstraints", self.template["spec"])

    def test_whook_is_not_process_1(self) -> None:
        """The kernel ignores the default action of SIGPROF there, which ends a policy that hangs in
        C, and a SIGTERM before Python has a handler."""
        self.assertIs(self.template["spec"]["shareProcessNamespace"], True)

    def test_one_thread_has_one_core_and_probes_have_time(self) -> None:
        self.assertEqual(
            self.container["resources"],
            {
                "requests": {"cpu": "250m", "memory": "64Mi"},
                "limits": {"cpu": "1", "memory": "1Gi"},
            },
        )
        (metric,) = one("HorizontalPodAutoscaler")["spec"]["metrics"]
        self.assertEqual(metric["resource"]["target"]["averageUtilization"], 70)
        self.assertEqual(self.container["readinessProbe"]["timeoutSeconds"], 3)
        self.assertEqual(self.container["livenessProbe"]["timeoutSeconds"], 5)

    def test_a_priority_class_is_there_for_whoever_fails_closed(self) -> None:
        self.assertNotIn("priorityClassName", self.template["spec"])
        text = (MANIFESTS / "50-deployment.yaml").read_text()
        self.assertIn("      # priorityClassName: system-cluster-critical\n", text)

    def test_every_selector_finds_the_pods(self) -> None:
        labels = self.template["metadata"]["labels"]
        selectors = {
            "deployment": self.deployment["spec"]["selector"]["matchLabels"],
            "service": one("Service")["spec"]["selector"],
            "budget": one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            "network": one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        }
        monitor = one("PodMonitor", "monitoring")["spec"]
        selectors["monitor"] = monitor["selector"]["matchLabels"]
        for name, selector in selectors.items():
            with self.subTest(name):
                self.assertTrue(selector)
                self.assertTrue(matches(selector, labels))

    def test_ports_lead_from_the_service_to_the_process(self) -> None:
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.assertEqual(ports, {"https": 8443, "health": 8080})
        self.assertEqual(
            one("Service")["spec"]["ports"],
            [{"name": "https", "port": 443, "targetPort": "https"}],
        )
        webhook = one("MutatingWebhookConfiguration")["webhooks"][0]
        self.assertEqual(webhook["clientConfig"]["service"]["port"], 443)
        for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            self.assertEqual(
                self.container[probe]["httpGet"], {"path": path, "port": "health"}, probe
            )
        (endpoint,) = one("PodMonitor", "monitoring")["spec"]["podMetricsEndpoints"]
        self.assertEqual((endpoint["port"], endpoint["path"]), ("health", "/metrics"))

    def test_network(self) -> None:
        spec = one("NetworkPolicy")["spec"]
        self.assertEqual(spec["policyTypes"], ["Ingress", "Egress"])
        self.assertNotIn("egress", spec)
        opened = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
        self.assertEqual(opened, [8443, 8080])

    def test_arguments_are_flags_of_whook(self) -> None:
        flags = flags_of(self.container)
        known = known_flags("whook.py")
        self.assertEqual(set(flags) - known, set())
        self.assertEqual(flags["tls-cert"], "/certs/tls.crt")
        self.assertEqual(flags["tls-key"], "/certs/tls.key")
        self.assertEqual(flags["policy"], "/policies")
        self.assertNotIn("workers", flags)
        longest = 30  # seconds: what the API server takes as a webhook's timeoutSeconds at most
        grace = self.template["spec"]["terminationGracePeriodSeconds"]
        self.assertGreater(grace, whook.GRACE_PERIOD + longest)
        self.assertNotIn("grace-period", flags)

    def test_paths_are_mounted_from_what_holds_them(self) -> None:
        volumes = {volume["name"]: volume for volume in self.template["spec"]["volumes"]}
        mounts = {
            mount["mountPath"]: volumes[mount["name"]] for mount in self.container["volumeMounts"]
        }
        self.assertEqual(
            mounts["/certs"]["secret"], {"secretName": "whook-certs", "defaultMode": 0o440}
        )
        self.assertEqual(
            mounts["/policies"]["configMap"], {"name": one("ConfigMap")["metadata"]["name"]}
        )
        self.assertEqual(len(mounts), len(volumes))
        for mount in self.container["volumeMounts"]:
            self.assertIs(mount["readOnly"], True)
            self.assertNotIn("subPath", mount, "a renewed certificate would not get in")

    def test_policies_never_change_under_one_name(self) -> None:
        """So a changed policy is another ConfigMap, and naming it in the Deployment a rollout."""
        policies = one("ConfigMap")
        self.assertIs(policies["immutable"], True)
        self.assertRegex(policies["metadata"]["name"], r"^whook-policies-v\d+$")
        self.assertNotIn("--reload", self.container["args"])
        self.assertNotIn("--debug-policies", self.container["args"])

    def test_policies_are_the_files_of_that_name(self) -> None:
        policies = one("ConfigMap")["data"]
        self.assertTrue(policies)
        for name, text in policies.items():
            with self.subTest(name):
                self.assertEqual(text, (TOP / "policies" / name).read_text())


class PodSecurityTest(unittest.TestCase):
    """Both pods, by the rules of the restricted standard that their namespaces enforce."""

    def test_namespaces_enforce_the_restricted_standard(self) -> None:
        """Of one version, so that a cluster's upgrade warns before anything is refused."""
        expected = {"enforce": "restricted", "enforce-version": "v1.36"}
        expected |= {"warn": "restricted", "warn-version": "latest"}
        expected |= {"audit": "restricted", "audit-version": "latest"}
        for folder in (".", "renewal"):
            labels = one("Namespace", folder)["metadata"]["labels"]
            labels = {k.removeprefix("pod-security.kubernetes.io/"): labels[k] for k in labels}
            self.assertEqual({k: v for k, v in labels.items() if k != LABEL}, expected)

    def test_pods_have_no_privilege(self) -> None:
        for owner in (one("Deployment"), one("CronJob", "renewal")):
            with self.subTest(owner["kind"]):
                spec = pod_of(owner)["spec"]
                user = spec["securityContext"]["runAsUser"]
                groups = {"fsGroup": user} if owner["kind"] == "Deployment" else {}
                self.assertEqual(
                    spec["securityContext"],
                    {
                        "runAsNonRoot": True,
                        "runAsUser": user,
                        "runAsGroup": user,
                        **groups,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                )
                self.assertIs(spec["enableServiceLinks"], False)
                self.assertIn(f"USER {user}:{user}\n", (TOP / "Dockerfile").read_text())
                self.assertEqual(
                    container_of(owner)["securityContext"],
                    {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                )

    def test_requests_and_limits(self) -> None:
        for owner in (one("Deployment"), one("CronJob", "renewal")):
            for bound in ("requests", "limits"):
                self.assertEqual(set(container_of(owner)["resources"][bound]), {"cpu", "memory"})

    def test_images_have_a_version(self) -> None:
        for owner, name in (
            (one("Deployment"), "localhost/whook"),
            (one("CronJob", "renewal"), "localhost/whook-certs"),
            (one("Deployment", "examples"), "busybox"),
        ):
            self.assertRegex(container_of(owner)["image"], rf"^{name}:\d+\.\d+\.\d+$")


class PermissionsTest(unittest.TestCase):
    def test_the_server_has_none(self) -> None:
        kinds = {o["kind"] for f in MANIFESTS.glob("*.yaml") for o in load(f)}
        self.assertEqual({kind for kind in kinds if "Role" in kind}, set())
        spec = pod_of(one("Deployment"))["spec"]
        self.assertEqual(spec["serviceAccountName"], "whook")
        self.assertIs(spec["automountServiceAccountToken"], False)

    def test_the_roles_are_bound_to_the_renewal(self) -> None:
        """That they grant what certs.py needs and no more stands in test_certs.py."""
        for kind in ("Role", "ClusterRole"):
            role, binding = one(kind, "renewal"), one(kind + "Binding", "renewal")
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind}
            self.assertEqual(binding["roleRef"], {**reference, "name": role["metadata"]["name"]})
            account = {"kind": "ServiceAccount", "name": "whook-certs"}
            self.assertEqual(binding["subjects"], [account | {"namespace": "whook-renewal"}])

    def test_the_renewal_reaches_the_api_server_and_the_pods_and_nothing_else(self) -> None:
        spec = one("NetworkPolicy", "renewal")["spec"]
        labels = pod_of(one("CronJob", "renewal"))["metadata"]["labels"]
        self.assertTrue(matches(spec["podSelector"]["matchLabels"], labels))
        self.assertEqual(spec["policyTypes"], ["Ingress", "Egress"])
        self.assertNotIn("ingress", spec)
        api, pods = spec["egress"]
        self.assertEqual([p["port"] for p in api["ports"]], [443, 6443, 8443, 16443])
        (to,) = pods["to"]
        server = one("Deployment")
        space = {"kubernetes.io/metadata.name": server["metadata"]["namespace"]}
        self.assertEqual(to["namespaceSelector"]["matchLabels"], space)
        served = pod_of(server)["metadata"]["labels"]
        self.assertTrue(matches(to["podSelector"]["matchLabels"], served))
        port = {"protocol": "TCP", "port": container_of(server)["ports"][0]["containerPort"]}
        self.assertEqual(pods["ports"], [port])

    def test_the_renewal_runs_as_its_own_account_and_never_serves(self) -> None:
        cronjob = one("CronJob", "renewal")
        account = one("ServiceAccount", "renewal")["metadata"]["name"]
        self.assertEqual(pod_of(cronjob)["spec"]["serviceAccountName"], account)
        self.assertEqual(cronjob["spec"]["concurrencyPolicy"], "Forbid")
        labels = pod_of(cronjob)["metadata"]["labels"]
        self.assertFalse(matches(one("Service")["spec"]["selector"], labels))

    def test_the_key_never_reaches_a_disk(self) -> None:
        cronjob = one("CronJob", "renewal")
        self.assertNotIn("volumes", pod_of(cronjob)["spec"])
        self.assertNotIn("volumeMounts", container_of(cronjob))
        flags = flags_of(container_of(cronjob))
        self.assertEqual(flags["cert-dir"], "")
        self.assertEqual(set(flags) - known_flags("certs.py"), set())
        job = cronjob["spec"]["jobTemplate"]["spec"]
        self.assertGreater(job["activeDeadlineSeconds"], int(flags["timeout"]))


# What each alert is tried on: series and their values every 30 s (promtool's notation: 1x9 is ten
# ones, _x9 nine gaps), the time at which it is looked at, and the labels of the alert that fires,
# or None.
OPEN = "apiserver_admission_webhook_fail_open_count"
OURS = '{name="validate.whook.local",type="validating"}'
UP = 'up{namespace="whook",container="whook",pod="a"}'
RESTARTS = 'kube_pod_container_status_restarts_total{namespace="whook",container="whook",pod="a"}'
STOPPED = 'whook_policy_errors_total{policy="tags",cause="time",pod="a"}'
REVIEWS = "whook_reviews_total"
BUCKET = "whook_review_duration_seconds_bucket"
ALERTS: dict[str, list[tuple[str, dict[str, str], str, dict[str, str] | None]]] = {
    "WhookDown": [
        ("no pod is there", {}, "3m", {}),
        (
            "none is ready",
            {'whook_ready{pod="a"}': "0x20", 'whook_ready{pod="b"}': "0x20"},
            "3m",
            {},
        ),
        ("one is", {'whook_ready{pod="a"}': "0x20", 'whook_ready{pod="b"}': "1x20"}, "3m", None),
        ("none, for a minute", {'whook_ready{pod="a"}': "1x10 0x2 1x9"}, "6m", None),
    ],
    "WhookFailsOpen": [
        ("the first call", {OPEN + OURS: "_x40 1x40"}, "21m", {"name": "validate.whook.local"}),
        ("one more", {OPEN + OURS: "3x40 4x40"}, "22m", {"name": "validate.whook.local"}),
        ("long ago", {OPEN + OURS: "_x10 1x90"}, "30m", None),
        ("somebody else", {OPEN + '{name="a.example.com"}': "3x40 4x40"}, "22m", None),
    ],
    "WhookDoesNotStart": [
        (
            "it ends at once",
            {UP: "0x20"},
            "6m",
            {"namespace": "whook", "container": "whook", "pod": "a"},
        ),
        ("it starts", {UP: "0x6 1x20"}, "3m", None),
        ("another container", {'up{namespace="whook",container="x"}': "0x20"}, "6m", None),
    ],
    "WhookRestarts": [
        (
            "every ten minutes",
            {RESTARTS: " ".join(f"{n}x19" for n in range(8))},
            "70m",
            {"namespace": "whook", "container": "whook", "pod": "a"},
        ),
        ("once", {RESTARTS: "0x60 1x80"}, "70m", None),
    ],
    "WhookCertificateExpiresSoon": [
        ("in 13 days", {"whook_certificate_not_after_timestamp_seconds": "1123200x200"}, "70m", {}),
        (
            "in 30 days",
            {"whook_certificate_not_after_timestamp_seconds": "2592000x200"},
            "70m",
            None,
        ),
    ],
    "WhookReloadFails": [
        (
            "for an hour",
            {'whook_reload_failing{what="tls",pod="a"}': "0x4 1x120"},
            "62m",
            {"what": "tls"},
        ),
        (
            "fixed",
            {'whook_reload_failing{what="tls",pod="a"}': "1x40 0x80"},
            "25m",
            None,
        ),
    ],
    "WhookPolicyErrors": [
        (
            "two of 102",
            {REVIEWS + '{outcome="allowed"}': "0+100x40", REVIEWS + '{outcome="error"}': "0+2x40"},
            "15m",
            {},
        ),
        (
            "one of 201",
            {REVIEWS + '{outcome="allowed"}': "0+200x40", REVIEWS + '{outcome="error"}': "0+1x40"},
            "15m",
            None,
        ),
        ("nothing to do", {REVIEWS + '{outcome="error"}': "5x40"}, "15m", None),
    ],
    "WhookPolicyStopped": [
        ("the first time", {STOPPED: "_x40 1x40"}, "21m", {"policy": "tags"}),
        ("once more", {STOPPED: "1x60 2x40"}, "32m", {"policy": "tags"}),
        ("long ago", {STOPPED: "_x10 1x90"}, "40m", None),
        ("another cause", {STOPPED.replace("time", "exception"): "0+1x90"}, "40m", None),
    ],
    "WhookSlow": [
        (
            "a tenth takes longer",
            {
                f'{BUCKET}{{le="{le}"}}': f"0+{n}x40"
                for le, n in ((0.5, 90), (1, 100), ("+Inf", 100))
            },
            "15m",
            {},
        ),
        (
            "none does",
            {f'{BUCKET}{{le="{le}"}}': "0+100x40" for le in (0.5, 1, "+Inf")},
            "15m",
            None,
        ),
    ],
    "WhookSheds": [
        ("it is full", {'whook_refusals_total{reason="503"}': "0+5x40"}, "15m", {}),
        ("others' rubbish", {'whook_refusals_total{reason="400"}': "0+5x40"}, "15m", None),
    ],
    "WhookLogLinesDropped": [
        ("some", {"whook_log_lines_dropped_total": "0x20 7x20"}, "15m", {}),
        ("long ago", {"whook_log_lines_dropped_total": "0x20 7x90"}, "40m", None),
    ],
}
# Something of everything that the dashboard shows.
SHOWN = {
    f'{BUCKET}{{le="0.5"}}': "0+100x40",
    f'{BUCKET}{{le="+Inf"}}': "0+100x40",
    REVIEWS + '{path="/mutate",operation="CREATE",kind="Pod",outcome="allowed"}': "0+100x40",
    'whook_build_info{version="1.0.0",python="3.14.10"}': "1x40",
    "whook_certificate_not_after_timestamp_seconds": "2592000x40",
    "whook_connections": "8x40",
    'whook_buffered_bytes{pod="a"}': "4096x40",
    "whook_log_lines_dropped_total": "0x40",
    'whook_patch_operations_total{policy="tags"}': "0+1x40",
    'whook_policies_info{hash="abc"}': "1x40",
    'whook_policy_duration_seconds_count{policy="tags"}': "0+100x40",
    'whook_policy_duration_seconds_sum{policy="tags"}': "0+1x40",
    STOPPED: "0+1x40",
    "whook_ready": "1x40",
    'whook_refusals_total{reason="400"}': "0+1x40",
    'whook_reload_failing{what="tls"}': "0x40",
    'whook_reload_timestamp_seconds{what="tls"}': "5x40",
}


@unittest.skipUnless(
    shutil.which("promtool") or "WHOOK_CI" in os.environ,
    "promtool is not there (on Debian: package prometheus)",
)
class MonitoringTest(unittest.TestCase):
    """Every expression of the alerts and the dashboard, run by promtool on made-up series."""

    def setUp(self) -> None:
        (self.group,) = one("PrometheusRule", "monitoring")["spec"]["groups"]
        self.rules = {rule["alert"]: rule for rule in self.group["rules"]}
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "rules.yml").write_text(json.dumps({"groups": [self.group]}))

    def promtool(self, tests: list[dict[str, Any]]) -> None:
        script = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": tests}
        (self.folder / "tests.yml").write_text(json.dumps(script))
        command = ["promtool", "test", "rules", "tests.yml"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_fires_and_keeps_quiet(self) -> None:
        self.assertEqual(list(ALERTS), list(self.rules))
        tests = []
        for alert, cases in ALERTS.items():
            self.assertEqual({labels is None for *_, labels in cases}, {True, False}, alert)
            rule = self.rules[alert]
            for title, series, when, labels in cases:
                fired = []
                if labels is not None:
                    labels = {**rule["labels"], **labels}
                    fired = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}]
                expected = {"alertname": alert, "eval_time": when, "exp_alerts": fired}
                tests.append(made_up(series, f"{alert}: {title}", alert_rule_test=[expected]))
        self.promtool(tests)

    def test_every_panel_shows_something(self) -> None:
        board = json.loads((MANIFESTS / "monitoring/dashboard.json").read_text())
        shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        self.assertGreater(len(shown), 10)
        expected = []
        for expression in shown:
            number = f"count(({expression.replace('$__rate_interval', '5m')}) > -Inf)"  # not NaN
            samples = [{"labels": "{}", "value": 1}]
            expected.append({"expr": number, "eval_time": "15m", "exp_samples": samples})
        self.promtool([made_up(SHOWN, "dashboard", promql_expr_test=expected)])
        for series in SHOWN:
            name = series.partition("{")[0]
            self.assertTrue(any(name in expression for expression in shown), f"{name}: unused")


def made_up(series: dict[str, str], name: str, **tests: Any) -> dict[str, Any]:
    """A test of promtool's, on these series."""
    values = [{"series": key, "values": value} for key, value in series.items()]
    return {"name": name, "interval": "30s", "input_series": values, **tests}


KUBECTL = shutil.which("kubectl")
if folder := controlplane.binaries():
    KUBECTL = str(folder / "kubectl")


def build(folder: str) -> dict[str, Any]:
    """What kustomize makes of a folder below manifests/kustomize/: objects by kind and name."""
    command = [str(KUBECTL), "kustomize", str(MANIFESTS / "kustomize" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(done.stderr)
    items = yaml.safe_load_all(done.stdout)
    return {f"{item['kind']} {item['metadata']['name']}": item for item in items}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every value in it that holds no others, by its path."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, inner in pairs:
        nested = isinstance(inner, dict | list) and inner
        found |= flat(inner, f"{path}/{key}") if nested else {f"{path}/{key}": inner}
    return found


class KustomizeTest(unittest.TestCase):
    """The base is the files of manifests/; an overlay changes what it says and nothing else."""

    def setUp(self) -> None:
        if not KUBECTL:
            self.skipTest("no kubectl: it is in KUBEBUILDER_ASSETS")

    def changed(self, overlay: str) -> dict[str, Any]:
        """What the overlay has that the base has not, by object and path."""
        before, after = flat(build("base")), flat(build(f"overlays/{overlay}"))
        return {key: value for key, value in after.items() if before.get(key) != value}

    def test_the_base_is_the_files(self) -> None:
        files = sorted(MANIFESTS.glob("*.yaml"))
        text = "".join(f"---\n{f.read_text()}" for f in files)
        remake = "sed -s '1i---' manifests/*.yaml > manifests/kustomize/base/whook.yaml"
        base = MANIFESTS / "kustomize/base"
        self.assertEqual((base / "whook.yaml").read_text(), text, f"not of today: {remake}")
        self.assertIn(f"#   {remake}\n", (base / "kustomization.yaml").read_text())
        items = [item for f in files for item in load(f)]
        expected = {f"{item['kind']} {item['metadata']['name']}": item for item in items}
        self.assertEqual(build("base"), expected)

    def test_every_file_says_why(self) -> None:
        for path in (MANIFESTS / "kustomize").rglob("*.yaml"):
            with self.subTest(path.name):
                self.assertRegex(path.read_text(), r"^(---\n)?# \w")

    def test_registry(self) -> None:
        pod = "/Deployment whook/spec/template/spec"
        self.assertEqual(
            self.changed("registry"),
            {
                f"{pod}/containers/0/image": "registry.example.com/team/whook:1.0.0",
                f"{pod}/imagePullSecrets/0/name": "registry",
            },
        )

    def test_an_entry_for_each_policy(self) -> None:
        expected = {}
        for kind, path in (
            ("MutatingWebhookConfiguration", "mutate/team-label"),
            ("ValidatingWebhookConfiguration", "validate/pinned-images"),
        ):
            at = f"/{kind} whook/webhooks/0"
            expected |= {
                f"{at}/name": f"{path.partition('/')[2]}.whook.local",
                f"{at}/clientConfig/service/path": f"/{path}",
            }
        expected |= {"/ValidatingWebhookConfiguration whook/webhooks/0/failurePolicy": "Fail"}
        self.assertEqual(self.changed("own-entry"), expected)

    def test_cert_manager_takes_the_place_of_certs_py(self) -> None:
        built = build("overlays/cert-manager")
        leaf = built["Certificate whook-certs"]["spec"]
        (names, secret) = leaf["dnsNames"], leaf["secretName"]
        volumes = pod_of(built["Deployment whook"])["spec"]["volumes"]
        self.assertIn(secret, [v["secret"]["secretName"] for v in volumes if "secret" in v])
        for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
            configuration = built[f"{kind} whook"]
            service = configuration["webhooks"][0]["clientConfig"]["service"]
            self.assertEqual(names, [f"{service['name']}.{service['namespace']}.svc"])
            annotation = {"cert-manager.io/inject-ca-from": "whook/whook-certs"}
            self.assertEqual(configuration["metadata"]["annotations"], annotation)
        issuer = built[f"Issuer {leaf['issuerRef']['name']}"]["spec"]
        authority = built["Certificate whook-ca"]["spec"]
        self.assertEqual(issuer, {"ca": {"secretName": authority["secretName"]}})
        self.assertIs(authority["isCA"], True)
        self.assertNotEqual(secret, authority["secretName"])
        root = built[f"Issuer {authority['issuerRef']['name']}"]["spec"]
        self.assertEqual(root, {"selfSigned": {}})

    def test_yours_has_everything_that_people_change(self) -> None:
        built = build("overlays/yours")
        namespace = built.pop("Namespace policies")["metadata"]["name"]
        (policies,) = (item for key, item in built.items() if key.startswith("ConfigMap "))
        self.assertRegex(policies["metadata"]["name"], r"^policies-[a-z0-9]{10}$")
        self.assertIs(policies["immutable"], True)
        folder = MANIFESTS / "kustomize/overlays/yours/policies"
        self.assertEqual(policies["data"], {f.name: f.read_text() for f in folder.iterdir()})
        deployment = built["Deployment whook"]
        volumes = {v["name"]: v for v in pod_of(deployment)["spec"]["volumes"]}
        self.assertEqual(volumes["policies"]["configMap"], {"name": policies["metadata"]["name"]})
        self.assertEqual(container_of(deployment)["image"], "registry.example.com/whook:1.0.0")
        scaler = built["HorizontalPodAutoscaler whook"]["spec"]
        self.assertEqual((deployment["spec"]["replicas"], scaler["minReplicas"]), (3, 3))
        for key, item in built.items():
            if item["kind"] not in CLUSTER_WIDE:
                self.assertEqual(item["metadata"]["namespace"], namespace, key)
                continue
            (webhook,) = item["webhooks"]
            self.assertEqual(webhook["failurePolicy"], "Fail")
            self.assertEqual(webhook["clientConfig"]["service"]["namespace"], namespace)
            selector = webhook["namespaceSelector"]
            self.assertEqual(selector["matchLabels"], {"policies.example.com/asked": "yes"})
            self.assertEqual(
                selector["matchExpressions"][0]["values"],
                ["kube-system", namespace, "whook-renewal"],
            )
        self.assertNotIn("localhost/", json.dumps(built))

    def test_yours_replaces_the_configmap_of_the_base_whatever_its_version(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "kustomize")
            shutil.copytree(MANIFESTS / "kustomize", copy)
            base = copy / "base/whook.yaml"
            base.write_text(re.sub(r"whook-policies-v\d+", "whook-policies-v23", base.read_text()))
            built = build(str(copy / "overlays/yours"))
        self.assertEqual(list(built), list(build("overlays/yours")))

    def test_a_changed_policy_is_another_configmap(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "kustomize")
            shutil.copytree(MANIFESTS / "kustomize", copy)
            parameters = copy / "overlays/yours/policies/team-label.json"
            parameters.write_text('{"TEAM": "search"}')
            before, after = build("overlays/yours"), build(str(copy / "overlays/yours"))
        names = [{key for key in built if "ConfigMap" in key} for built in (before, after)]
        self.assertEqual(len(names[0] | names[1]), 2)
        self.assertEqual(set(before) - names[0], set(after) - names[1])


class DebugTest(unittest.TestCase):
    def test_the_service_stands_in_for_the_real_one(self) -> None:
        real, debug = one("Service"), one("Service", "debug")
        self.assertEqual(debug["metadata"], real["metadata"])
        self.assertNotIn("selector", debug["spec"])
        port = {"name": "https", "port": 443, "targetPort": 8443}
        self.assertEqual(debug["spec"]["ports"], [port])

    def test_the_slice_belongs_to_the_service(self) -> None:
        endpoints = one("EndpointSlice", "debug")
        service = one("Service", "debug")
        labels = endpoints["metadata"]["labels"]
        self.assertEqual(labels["kubernetes.io/service-name"], service["metadata"]["name"])
        (port,) = service["spec"]["ports"]
        self.assertEqual(endpoints["ports"], [{"name": port["name"], "port": port["targetPort"]}])
        self.assertEqual(endpoints["endpoints"], [{"addresses": ["192.0.2.10"]}])

    def test_there_is_one_address_to_change(self) -> None:
        text = "".join(f.read_text() for f in (MANIFESTS / "debug").glob("*.yaml"))
        self.assertEqual(text.count("192.0.2.10"), 1)


class DockerfileTest(unittest.TestCase):
    def setUp(self) -> None:
        self.text = (TOP / "Dockerfile").read_text().replace("\\\n", "")
        self.stages: dict[str, list[str]] = {}
        for line in re.findall(r"(?m)^(?!ARG)[A-Z]+ .*$", self.text):
            if line.startswith("FROM "):
                base, name = re.fullmatch(r"FROM (\S+) AS (\S+)", line).groups()  # type: ignore[union-attr]
                self.stages[name] = [base]
            else:
                self.stages[name].append(line)

    def test_the_server_image_holds_the_server_and_the_policies(self) -> None:
        copied = [line for line in self.stages["whook"] if line.startswith(("COPY", "ADD", "RUN"))]
        self.assertEqual(copied, ["COPY whook.py objects.py ./", "COPY policies/ policies/"])
        self.assertEqual(self.stages["whook"][0], "base")
        self.assertEqual(list(self.stages)[-1], "whook", "what a build without --target makes")

    def test_packages_are_locked_by_hash(self) -> None:
        """Those of the image, and what makes the SBOM at build."""
        files = ("requirements.txt", "sbom/requirements.txt")
        installs = re.findall(r"(?m)^RUN .*pip install.*$", self.text)
        for install, file in zip(installs, files, strict=True):
            self.assertIn("--require-hashes", install)
            self.assertIn(f"-r /{file}", install)
            self.assertIn("--hash=sha256:", (TOP / file).read_text())

    def test_entry_points_are_processes_not_shells(self) -> None:
        for name in ("whook", "certs"):
            self.assertEqual(self.stages[name][-1], f'ENTRYPOINT ["python", "{name}.py"]')

    def test_one_base_of_a_python_that_is_good_enough(self) -> None:
        """3.14.10 or later, and not yet 3.15: PyYAML has no wheel for it."""
        outside = {stage[0] for stage in self.stages.values()} - set(self.stages)
        self.assertEqual(outside, {"${BASE}", "scratch"})
        self.assertEqual(self.stages["sbom"], ["scratch", "COPY --from=inventory /out/ /"])
        (base,) = re.findall(r"(?m)^ARG BASE=(.*)$", self.text)
        version = re.fullmatch(r"docker\.io/library/python:3\.14\.(\d+)-slim-[a-z]+", base)
        self.assertIsNotNone(version, base)
        self.assertGreaterEqual(int(version[1]), 10)  # type: ignore[index]

    def test_byte_code_is_made_at_build_and_no_debugger_comes_in(self) -> None:
        run, environment = (line for line in self.stages["base"] if line.startswith(("RUN", "ENV")))
        compiled = "python -m compileall -q --invalidation-mode=unchecked-hash"
        self.assertTrue(run.endswith(f" && {' ' * 4}{compiled} /usr/local/lib/python3*"), run)
        (packages,) = (line for line in self.stages["packages"] if line.startswith("RUN"))
        self.assertIn(compiled, packages)
        self.assertEqual(
            environment.split()[1:],
            ["PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "PYTHON_DISABLE_REMOTE_DEBUG=1"],
        )

    def test_labels(self) -> None:
        """As the Open Containers' image specification names them."""
        (version,) = re.findall(r"(?m)^ARG VERSION=(.*)$", self.text)
        self.assertEqual(version, whook.__version__)
        for stage, title in (("whook", "whook"), ("certs", "whook-certs")):
            (line,) = (line for line in self.stages[stage] if line.startswith("LABEL"))
            labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', line))
            self.assertTrue(labels.pop("description"))
            expected = {"title": title, "version": "${VERSION}", "revision": "${REVISION}"}
            self.assertEqual(labels, expected | {"base.name": "${BASE}"})
            (arguments,) = re.findall(rf"(?m)^ARG (.*)\n+LABEL .*title=\"{title}\"", self.text)
            self.assertEqual(arguments, 'BASE VERSION REVISION=""')

    def test_the_kubelet_probes_and_nobody_else(self) -> None:
        self.assertIn("HEALTHCHECK NONE", self.stages["base"])
        self.assertEqual(self.text.count("HEALTHCHECK"), 1)

    @unittest.skipUnless(Path("/etc/os-release").exists(), "as in an image")
    def test_sbom_names_what_no_package_list_does(self) -> None:
        """The server's: itself, Python and the system."""
        made = sbom.whole({"bomFormat": "CycloneDX", "metadata": {}}, "whook", "1.0.0")
        self.assertEqual(made["metadata"]["component"]["bom-ref"], "whook==1.0.0")
        kinds = {item["type"]: item["version"] for item in made["components"]}
        self.assertEqual([*kinds], ["platform", "operating-system"])
        self.assertEqual(kinds["platform"], platform.python_version())
        package = {"type": "library", "name": "x", "version": "1"}
        made = sbom.whole({"metadata": {}, "components": [package]}, "whook-certs", "1.0.0")
        self.assertEqual(made["components"][2:], [package])

    def test_the_build_context_is_what_is_copied(self) -> None:
        copied = set()
        for line in re.findall(r"(?m)^COPY (?!--from=).*$", self.text):
            for source in (word.rstrip("/") for word in line.split()[1:-1]):
                found = {f for f in build_context() if f == source or f.startswith(f"{source}/")}
                self.assertTrue(found, f"{source} is not in the build context")
                copied |= found
        self.assertEqual(build_context(), copied)

    def test_names_of_the_images_are_those_that_the_pods_ask_for(self) -> None:
        for owner, name in ((one("Deployment"), "whook"), (one("CronJob", "renewal"), "certs")):
            image = container_of(owner)["image"]
            command = f"docker build --target {name} -t {image} ."
            for page in ("Dockerfile", "docs/deploy.md"):
                self.assertIn(command, (TOP / page).read_text(), page)

    @unittest.skipUnless(shutil.which("buildah"), "buildah is not there")
    def test_buildah_builds_it(self) -> None:
        """On an empty base, so without its RUN lines and what they make: a second opinion on the
        context, and what the images hold of ours."""
        policies = {f"policies/{f.name}" for f in (TOP / "policies").glob("*.py")}
        self.assertTrue(policies)
        ours = {"whook": {"whook.py", "objects.py", *policies}, "certs": {"certs.py"}}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "Dockerfile")
            file.write_text(re.sub(r"(?m)^(RUN|COPY --from=).*$", "", self.text))
            buildah = ["buildah", f"--root={folder}/root", f"--runroot={folder}/run"]
            buildah += ["--storage-driver=vfs", "build", "--isolation=chroot", f"--file={file}"]
            for target, expected in ours.items():
                image = Path(folder, target)
                command = [*buildah, "--build-arg=BASE=scratch", f"--target={target}"]
                command += [f"--output={image}", str(TOP)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 0, done.stderr)
                files = (f for f in (image / "app").rglob("*") if f.is_file())
                self.assertEqual({f.relative_to(image / "app").as_posix() for f in files}, expected)

    def test_ports(self) -> None:
        ports = sorted(port["containerPort"] for port in container_of(one("Deployment"))["ports"])
        exposed = re.findall(r"(?m)^EXPOSE (.*)$", self.text)[0]
        self.assertEqual(sorted(map(int, exposed.split())), ports)


def build_context() -> set[str]:
    """The files that .dockerignore leaves: it takes everything away, then lets some back in."""
    everything, *back = re.findall(r"(?m)^[^#\n]+$", (TOP / ".dockerignore").read_text())
    if everything != "*" or not all(line.startswith("!") for line in back):
        raise AssertionError(".dockerignore: this test reads * first, then lines with ! only")
    return {f.relative_to(TOP).as_posix() for line in back for f in TOP.glob(line[1:])}


def known_flags(program: str) -> set[str]:
    """The flags that a program's own --help names."""
    command = [sys.executable, str(TOP / program), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return set(re.findall(r"--([a-z][a-z-]+)", text))


if __name__ == "__main__":
    unittest.main()
