"""whook in pods: the images, on a real kubelet and containerd, under a stream of creations.

Both webhooks have failurePolicy Fail here, so whatever whook misses fails a creation. What is
measured on the way is printed at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import controlplane, node
from tests.server import wait_for

TOP = Path(__file__).resolve().parent.parent
WITHIN = 180.0
CLIENTS = 4
PACE = 0.08  # seconds between a client's creations: about 50 a second in all
PODS = "/api/v1/namespaces/whook/pods?labelSelector=app.kubernetes.io/name=whook"
TEAM_LABEL, TEAM = "example.com/team", "shop"  # what manifests/40-configmap.yaml sets
TICKS = os.sysconf("SC_CLK_TCK")
STUCK = 15.0  # seconds of processor time after which a C call has ended the process
BROKEN = "def mutate(obj, request:\n"
# Uses the processor in C for ever, for pods of one name.
BURN = """\
from itertools import repeat


def validate(obj, request):
    if request.name == "burn":
        any(repeat(0))
"""

plane: controlplane.ControlPlane
one: node.Node
figures: list[str] = []


def setUpModule() -> None:
    global plane, one
    if reason := node.missing():
        raise unittest.SkipTest(reason)
    folder = Path(unittest.enterModuleContext(tempfile.TemporaryDirectory()))
    images = node.Images(folder)
    if reason := images.reason():
        raise unittest.SkipTest(reason)
    archives = [images.archive("localhost/pause:1")]
    archives += [images.build(target, image) for target, image in images_of_the_manifests()]
    unittest.enterModuleContext(controlplane.network_namespace())
    plane = unittest.enterModuleContext(controlplane.ControlPlane(apiserver=node.APISERVER))
    one = unittest.enterModuleContext(node.Node(plane))
    for archive in archives:
        one.load(archive)
    deploy()


def tearDownModule() -> None:
    print("\non the node:", *figures, sep="\n  ", file=sys.stderr)


def images_of_the_manifests() -> Iterator[tuple[str, str]]:
    for target, file in (("whook", "50-deployment.yaml"), ("certs", "renewal/60-cronjob.yaml")):
        (image,) = re.findall(r" image: (.*)", (TOP / "manifests" / file).read_text())
        yield target, image


def deploy() -> None:
    """As the README says, then failurePolicy Fail. The key is not of the type that the renewal
    asks for, so that its first run has something to do."""
    kubectl("apply -f manifests/")
    certs("--key-type=rsa-2048", "--cert-dir=")
    kubectl("label namespace default whook=enabled")
    kubectl("rollout status deployment/whook -n whook --timeout=300s")
    patch = '[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]'
    for kind in ("mutating", "validating"):
        kubectl(f"patch {kind}webhookconfiguration whook --type=json -p", patch)
    wait_for(lambda: create("first") == "", "the API server to call the pods", WITHIN)


# ---------------------------------------------------------------- what the tests do


def kubectl(line: str, *more: str) -> str:
    words = [word.replace("manifests/", f"{TOP}/manifests/") for word in line.split()]
    return plane.kubectl(*words, *more).stdout


def certs(*arguments: str) -> None:
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
    command = [sys.executable, str(TOP / "certs.py"), *arguments]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=WITHIN)


def connect() -> http.client.HTTPSConnection:
    """A connection of the administrator's."""
    context = ssl.create_default_context(cadata=plane.authority.pem.decode())
    context.load_cert_chain(plane.folder / "admin.crt", plane.folder / "admin.key")
    return http.client.HTTPSConnection("127.0.0.1", plane.port, timeout=30, context=context)


