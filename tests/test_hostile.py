"""Hostile clients and policies against a real whook: it stays up, bounded, and fair to others.

Each test holds the server to a finding of a security audit. Assertions are on counts, progress and
memory; where time is asserted, the limit is several times what an idle machine needs.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import http.client
import importlib.util
import itertools
import json
import os
import random
import selectors
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
import unittest
from pathlib import Path

import whook
from tests.attackers import (
    MIB,
    SMALL_VALUES,
    Background,
    Client,
    KeyUpdater,
    Probe,
    fill_buffers,
    is_closed,
    large_pod,
    memory,
    next_body,
    plain,
    pod,
    pod_of,
    read_answer,
    scrapes,
    secure,
    small_values,
    unchecked,
)
from tests.server import Stream, Whook, read_all, request_bytes, wait_for

LABEL = """
def mutate(obj, request):
    obj.setdefault("metadata", {}).setdefault("labels", {})["team"] = "shop"
"""
AUDIT = """
def validate(obj, request):
    request.audit("large", "x" * 3_000_000)
"""


@unittest.skipUnless(importlib.util.find_spec("cryptography"), "needs cryptography")
class KeyUpdates(unittest.TestCase):
    """H1: OpenSSL processes any number of KeyUpdate records in one call."""

    def attack(self, clients: int, count: int) -> None:
        with Whook(policies={"label": LABEL}) as server, contextlib.ExitStack() as stack:
            attackers = [stack.enter_context(KeyUpdater(server)) for _ in range(clients)]
            floods = [each.key_updates(count) + each.review() for each in attackers]
            with Stream(server) as stream, Probe(server) as probe:
                answered, probed = stream.answered, len(probe.statuses)
                for each, flood in zip(attackers, floods, strict=True):
                    send = functools.partial(each.socket.sendall, flood)
                    threading.Thread(target=send, daemon=True).start()
                statuses = [attackers[0].status()]  # all that it has sent was processed
                answered, probed = stream.answered - answered, len(probe.statuses) - probed
                statuses += [each.status() for each in attackers[1:]]
            self.assertEqual(set(statuses), {400})
            self.assertEqual((stream.failures, set(probe.statuses)), ([], {200}))
            self.assertGreater(answered, 20)
            self.assertGreater(probed, 2)

    def test_two_connections(self):
        self.attack(2, 60_000)

    def test_eight_connections(self):
        self.attack(8, 15_000)

    def test_answers_that_the_client_does_not_read(self):
        with Whook(policies={"label": LABEL}) as server:
            attacker = self.enterContext(KeyUpdater(server, receive_buffer=4096))
            flood = attacker.key_updates(60_000, answer=1)
            before = memory(server)
            attacker.socket.settimeout(3)
            with Stream(server) as stream, contextlib.suppress(TimeoutError):
                attacker.socket.sendall(flood)
            self.assertEqual(stream.failures, [])
            self.assertLess(memory(server) - before, 20 * MIB)

    def test_a_slow_step_starves_no_other_socket(self):
        """On a busy machine a step takes longer than its slice; the next turn begins elsewhere."""
        loop, turns = whook.Loop(), itertools.count()
        slow = [SlowSocket(loop, 2 * whook.STEP_SLICE) for _ in range(3)]
        quick = SlowSocket(loop, 0)
        loop.run(lambda: next(turns) >= 40)
        for each in [*slow, quick]:
            self.assertGreater(each.steps, 2)
            each.close()


class SlowSocket:
    """Stands for a connection that always has something to read and whose step takes a while."""

    urgent, peer = False, ""
    server = types.SimpleNamespace(peers={"": 1})

    def __init__(self, loop, seconds):
        self.pair, self.seconds, self.steps = socket.socketpair(), seconds, 0
        self.pair[1].send(b"x")
        loop.selector.register(self.pair[0], selectors.EVENT_READ, self)

    def step(self):
        self.steps += 1
        time.sleep(self.seconds)

    def close(self):
        for each in self.pair:
            each.close()


class SlowReaders(unittest.TestCase):
    """H2: answers that clients do not read, or have read."""

    REQUEST = request_bytes(path="/validate?timeout=10s")

    def setUp(self):
        self.server = self.enterContext(Whook(policies={"audit": AUDIT}))
        self.before = memory(self.server)
        self.stack = self.enterContext(contextlib.ExitStack())

    def open(self, receive_buffer=0):
        return self.stack.enter_context(secure(self.server, receive_buffer))

    def test_answers_that_nobody_reads(self):
        for attempts in (1, 2):  # the second must find the memory of the first
            for _ in range(80):
                self.open(receive_buffer=4096).sendall(self.REQUEST)
            reviews = functools.partial(self.server.metric, "whook_reviews_total")
            wait_for(lambda c=reviews, n=80 * attempts: c() >= n, "the reviews")
            self.assertLess(memory(self.server, "VmHWM") - self.before, 200 * MIB)
            self.stack.close()
            connections = functools.partial(self.server.metric, "whook_connections")
            wait_for(lambda c=connections: c() == 0, "the connections to end")
            self.assertEqual(self.server.metric("whook_buffered_bytes"), 0)

    def test_answers_that_are_read_in_part(self):
        """What an answer keeps in memory is counted until it is released."""
        larger = AUDIT.replace("3_000_000", "7_000_000")
        long = "whook.TIMEOUTS['writing'] = 100"
        with Whook(policies={"audit": larger}, patches=long) as server:
            before = memory(server)
            for _ in range(40):
                client = self.stack.enter_context(secure(server, 65536))
                client.sendall(self.REQUEST)
                left = 3_000_000
                while left > 0 and (data := client.recv(65536)):
                    left -= len(data)
            counted = server.metric("whook_buffered_bytes")
            self.assertLess(memory(server) - before - counted, 100 * MIB)

    def test_idle_connections_hold_no_old_answer(self):
        for _ in range(60):
            client = self.open()
            client.sendall(self.REQUEST)
            self.assertEqual(read_answer(client)[0], 200)
        self.assertEqual(self.server.metric("whook_buffered_bytes"), 0)
        self.assertEqual(self.server.metric("whook_connections"), 60)
        self.assertLess(memory(self.server) - self.before, 60 * MIB)

    def test_a_slow_reader_gets_its_whole_answer(self):
        client = self.open(receive_buffer=4096)
        client.sendall(self.REQUEST)
        with Stream(self.server) as stream:
            stream.wait_for_more()
            status, body = read_answer(client)
        self.assertEqual((status, stream.failures), (200, []))
        self.assertGreater(len(body), 3_000_000)


class HealthPort(unittest.TestCase):
    """H3: the health port and the admission port do not hinder each other."""

    def test_a_flood_of_scrapes(self):
        costly = {f"label{number}": LABEL for number in range(60)}  # for their series
        with Whook(policies=costly) as server, Stream(server) as stream:
            with scrapes(server):
                stream.wait_for_more(60)
            self.assertEqual(stream.failures, [])

    def test_bodies_on_the_health_port(self):
        part = request_bytes(b"x" * 7_000_000, "/livez")[:6_900_000]
        with Whook(policies={"label": LABEL}) as server, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(plain(server.health_port)) for _ in range(10)]
            for client in clients:
                with contextlib.suppress(OSError):  # the server closes it after a while
                    client.sendall(part)
            with Stream(server) as stream:
                stream.wait_for_more()
            self.assertEqual(stream.failures, [])
            for client in clients:
                client.settimeout(10)
                self.assertEqual(client.recv(13), b"HTTP/1.1 413 ")

    def test_full_buffers_of_the_admission_port(self):
        with Whook(policies={"label": LABEL}) as server, contextlib.ExitStack() as stack:
            fill_buffers(server, stack)
            answers = [server.get(path)[0] for path in ("/livez", "/readyz", "/metrics") * 10]
            self.assertEqual(set(answers), {200})

    def test_no_file_descriptor_is_left(self):
        limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))"
        for flags in ([], ["--reload"]):
            with self.subTest(flags), Whook(*flags, policies={"a": LABEL}, patches=limit) as server:
                with contextlib.ExitStack() as stack:
                    for port in [server.health_port] * 50 + [server.port] * 30:
                        stack.enter_context(plain(port)).send(b"G")
                    time.sleep(3 * whook.TICK)  # files are read in a tick, and there is no sign
                    self.assertIsNone(server.process.poll())
                self.assertEqual(wait_for(lambda s=server: s.get("/livez")[0], "health"), 200)
                self.assertEqual(server.post()[0], 200)

    def test_requests_for_health_do_not_keep_a_drain_from_ending(self):
        with Whook(grace=2) as server, scrapes(server):
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(20), 0)

    def test_the_grace_period_is_a_bound(self):
        """Clients that keep sending reviews on new connections do not keep a drain from ending."""
        with Whook(policies={"label": LABEL}, grace=2) as server:
            with Background(*[server.post] * 4):
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(20), 0)


class AfterCloseNotify(unittest.TestCase):
    """A client that has closed its side of TLS, and goes on to send."""

    def test_what_follows_is_discarded(self):
        with Whook() as server:
            before = memory(server)
            with secure(server) as client:
                raw = socket.socket(fileno=os.dup(client.fileno()))
                with contextlib.suppress(ssl.SSLError, TimeoutError):
                    client.settimeout(1)
                    client.unwrap()
                with raw, contextlib.suppress(OSError):
                    raw.settimeout(20)
                    for _ in range(100):
                        raw.sendall(b"x" * 1_000_000)
                self.assertEqual(server.get("/livez")[0], 200)
                self.assertLess(memory(server) - before, 30 * 2**20)

    def test_a_large_handshake_is_refused(self):
        with Whook() as server, plain(server.port) as client:
            hello = b"\x01" + (100_000).to_bytes(3, "big") + b"\x03\x03" + bytes(99_998)
            records = [hello[start : start + 16_000] for start in range(0, len(hello), 16_000)]
            with contextlib.suppress(OSError):
                for each in records:
                    client.sendall(b"\x16\x03\x01" + len(each).to_bytes(2, "big") + each)
            wait_for(lambda: is_closed(client), "the connection to be closed")
            wait_for(lambda: server.metric("whook_refusals_total", "connection"), "the refusal")


class FairPeers(unittest.TestCase):
    """Clients of one address take turns with those of others."""

    def test_peers_take_turns(self):
        queue = whook.FairQueue()
        for peer in "aaaabbc":
            queue.append(types.SimpleNamespace(peer=peer))
        self.assertEqual(len(queue), 7)
        self.assertEqual("".join(queue.popleft().peer for _ in range(7)), "abcabaa")
        self.assertEqual(len(queue), 0)

    def test_the_peer_with_the_most_connections_is_evicted(self):
        server, closed = object.__new__(whook.Server), []
        server.states = {state: {} for state in whook.TIMEOUTS}
        server.max_connections = 7
        server.peers = collections.Counter("ab" + "c" * 5)
        for number, peer in enumerate("ab" + "c" * 5):
            state = "idle" if peer == "c" else "handshake"
            connection = FakeConnection(server, state, "older", closed)
            connection.peer, connection.since, connection.age = peer, number, peer
            server.states[state][connection] = None
        for _ in range(4):
            server.evict()
        self.assertEqual([peer for _, peer in closed], ["c"] * 4)

    def test_idle_connections_of_one_client_do_not_lock_out_another(self):
        """A client fills all places with idle connections; another one connects many times."""
        with Whook("--max-connections=40") as server, contextlib.ExitStack() as stack:
            for _ in range(40):
                client = stack.enter_context(server.connect())
                client.sendall(request_bytes())
                self.assertEqual(read_answer(client)[0], 200)
            answers = []
            for _ in range(30):
                raw = socket.create_connection(("127.0.0.1", server.port), 20, ("127.0.0.2", 0))
                client = server.trust().wrap_socket(raw, server_hostname="localhost")
                answers.append(stack.enter_context(client))
            for client in answers[:20]:
                client.sendall(request_bytes())
                self.assertEqual(read_answer(client)[0], 200)


class FullServer(unittest.TestCase):
    """M1: when all places are taken, a newcomer gets one, and buffers that are full are freed."""

    ORDER = ("lingering", "handshake", "new", "head", "body", "idle", "writing")

    def test_the_order_of_eviction(self):
        server, closed = object.__new__(whook.Server), []
        server.peers, server.max_connections = collections.Counter(), 1000
        server.states = {state: {} for state in whook.TIMEOUTS}
        for state in (*reversed(self.ORDER), "waiting"):
            for age in ("older", "newer"):
                server.states[state][FakeConnection(server, state, age, closed)] = None
        while server.evict():
            pass
        requests = self.ORDER[1:5]  # handshake, new, head, body: the oldest of them all comes first
        expected = [("lingering", "older"), ("lingering", "newer")]
        expected += [(state, age) for age in ("older", "newer") for state in requests]
        expected += [(s, age) for s in ("idle", "writing") for age in ("older", "newer")]
        self.assertEqual(closed, expected)
        self.assertEqual(len(server.states["waiting"]), 2)

    def test_newcomers_are_served(self):
        long = "for state in whook.TIMEOUTS: whook.TIMEOUTS[state] = 100"
        with (
            Whook("--max-connections=6", policies={"audit": AUDIT}, patches=long) as server,
            contextlib.ExitStack() as stack,
        ):
            open_one = functools.partial(secure, server)
            clients = {"writing": stack.enter_context(open_one(4096))}
            clients["writing"].sendall(request_bytes(path="/validate"))
            for state in ("idle", "body", "head", "new"):  # others would be closed by each of these
                clients[state] = stack.enter_context(open_one())
            clients["handshake"] = stack.enter_context(plain(server.port))
            clients["idle"].sendall(request_bytes())
            self.assertEqual(read_answer(clients["idle"])[0], 200)
            clients["body"].sendall(request_bytes()[:-9])
            clients["head"].sendall(request_bytes()[:9])
            wait_for(lambda: server.metric("whook_reviews_total") == 2, "both reviews")
            time.sleep(whook.TICK)  # until the parts of requests have arrived
            for states in (("handshake", "new", "head", "body"), ("idle",)):
                for _ in states:
                    newcomer = stack.enter_context(open_one())
                    newcomer.sendall(request_bytes())
                    self.assertEqual(read_answer(newcomer)[0], 200)
                for state in states:
                    wait_for(lambda s=state: is_closed(clients[s]), f"{state} to be closed")
                    del clients[state]
                others = [other for other in clients if other != "writing"]
                self.assertFalse(any(is_closed(clients[other]) for other in others))
            clients["writing"].settimeout(20)
            self.assertEqual(read_answer(clients["writing"])[0], 200)

    def flood(self, attack, expected) -> None:
        """Run an attack on 50 places, beside a client that is idle and clients that are new."""
        with Whook("--max-connections=50", policies={"label": LABEL}) as server:
            with contextlib.ExitStack() as stack:
                idle = stack.enter_context(server.client())
                self.assertEqual(server.post(connection=idle)[0], 200)
                flood = stack.enter_context(Background(functools.partial(attack, server)))
                wait_for(lambda: flood.calls[0] > 100, "the flood")
                served = 0
                for _ in range(30):
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        served += server.post()[0] == 200
                wait_for(lambda: flood.calls[0] > 300, "the flood", 60)
                self.assertEqual(server.post(connection=idle)[0], 200)
            self.assertGreaterEqual(served, expected)
            wait_for(lambda: server.post()[0] == 200, "a review after the flood")

    def test_a_flood_of_half_bodies(self):
        clients = collections.deque(maxlen=100)  # older ones are closed

        def attack(server):
            clients.append(secure(server))
            clients[-1].sendall(request_bytes()[:-100])

        self.flood(attack, expected=29)

    def test_a_flood_of_client_hellos(self):
        clients, outgoing = collections.deque(maxlen=100), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            unchecked().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
        hello = outgoing.read()

        def attack(server):
            clients.append(plain(server.port))
            clients[-1].sendall(hello)

        self.flood(attack, expected=20)

    def test_unfinished_bodies_refuse_no_small_review(self):
        with Whook(policies={"label": LABEL}) as server, contextlib.ExitStack() as stack:
            clients = fill_buffers(server, stack)
            with Stream(server) as stream:
                stream.wait_for_more()
            self.assertEqual(stream.failures, [])
            clients[0].settimeout(10)
            answer = read_all(clients[0])
            self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
            self.assertIn(b"Retry-After: 1\r\n", answer)

    def test_complete_large_bodies_refuse_no_small_review(self):
        """Clients that keep the buffers full with whole reviews must not shut out small ones."""
        body = large_pod(5 * MIB)
        body = body[:-1] + b" " * (7 * MIB - len(body)) + body[-1:]
        with Whook(policies={"label": LABEL}) as server:
            send = functools.partial(server.post, body)
            with Background(*[send] * 10) as large, Stream(server, keep_alive=2) as stream:
                wait_for(lambda: sum(large.calls) > 10, "large reviews", 60)
            self.assertEqual(stream.failures, [])


class FakeConnection:
    """Stands for a connection in a state; it notes when it is closed."""

    peer = "client"

    def __init__(self, server, state, age, closed):
        self.server, self.state, self.age, self.closed = server, state, age, closed
        self.since = 0.0 if age == "older" else 1.0

    def close(self):
        del self.server.states[self.state][self]
        self.closed.append((self.state, self.age))


SLOW = """
import time
def validate(obj, request):
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
"""


STOP = """
import os, signal
stopped = []
def validate(obj, request):
    if not stopped:
        stopped.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)
