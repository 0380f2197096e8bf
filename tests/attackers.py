"""Hostile clients for test_hostile.py, and what they send."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import whook
from tests.server import POD, Whook, request_bytes

with contextlib.suppress(ImportError):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIB = 1024 * 1024


def pod(**fields) -> bytes:
    """Return a review of the pod with other top-level fields in it."""
    review = json.loads(POD)
    review["request"]["object"] |= fields
    return json.dumps(review).encode()


def large_pod(size: int) -> bytes:
    """Return a review of a pod with so many bytes of environment variables."""
    review = json.loads(POD)
    review["request"] |= {"name": "large", "namespace": ""}
    container = review["request"]["object"]["spec"]["containers"][0]
    count = size // 100
    container["env"] = [{"name": f"VARIABLE_{i:06}", "value": "v" * 50} for i in range(count)]
    return json.dumps(review).encode()


def pod_of(uid: str) -> bytes:
    """Return a small review with this uid."""
    review = json.loads(POD)
    review["request"]["uid"] = uid
    return json.dumps(review).encode()


SMALL_VALUES = {
    "lists": "[]", "objects": "{}", "zeros": "0", "strings": '"ab"', "floats": "1.5",
    "nested": "[[[[[[[[]]]]]]]]", "keys": '{"a":0}', "emoji": '"\N{GRINNING FACE}"',
}  # fmt: skip


def small_values(name: str) -> bytes:
    """Return a review of almost 7 MiB whose object holds a list of one small value."""
    item = SMALL_VALUES[name].encode()
    count = (7 * MIB - 10_000) // (len(item) + 1)
    if name in ("lists", "objects", "nested", "keys"):
        count = min(count, whook.MAX_CONTAINERS // item.count(item[:1]) - 1000)
    head, tail = pod(data=["here"]).split(b'"here"')
    return head + b",".join([item] * count) + tail


def memory(server: Whook, field: str = "VmRSS") -> int:
    """Return the resident memory of a server in bytes; "VmHWM" is the most it ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def plain(port: int, receive_buffer: int = 0) -> socket.socket:
    """Return a TCP connection, with a small receive buffer if wanted."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(20)
    client.connect(("127.0.0.1", port))
    return client


def secure(server: Whook, receive_buffer: int = 0) -> ssl.SSLSocket:
    """Return a TLS connection that checks nothing, so that many are cheap."""
    return unchecked().wrap_socket(plain(server.port, receive_buffer))


def unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    """Return the status and the body of one response on a connection that stays open."""
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def is_closed(client: socket.socket) -> bool:
    """Return True if the server has closed the connection."""
    client.settimeout(0)
    try:
        return socket.socket.recv(client, 65536) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def next_body(file) -> bytes:
    """Return the body of the next of several responses in a file."""
    length = 0
    while (line := file.readline()) != b"\r\n":
        if not line:
            raise ConnectionError("the connection was closed")
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return file.read(length)


class Background:
    """Runs functions in threads until the block ends; each is called again and again."""

    def __init__(self, *functions):
        self.stop, self.calls = threading.Event(), [0] * len(functions)
        self.errors = []
        self.threads = [
            threading.Thread(target=self._run, args=(index, function), daemon=True)
            for index, function in enumerate(functions)
        ]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def _run(self, index, function):
        while not self.stop.is_set():
            try:
                function()
                self.calls[index] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.errors.append(error)
                time.sleep(0.01)


class Probe(Background):
    """Asks for a health path on fresh connections, as the kubelet does, and notes the answers."""

    def __init__(self, server: Whook, path: str = "/readyz"):
        self.server, self.path, self.statuses, self.slowest = server, path, [], 0.0
        super().__init__(self._ask)

    def _ask(self):
        start = time.monotonic()
        self.statuses.append(self.server.get(self.path)[0])
        self.slowest = max(self.slowest, time.monotonic() - start)
        time.sleep(0.05)


class Client:
    """A TLS client whose records this program sends by itself."""

    def __init__(self, port: int, receive_buffer: int = 0, key_log: Path | None = None):
        self.socket = plain(port, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        context = unchecked()
        if key_log:
            context.keylog_filename = str(key_log)
        self.piece = 2**30  # bytes that are sent at a time
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def do(self, call, *arguments):
        """Return the result of a call to ssl, when all that it needs is sent and received."""
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                if not (data := self.socket.recv(65536)):
                    raise ConnectionResetError from None
                self.incoming.write(data)
            finally:
                self.flush()

    def flush(self):
        while data := self.outgoing.read(self.piece):
            self.socket.sendall(data)

    def status(self) -> int:
        """Return the status of the next response."""
        return int(self.do(self.tls.read, 16384).split()[1])


class KeyUpdater(Client):
    """A TLS 1.3 client that sends KeyUpdate messages (RFC 8446, 4.6.3).

    Python's ssl can't send them, so the records are made here, with keys that are derived from the
    secret that ssl writes into the key log."""

    def __init__(self, server: Whook, receive_buffer: int = 0):
        key_log = server.folder / f"keys-{id(self)}"
        super().__init__(server.port, receive_buffer, key_log)
        self.do(self.tls.do_handshake)
        lines = [line.split() for line in key_log.read_text().splitlines()]
        secret = next(line[2] for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")
        self.secret = bytes.fromhex(secret)
        suite = self.tls.cipher()[0]
        self.hash = "sha384" if suite.endswith("384") else "sha256"
        self.key_size = 32 if "256_GCM" in suite else 16

    def expand(self, label: str, size: int) -> bytes:
        """Return HKDF-Expand-Label of the present secret."""
        name = b"tls13 " + label.encode()
        info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0\1"
        return hmac.digest(self.secret, info, self.hash)[:size]

    def record(self, content: bytes, kind: int) -> bytes:
        """Return the first record that is encrypted with the present secret."""
        header = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        cipher = AESGCM(self.expand("key", self.key_size))
        return header + cipher.encrypt(self.expand("iv", 12), content + bytes([kind]), header)

    def key_updates(self, count: int, answer: int = 0) -> bytes:
        """Return so many KeyUpdate records. With `answer` each asks the server for one, too."""
        message, records = b"\x18\0\0\1" + bytes([answer]), bytearray()
        for _ in range(count):
            records += self.record(message, 22)
            self.secret = self.expand("traffic upd", hashlib.new(self.hash).digest_size)
        return bytes(records)

    def review(self) -> bytes:
        """Return the record of a small review."""
        return self.record(request_bytes(b"{}"), 23)


SCRAPE = """
import selectors, socket, sys
def connect():
    client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    client.sendall(request * 20)
    selector.register(client, selectors.EVENT_READ)
selector, request = selectors.DefaultSelector(), b"GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
for _ in range(50):
    connect()
while True:
    for key, _ in selector.select():
        if data := key.fileobj.recv(2**20):
            key.fileobj.sendall(request * data.count(b"HTTP/1.1 200 "))
        else:
            selector.unregister(key.fileobj)
            connect()
"""


@contextlib.contextmanager
def scrapes(server: Whook):
    """Run a process with 50 clients that always have 20 requests for the metrics under way."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRAPE, str(server.health_port)], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.wait()


def fill_buffers(server: Whook, stack: contextlib.ExitStack) -> list[ssl.SSLSocket]:
    """Open connections that send almost all of the largest body, and others with most of a head."""
    body = request_bytes(b" " * whook.MAX_BODY)[:-1000]
    head = request_bytes().partition(b"\r\n\r\n")[0] + b"\r\nA: " + b"x" * 7000
    clients = []
    for part in [body] * 12 + [head] * 12:
        clients.append(stack.enter_context(secure(server)))
        with contextlib.suppress(OSError):  # refused before all of it was sent
            clients[-1].sendall(part)
    return clients