def ask(connection: http.client.HTTPSConnection, method: str, path: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    return json.loads(connection.getresponse().read())


def get(path: str) -> Any:
    with contextlib.closing(connect()) as connection:
        return ask(connection, "GET", path)


def new_pod(name: str, connection: http.client.HTTPSConnection | None = None) -> Any:
    """Create a pod that no scheduler takes; the API server's answer."""
    container = {"name": "main", "image": "busybox:1.36.1"}
    spec = {"schedulerName": "nobody", "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    with contextlib.ExitStack() as stack:
        connection = connection or stack.enter_context(contextlib.closing(connect()))
        return ask(connection, "POST", "/api/v1/namespaces/default/pods", pod)


def create(name: str, connection: http.client.HTTPSConnection | None = None) -> str:
    """Create a pod. Return the error, or "" if whook has mutated the pod."""
    answer = new_pod(name, connection)
    if answer["kind"] != "Pod":
        return str(answer["message"])
    team = answer["metadata"].get("labels", {}).get(TEAM_LABEL)
    return "" if team else "not mutated"


def roll_out(version: str, **changed: str) -> None:
    """Deploy the shipped policies and these, as docs/deploy-policies.md does."""
    text = (TOP / "docs/deploy-policies.md").read_text()
    commands = text.split("<!-- policies:set -->\n```sh\n")[1].split("```")[0]
    shipped = {path.stem: path.read_text() for path in (TOP / "policies").glob("*.py")}
    programs = f"{controlplane.binaries()}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "KUBECONFIG": str(plane.kubeconfig)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "policies").mkdir()
        for name, source in (shipped | changed).items():
            Path(folder, f"policies/{name}.py").write_text(source)
        command = ["bash", "-euo", "pipefail", "-c", commands.replace("=v2", f"={version}")]
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)


class Stream:
    """Creations by several clients at once, until the end of the block."""

    def __init__(self) -> None:
        self.created, self.failed = 0, list[str]()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Stream:
        self.start = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, client: int) -> None:
        with contextlib.closing(connect()) as connection:
            number = 0
            while not self.stop.wait(PACE):
                number += 1
                error = create(f"s-{id(self):x}-{client}-{number}", connection)
                self.created += not error
                if error:
                    self.failed.append(f"{time.monotonic() - self.start:.1f} s: {error}")


Pod = dict[str, Any]


def pods() -> list[Pod]:
    """whook's pods that are not about to go."""
    return [item for item in get(PODS)["items"] if "deletionTimestamp" not in item["metadata"]]


def now(pod: Pod | str) -> Pod:
    """The pod as it is now."""
    name = pod if isinstance(pod, str) else pod["metadata"]["name"]
    return get(f"/api/v1/namespaces/whook/pods/{name}")


def restarted(pod: Pod) -> bool:
    """Whether its container is another than then, and ready."""
    then, current = (p["status"]["containerStatuses"][0] for p in (pod, now(pod)))
    return current["restartCount"] > then["restartCount"] and is_ready(now(pod))


def is_ready(pod: Pod) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def steady(count: int = 2) -> list[Pod] | None:
    """whook's pods, if they are so many, all ready, and no other is left."""
    items = get(PODS)["items"]
    return items if len(items) == count and len([*filter(is_ready, pods())]) == count else None


def process_of(pod: Pod) -> int | None:
    """Return the process ID of whook in this pod, as the host sees it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = pod["metadata"]["uid"] in (folder / "cgroup").read_text()
            if ours and b"whook.py" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    return None


def policies_of(pod: Pod) -> str:
    """Return the name of the ConfigMap with its policies."""
    (name,) = (v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v)
    return str(name)


def table() -> str:
    """What `kubectl get pods` shows of whook's pods."""
    return kubectl("get pods -n whook -l app.kubernetes.io/name=whook")


def row(name: str) -> str:
    return next((line for line in table().splitlines() if line.startswith(name)), "")