"""


class Pauses(unittest.TestCase):
    """M4: SIGSTOP and SIGCONT, as by docker pause, a freezer or a migration."""

    PATCHES = (
        "whook.WATCHDOG = 2; whook.MAX_ALARMS = 10; whook.TIMEOUTS |= dict(body=2, head=2, idle=2)"
    )

    def pause(self, server, seconds=4):
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)

    def test_a_pause_under_load(self):
        with Whook(policies={"label": LABEL}, patches=self.PATCHES) as server:
            with secure(server) as half, Stream(server) as stream:
                half.sendall(request_bytes()[:-100])
                stream.wait_for_more()
                self.pause(server)
                half.sendall(request_bytes()[-100:])
                self.assertEqual(read_answer(half)[0], 200)
                stream.wait_for_more()
            self.assertIsNone(server.process.poll())
            # A review that was being evaluated has used up its time; no other one may fail.
            self.assertLessEqual(len(stream.failures), 1, stream.failures)

    def test_a_pause_within_a_policy(self):
        """The time limit of the review has passed long ago when the process goes on."""
        with Whook(policies={"stop": STOP}, patches=self.PATCHES) as server:
            answers = []
            with Background(lambda: answers.append(server.post(path="/validate?timeout=30s")[0])):
                wait_for(lambda: state_of(server) == "T", "the process to stop itself")
                time.sleep(3)
                server.process.send_signal(signal.SIGCONT)
                with contextlib.suppress(AssertionError):
                    wait_for(lambda: len(answers) > 2, "more reviews", 10)
            self.assertIsNone(server.process.poll(), server.log[-1])
            self.assertLessEqual(len([each for each in answers if each != 200]), 1)


def state_of(server: Whook) -> str:
    """Return the state of the process, as /proc names it."""
    return Path(f"/proc/{server.process.pid}/stat").read_text().split()[2]


class Watchdog(unittest.TestCase):
    """A call into C that uses the processor and never returns ends the process."""

    def test_in_a_policy(self):
        source = "import itertools\ndef mutate(obj, request):\n    any(itertools.repeat(0))\n"
        with Whook(policies={"stuck": source}, patches="whook.WATCHDOG = 1") as server:
            with self.assertRaises((OSError, http.client.HTTPException)):
                server.post()
            self.assert_ended(server, 'stuck.py", line 3 in mutate')

    def test_a_long_call_that_returns(self):
        """It is no hang: one interruption that comes late must not end the process."""
        source = (
            "import itertools\ndef mutate(obj, request):\n    any(itertools.repeat(0, 10**8))\n"
        )
        limits = "whook.TIME_LIMIT = 0.1; whook.MAX_ALARMS = 2"
        with Whook(policies={"long": source}, patches=limits) as server:
            self.assertEqual(server.post()[0], 500)
            self.assertEqual(server.get("/livez")[0], 200)

    def test_in_an_import(self):
        with Whook("--reload", policies={"a": LABEL}, patches="whook.WATCHDOG = 1") as server:
            server.write_policy("stuck", "import itertools\n\nany(itertools.repeat(0))\n")
            self.assert_ended(server, 'stuck.py", line 3 in <module>')

    def assert_ended(self, server, place):
        server.process.wait(30)
        server.collected.wait(5)
        self.assertTrue(server.logged(place), server.log)

    @unittest.skipUnless(shutil.which("unshare"), "needs unshare")
    def test_process_1_is_warned(self):
        with Whook() as server:
            options = [f"--tls-cert={server.cert}", f"--tls-key={server.key}", "--port=0"]
            command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable]
            process = subprocess.Popen(
                [*command, whook.__file__, *options, "--health-port=0", "--host=127.0.0.1"],
                stderr=subprocess.PIPE,
                text=True,
            )
            lines = list(
                itertools.takewhile(lambda line: " INFO ready" not in line, process.stderr)
            )
            process.kill()
            process.wait()
            process.stderr.close()
        if any("unshare" in line for line in lines):
            self.skipTest(lines[0])
        self.assertIn(" WARN watchdog ", "".join(lines))


EDIT_ALL = """
def mutate(obj, request):
    for key, items in obj["data"].items():
        obj["data"][key] = [0] * len(items)