def processor_time(process: int) -> float | None:
    """Return the seconds of CPU time that it has used, or None if it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return (int(fields[11]) + int(fields[12])) / TICKS
    return None


def fields_of(process: int) -> dict[str, str]:
    text = Path(f"/proc/{process}/status").read_text()
    return {key: value.strip() for key, value in re.findall(r"(\w+):(.*)", text)}


def working_set(process: int) -> int:
    """The memory of its container, as `kubectl top` tells it."""
    lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    paths = dict(line.split(":", 2)[1:] for line in lines)
    if "memory" in paths:
        folder, usage, cache = f"memory{paths['memory']}", "usage_in_bytes", "total_inactive_file"
    else:
        folder, usage, cache = paths[""].lstrip("/"), "current", "inactive_file"
    statistics = dict(
        re.findall(r"(\w+) (\d+)", (node.CGROUPS / folder / "memory.stat").read_text())
    )
    return int((node.CGROUPS / folder / f"memory.{usage}").read_text()) - int(statistics[cache])


def seconds_since_start(process: int) -> float:
    started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / TICKS


def metrics(pod: Pod) -> str:
    connection = http.client.HTTPConnection(pod["status"]["podIP"], 8080, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def reviews(pod: Pod) -> int:
    return sum(map(int, re.findall(r"(?m)^whook_reviews_total\{.*\} (\d+)", metrics(pod))))


def served(pod: Pod) -> str:
    """The certificate that it shows."""
    return ssl.get_server_certificate((pod["status"]["podIP"], 8443))


def measured(what: str, condition: Callable[[], object], seconds: float = WITHIN) -> Any:
    """Wait for the condition, and note the time."""
    start = time.monotonic()
    value = wait_for(condition, what, seconds)
    figures.append(f"{what}: {time.monotonic() - start:.1f} s")
    return value


# ---------------------------------------------------------------- the tests


class NodeTest(unittest.TestCase):
    def setUp(self) -> None:
        self.before = wait_for(steady, "two pods of whook", WITHIN)

    @contextlib.contextmanager
    def stream(self, lost: int = 0) -> Iterator[Stream]:
        """No creation in the block fails, or up to so many."""
        with Stream() as stream:
            wait_for(lambda: stream.created > 20, "creations", WITHIN)
            yield stream
            now = stream.created
            wait_for(lambda: stream.created > now + 20, "creations", WITHIN)
        self.assertLessEqual(len(stream.failed), lost, stream.failed[:5])
        rate = stream.created / (time.monotonic() - stream.start)
        test = self.id().rpartition(".")[2]
        failed = f"{len(stream.failed)} failed"
        figures.append(f"{test}: {stream.created} creations, {rate:.0f} a second, {failed}")

    def test_restricted(self) -> None:
        """What the kernel says of the process, and what the namespace refuses."""
        process = process_of(self.before[0])
        found = fields_of(process)
        expected = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapBnd": "0" * 16}
        self.assertEqual({key: found[key] for key in expected}, expected)
        self.assertEqual(set(found["Uid"].split() + found["Gid"].split()), {"65532"})
        self.assertNotEqual(found["NSpid"].split()[-1], "1")  # of the pod: it has one namespace
        mounts = Path(f"/proc/{process}/mounts").read_text()
        self.assertRegex(mounts, r"(?m)^overlay / overlay ro,")
        root = ("run", "root", "-nwhook", "--image=x:1", "--dry-run=server")
        refused = plane.kubectl(*root, check=False).stderr
        self.assertIn('violates PodSecurity "restricted:v1.36"', refused)
        figures.append(f"memory at rest: {working_set(process) / 2**20:.0f} MiB")

    def test_rolling_restart(self) -> None:
        with self.stream():
            kubectl("rollout restart deployment/whook -n whook")
            measured("rolling restart until the new pods serve", self.all_new)
        measured("and until the old pods are gone", lambda: steady() and self.all_new())

    def all_new(self) -> bool:
        return len(self.others()) == 2 == len([*filter(is_ready, pods())])

    def test_forced_deletion(self) -> None:
        name = self.before[0]["metadata"]["name"]
        with self.stream():
            kubectl(f"delete pod {name} -n whook --force --grace-period=0")
            (new,) = wait_for(self.others, "a pod in its place", WITHIN)
            process = wait_for(lambda: process_of(new), "its process", WITHIN)
            wait_for(lambda: is_ready(now(new)), "it to be ready", WITHIN)
            figures.append(f"process start to Ready: {seconds_since_start(process):.2f} s")

    def others(self) -> list[Pod]:
        old = {pod["metadata"]["name"] for pod in self.before}
        return [pod for pod in pods() if pod["metadata"]["name"] not in old]

    def test_killed_process(self) -> None:
        """It costs each client what was in flight, and perhaps one that finds the port closed: the
        API server then keeps to the connections that it has."""
        pod = self.before[0]
        with self.stream(lost=2 * CLIENTS):
            os.kill(process_of(pod), signal.SIGKILL)
            measured("process killed until it is ready again", lambda: restarted(pod))

    def test_hung_process(self) -> None:
        """Readiness takes it out of the Service, liveness restarts it."""
        pod = self.before[0]
        os.kill(process_of(pod), signal.SIGSTOP)
        measured("process stopped until not ready", lambda: not is_ready(now(pod)))
        measured("and from there until restarted and ready", lambda: restarted(pod), 90)

    def test_added_replica(self) -> None:
        with self.stream():
            kubectl("scale deployment/whook -n whook --replicas=3")
            (new,) = wait_for(self.others, "a third pod", WITHIN)
            wait_for(lambda: is_ready(now(new)), "it to be ready", WITHIN)
            measured("added replica until it has a fifth of the reviews", lambda: self.fifth(new))
        kubectl("scale deployment/whook -n whook --replicas=2")

    def fifth(self, new: Pod) -> bool:
        """Of the reviews in the next seconds."""
        before = {pod["metadata"]["name"]: reviews(pod) for pod in pods()}
        time.sleep(5)  # what is counted
        done = {name: reviews(now(name)) - count for name, count in before.items()}
        return done[new["metadata"]["name"]] > sum(done.values()) / 5

    def test_changed_policies(self) -> None:
        """A good change, a broken one, and the way back from that: no creation fails."""
        self.addCleanup(self.restore)
        label = (TOP / "policies/team-label.py").read_text()
        with self.stream():
            roll_out("good", **{"team-label": label.replace('"shop"', '"books"')})
            shown = kubectl("rollout status deployment/whook -n whook --timeout=180s")
            lines = [self.on_page(words) for words in ("pending termination", "successfully")]
            self.assertEqual([line for line in shown.splitlines() if line in lines][-2:], lines)
            self.assertIn(self.on_page("1 out of 2 new"), shown)
            measured("changed policies until only the new pods are left", self.settled)
            team = new_pod("changed")["metadata"]["labels"][TEAM_LABEL]
            self.assertEqual(team, "books")
            good = pods()
            roll_out("broken", broken=BROKEN)
            self.see_the_broken_pod(good)
            self.lose_an_old_pod(good)
            kubectl("rollout undo deployment/whook -n whook")
            kubectl("rollout status deployment/whook -n whook --timeout=180s")
            measured("rollout undo until the broken pod is gone", self.settled)
        self.assertEqual({policies_of(pod) for pod in pods()}, {"whook-policies-good"})

    def restore(self) -> None:
        """Go back to the policies of the manifests."""
        kubectl("apply -f manifests/50-deployment.yaml")
        kubectl("rollout status deployment/whook -n whook --timeout=180s")
        wait_for(self.settled, "the old pods to be gone", WITHIN)

    def settled(self) -> bool:
        """Return True if there are two ready pods with the same policies, and no others."""
        return len({policies_of(pod) for pod in steady() or []}) == 1

    def see_the_broken_pod(self, good: list[Pod]) -> None:
        """It is what the page shows, and the good pods are as they were."""
        names = {pod["metadata"]["name"] for pod in good}
        (new,) = wait_for(
            lambda: [pod for pod in pods() if pod["metadata"]["name"] not in names],
            "a pod with the broken policies",
            WITHIN,
        )
        name = new["metadata"]["name"]
        measured("a broken policy until CrashLoopBackOff", lambda: "CrashLoopBackOff" in row(name))
        self.assertIn(self.on_page("broken.py does not load"), kubectl(f"logs {name} -n whook"))
        status = "rollout status deployment/whook -n whook"
        kubectl("patch deployment whook -n whook -p", '{"spec": {"progressDeadlineSeconds": 5}}')
        shown = plane.kubectl(*status.split(), check=False)
        kubectl("patch deployment whook -n whook -p", '{"spec": {"progressDeadlineSeconds": 300}}')
        self.assertEqual(shown.returncode, 1)
        self.assertEqual(shown.stderr.strip(), self.on_page("progress deadline"))
        self.assertFalse(is_ready(now(name)))
        self.assertEqual([is_ready(now(pod)) for pod in good], [True, True])
        figures.append("\n    ".join(["the broken rollout:", *table().splitlines()]))

    def lose_an_old_pod(self, good: list[Pod]) -> None:
        """The pod in its place has the good policies."""
        name = good[0]["metadata"]["name"]
        kubectl(f"delete pod {name} -n whook --force --grace-period=0")
        wait_for(lambda: len([*filter(is_ready, pods())]) == 2, "a second good pod", WITHIN)

    @staticmethod
    def on_page(words: str) -> str:
        """Return the line that docs/deploy-policies.md shows with these words."""
        lines = (TOP / "docs/deploy-policies.md").read_text().splitlines()
        (line,) = {line for line in lines if words in line and "`" not in line}
        return line

    def test_policy_that_burns_in_c(self) -> None:
        """The process ends by itself, and the log names the line of the policy."""
        self.addCleanup(self.restore)
        roll_out("burn", burn=BURN)
        kubectl("rollout status deployment/whook -n whook --timeout=180s")
        wait_for(self.settled, "the old pods to be gone", WITHIN)
        before = {pod["metadata"]["name"]: (pod, process_of(pod)) for pod in pods()}
        start = time.monotonic()
        clocks = {name: processor_time(process) for name, (_, process) in before.items()}
        caller = threading.Thread(target=new_pod, args=("burn",))
        caller.start()
        self.addCleanup(caller.join)
        ended: list[str] = []

        def one_has_ended() -> bool:
            for name, (_, process) in before.items():
                if (clock := processor_time(process)) is None:
                    ended.append(name)
                else:
                    used[name] = clock - clocks[name]
            return bool(ended)

        used = dict.fromkeys(before, 0.0)
        wait_for(one_has_ended, "the process to end", WITHIN)
        elapsed, (name, *others) = time.monotonic() - start, ended
        self.assertEqual(others, [])
        self.assertLess(used[name], STUCK)
        figures.append(
            f"a C call that burns CPU: the process ended after {elapsed:.1f} s,"
            f" {used[name]:.1f} s of CPU time"
        )
        measured("and until it is restarted and ready", lambda: restarted(before[name][0]))
        log = kubectl(f"logs {name} -n whook --previous")
        self.assertRegex(log, r'File "/policies/burn\.py", line 6 in validate')
        (other,) = {*before} - {name}
        counts = [now(n)["status"]["containerStatuses"][0]["restartCount"] for n in (name, other)]
        self.assertEqual(counts, [1, 0])

    def test_renewal(self) -> None:
        """The CronJob as shipped, whose run finds a key of another type than it makes."""
        old = {served(pod) for pod in self.before}
        kubectl("apply -f manifests/renewal/")
        with self.stream():
            kubectl("create job --from=cronjob/whook-certs now -n whook-renewal")
            measured(
                "renewal's job until both pods serve the new certificate",
                lambda: all(served(pod) not in old for pod in self.before),
            )
            path = "/apis/batch/v1/namespaces/whook-renewal/jobs/now"
            wait_for(lambda: get(path)["status"].get("succeeded"), "the job to succeed", WITHIN)
        log = kubectl("logs job/now -n whook-renewal")
        self.assertIn("the key is rsa-2048, not ecdsa-p256", log)


if __name__ == "__main__":
    unittest.main()