"""
CHANGE = """
def mutate(obj, request):
    obj["data"].reverse()
    obj["data"].append("new")
"""
CHANGE_AND_COMPARE = CHANGE + "    assert request.object != obj\n"


COSTLY = """
import time
def mutate(obj, request):
    end = time.process_time() + len(obj["spec"]["containers"][0].get("env", ())) * 1e-5
    while time.process_time() < end:
        pass
"""


class LargeReviews(unittest.TestCase):
    """H6, M2, M5: what a user may send costs others little time, and memory within bounds."""

    def test_small_reviews_between_large_ones(self):
        with Whook(policies={"costly": COSTLY}) as server:
            body, statuses = large_pod(2_900_000), []

            def large():
                statuses.append(server.post(body, "/mutate?timeout=30s")[0])

            with Background(*[large] * 8) as attack, Probe(server) as probe:
                with Stream(server, keep_alive=6, fresh=0) as stream:
                    wait_for(lambda: len(statuses) > 24, "large reviews", 60)
            self.assertEqual((stream.failures, set(statuses), attack.errors), ([], {200}, []))
            self.assertEqual(set(probe.statuses), {200})
            kinds = ["large" if "object=large" in line else "" for line in server.logged("uid=")]
            runs = [len(list(run)) for kind, run in itertools.groupby(kinds[:-20]) if kind]
            self.assertLessEqual(max(runs), 2)  # of large ones, without a small one between them

    def test_a_patch_of_long_paths(self):
        body = pod(data={"k" * 60_000: [None] * 20_000})
        dicts = pod(data={"k" * 60_000: {str(i): None for i in range(20_000)}})
        edit = EDIT_ALL.replace("[0] * len(items)", "{k: 0 for k in items}")
        for source, content, expected in ((EDIT_ALL, body, (200, 500)), (edit, dicts, (500,))):
            with self.subTest(source), Whook(policies={"edit": source}) as server:
                self.assertIn(server.post(content)[0], expected)
                self.assertLess(memory(server, "VmHWM"), 300 * MIB)
                self.assertEqual(server.post(pod(data={}))[0], 200)

    def test_memory_for_seven_mebibytes_of_small_values(self):
        for name in SMALL_VALUES:
            body = small_values(name)
            for source in ("", CHANGE, CHANGE_AND_COMPARE):
                sources = {"change": source} if source else {"none": "def validate(o, r): pass"}
                with self.subTest(name, policy=source), Whook(policies=sources) as server:
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        server.post(body)
                    self.assertIsNone(server.process.poll())
                    self.assertLess(memory(server, "VmHWM"), 1000 * MIB)


class Clients(unittest.TestCase):
    """Clients that are slow, broken or many, on one server."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Whook("--reload", policies={"label": LABEL}))

    def setUp(self):
        self.stack = self.enterContext(contextlib.ExitStack())

    def open(self):
        return self.stack.enter_context(secure(self.server))

    def tearDown(self):
        self.assertEqual(self.server.post()[0], 200)
        self.assertEqual(self.server.logged("ERROR bug"), [])

    def connections(self):
        return self.server.metric("whook_connections")

    def test_lingering_clients_that_send_for_ever(self):
        clients = [self.open() for _ in range(8)]

        def send(client):
            with contextlib.suppress(ssl.SSLError, TimeoutError):
                socket.socket.send(client, b"x" * MIB)

        for client in clients:
            client.sendall(b"rubbish\r\n\r\n")
            self.assertEqual(read_answer(client)[0], 400)
        senders = [functools.partial(send, client) for client in clients]
        with Background(*senders) as attack, Stream(self.server) as stream:
            wait_for(lambda: len(attack.errors) > 30, "the connections to be closed", 30)
            stream.wait_for_more()
        self.assertEqual(stream.failures, [])

    def test_heads_that_arrive_by_the_byte(self):
        clients, request = [self.open() for _ in range(20)], request_bytes()
        end = request.index(b"\r\n\r\n") + 5
        with Stream(self.server) as stream:
            for index in range(end):
                for client in clients:
                    client.send(request[index : index + 1])
            for client in clients:
                client.sendall(request[end:])
                self.assertEqual(read_answer(client)[0], 200)
        self.assertEqual(stream.failures, [])

    def test_pipelined_requests_are_answered_in_order(self):
        for count in (2, 50):
            requests = [pod_of(f"uid-{number}") for number in range(count)]
            client = self.open()
            client.sendall(b"".join(map(request_bytes, requests)))
            file = client.makefile("rb")
            uids = [json.loads(next_body(file))["response"]["uid"] for _ in range(count)]
            self.assertEqual(uids, [f"uid-{number}" for number in range(count)])

    def test_the_last_byte_comes_with_the_next_request(self):
        one, two = request_bytes(pod_of("one")), request_bytes(pod_of("two"))
        client = self.open()
        for part in (one[:-1], one[-1:] + two[:-1], two[-1:]):
            client.sendall(part)
            time.sleep(0.05)
        file = client.makefile("rb")
        uids = [json.loads(next_body(file))["response"]["uid"] for _ in range(2)]
        self.assertEqual(uids, ["one", "two"])

    def test_a_handshake_that_arrives_by_the_byte(self):
        client = self.stack.enter_context(Client(self.server.port))
        client.piece = 1
        client.do(client.tls.do_handshake)
        client.do(client.tls.write, request_bytes())
        self.assertEqual(client.status(), 200)

    def test_a_client_that_closes_its_side(self):
        """It gets its answer after close_notify and after a FIN, as its request was complete."""
        for how in ("close_notify", "FIN"):
            client = self.stack.enter_context(Client(self.server.port))
            client.do(client.tls.do_handshake)
            client.tls.write(request_bytes())
            with contextlib.suppress(ssl.SSLError):
                if how == "close_notify":
                    client.tls.unwrap()
            client.flush()  # both in one packet
            if how == "FIN":
                client.socket.shutdown(socket.SHUT_WR)
            with self.subTest(how):
                self.assertEqual(client.status(), 200)

    def test_renegotiation_and_garbage(self):
        openssl = shutil.which("openssl")
        if openssl:
            address = f"127.0.0.1:{self.server.port}"
            command = [openssl, "s_client", "-connect", address, "-tls1_2", "-legacy_renegotiation"]
            subprocess.run(command, input=b"R\n" * 50, capture_output=True, timeout=30, check=False)
        with Stream(self.server) as stream:
            for size in (1, 5, 100, 20_000):
                for first in (
                    b"\x16\x03\x01\xff\xff",
                    b"\x17\x03\x03\x40\0",
                    b"GET / HTTP/1.1\r\n",
                ):
                    raw = self.stack.enter_context(plain(self.server.port))
                    raw.sendall((first + random.randbytes(size))[:size])
                    client = self.open()  # and garbage after the handshake
                    socket.socket.sendall(client, (first + random.randbytes(size))[:size])
            stream.wait_for_more()
        self.assertEqual(stream.failures, [])

    def test_evicted_connections_are_not_counted_as_errors(self):
        """A connection that is evicted in a turn in which it could be read is not read."""
        with Whook("--max-connections=3", policies={"slow": SLOW}) as server:
            clients = [self.stack.enter_context(secure(server)) for _ in range(3)]
            busy = clients.pop(0)
            busy.sendall(request_bytes(path="/validate"))
            time.sleep(0.1)  # while that is evaluated, the others become readable
            self.stack.enter_context(plain(server.port))
            self.stack.enter_context(plain(server.port))
            for client in clients:
                client.sendall(request_bytes()[:9])
            self.assertEqual(read_answer(busy)[0], 200)
            self.assertEqual(server.metric("whook_refusals_total", "connection"), 0)

    def test_a_thousand_idle_connections(self):
        before = memory(self.server)
        for _ in range(900):
            client = self.open()
            client.sendall(request_bytes())
        wait_for(lambda: self.connections() >= 900, "the connections")
        self.assertLess(memory(self.server) - before, 900 * 100 * 1024)
        with Stream(self.server) as stream:
            stream.wait_for_more()
        self.assertEqual(stream.failures, [])
        self.stack.close()
        wait_for(lambda: self.connections() == 0, "the connections to end")


HANG = "while True: pass"
VALUE = """
class Value:
    def {method}(self, *arguments):
        {body}
def mutate(obj, request):
    obj["{field}"] = {value}
"""


class BadPolicies(unittest.TestCase):
    """H4, L4 and L5: policies that leave odd values, and modules that odd code looks into."""

    def test_values_that_are_not_json(self):
        names = ("__eq__", "__repr__", "__str__", "__hash__", "__bool__", "__len__", "__getattr__")
        cases = [(name, body) for name in names for body in ("1 / 0", HANG)]
        cases.append(("__del__", "1 / 0"))
        sources = {}
        for number, (method, body) in enumerate(cases):
            fill = functools.partial(VALUE.format, method=method, body=body)
            sources[f"value{number}"] = fill(field="x", value="Value()")
            sources[f"key{number}"] = fill(field="x", value="{Value(): 1}")
            sources[f"deep{number}"] = fill(field="spec", value='[{"a": [1, Value()]}]')
        with Whook(policies=sources, patches="whook.WATCHDOG = 3") as server:
            for number, case in enumerate(cases):
                for kind in ("value", "key", "deep"):
                    with self.subTest(case, kind=kind):
                        status, answer = server.post(path=f"/mutate/{kind}{number}")
                        expected = f'policy "{kind}{number}" failed: '
                        self.assertEqual(
                            (status, answer["message"][: len(expected)]), (500, expected)
                        )
                        self.assertEqual(server.get("/livez")[0], 200)

    def test_a_finalizer_that_hangs(self):
        source = VALUE.format(method="__del__", body=HANG, field="x", value="Value()")
        with Whook(policies={"a": source}, patches="whook.WATCHDOG = 3") as server:
            self.assertEqual(server.post()[0], 500)
            self.assertEqual(server.get("/livez")[0], 200)

    def test_modules_that_raise(self):
        modules = {
            "__getattr__": "def __getattr__(name): raise RuntimeError",
            "__bool__": "class F:\n def __bool__(self): raise RuntimeError\n"
            " def __call__(self, obj, request): pass\nvalidate = F()",
            "__signature__": "class F:\n @property\n def __signature__(self): raise SystemExit\n"
            " def __call__(self, obj, request): pass\nvalidate = F()",
            "__eq__": "class F:\n def __eq__(self, other): raise RuntimeError\nmutate = F()",
            "exit": "raise SystemExit",
            "hang": HANG,
        }
        with Whook("--reload", policies={"a": LABEL}) as server:
            for name, source in modules.items():
                with self.subTest(name):
                    count = len(server.logged("reload"))
                    server.write_policy("b", source)
                    wait_for(lambda n=count: len(server.logged("reload")) > n, "a reload")
                    status, answer = server.post()
                    self.assertEqual(status, 200)
                    self.assertIn("patch", answer["response"])
            server.write_policy("b", LABEL)
            wait_for(lambda: server.metric("whook_reload_failing", "policies") == 0, "a recovery")


class Drain(unittest.TestCase):
    """SIGTERM loses no review while the grace period lasts."""

    def test_under_load(self):
        with Whook(policies={"label": LABEL}, grace=30, patches="whook.SETTLE_TIME = 2") as server:
            with Stream(server, keep_alive=4, fresh=2) as stream:
                server.process.send_signal(signal.SIGTERM)
                server.wait_for_log("drain")
                stream.wait_for_more(200)
            self.assertEqual(stream.failures, [])
            self.assertEqual(server.process.wait(20), 0)

    def test_half_requests_at_the_end(self):
        """What was received before the end of the grace period is answered."""
        with Whook(policies={"slow": SLOW}, grace=0) as server:
            clients = [self.enterContext(secure(server)) for _ in range(4)]
            for client in clients:
                client.sendall(request_bytes(path="/validate?timeout=10s"))
            wait_for(lambda: server.metric("whook_buffered_bytes") > 0, "the requests")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual([read_answer(client)[0] for client in clients], [200] * 4)
            self.assertEqual(server.process.wait(20), 0)


if __name__ == "__main__":
    unittest.main()
