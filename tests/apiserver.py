"""What a test puts between a client and the cluster: an HTTPS front with rules, before a backend.

`Front(Memory())` is a stand-in API server: real HTTPS, real X.509 signatures, objects in memory,
and of the API server's behaviour what certs.py and debug.py rely on; it calls no webhook.
`Front(Relay(plane))` is the same front before a real one. So a fault that a rule makes (an answer
replaced, an object changed or deleted between two steps) meets the program in the same way on both.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import datetime
import http.client
import http.server
import itertools
import json
import re
import socket
import ssl
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509

from tests import pki

APPLY = "application/apply-patch+yaml"
COLLECTIONS = (
    *("/secrets", "/services", "/endpointslices", "/configmaps", "/v1/namespaces", "/pods"),
    *("webhookconfigurations", "/certificatesigningrequests"),
)


@dataclass
class Call:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: dict | None
    user: str
    content_type: str = "application/json"
    raw: bytes = field(default=b"", repr=False)

    @property
    def target(self) -> str:
        return f"{self.path}?{'&'.join(f'{k}={v}' for k, v in self.query.items())}"


class Refusal(Exception):
    """An answer that is not a success: status, reason and message of a metav1.Status."""

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.answer = (
            status,
            {
                "apiVersion": "v1",
                "kind": "Status",
                "status": "Failure",
                "reason": reason,
                "message": message,
                "code": status,
            },
        )


class Front:
    """An HTTPS server on loopback that hands each request to the backend, unless a rule steps in.

    A rule is a method, a pattern for the path, and `action(call, proceed)`: it returns (status,
    object), its own or what `proceed()` got from the backend. `calls` are all requests so far.
    `authority` signs its certificate."""

    def __init__(self, backend, authority: pki.Authority | None = None):
        self.backend, self.rules, self.calls = backend, [], []
        self.authority = authority or pki.Authority("front")
        self.lock = threading.Lock()

    def __enter__(self) -> Front:
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.backend.close)
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="front-")))
        paths = self.authority.issue(["127.0.0.1"]).write(self.folder)
        (self.folder / "ca.pem").write_bytes(self.authority.pem + self.backend.ca_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        handler = type("Handler", (FrontHandler,), {"front": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.stack.callback(self.server.server_close)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.stack.callback(self.server.shutdown)
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def kubeconfig(self, user: str = "admin") -> str:
        """A kubeconfig for this user; the user's name is the token."""
        host = f"https://127.0.0.1:{self.server.server_port}"
        cluster = {"server": host, "certificate-authority": str(self.folder / "ca.pem")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": user}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path = self.folder / f"{user.replace(':', '-')}.kubeconfig"
        path.write_text(json.dumps(config))
        return str(path)

    def on(self, method: str, pattern: str, action, times: int = 1) -> None:
        """Let `action` answer the next `times` requests that match."""
        self.rules.append([method, re.compile(pattern), action, times])

    def reset(self) -> None:
        self.rules, self.calls = [], []

    def ask(self, method: str, path: str, body=None, **query: str):
        """A request of the test's own, past the rules. Returns the object; Refusal is raised."""
        if method in ("POST", "PUT"):
            query = {"fieldManager": "kubectl-edit", **query}
        call = Call(method, path, query, body, "admin", raw=json.dumps(body).encode())
        status, answer = self.backend.answer(call)
        if status >= 400:
            raise Refusal(status, answer.get("reason"), answer.get("message"))
        return answer

    def answer(self, call: Call):
        with self.lock:
            self.calls.append(call)
            for rule in self.rules:
                method, pattern, action, times = rule
                if times and re.fullmatch(method, call.method) and pattern.search(call.target):
                    rule[3] -= 1
                    break
            else:
                action = None
        try:
            if action:
                return action(call, lambda: self.backend.answer(call))
            return self.backend.answer(call)
        except Refusal as refusal:
            return refusal.answer


class FrontHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one write, or each answer waits 40 ms for an acknowledgement
    front: Front

    def handle_any(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        user = self.headers.get("Authorization", "").rpartition(" ")[2]
        kind = self.headers.get("Content-Type", "application/json")
        body = json.loads(raw) if raw else None
        status, answer = self.front.answer(
            Call(self.command, parts.path, query, body, user, kind, raw)
        )
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, *_) -> None:
        pass


class Relay:
    """A backend that is a real control plane; a user is known by a client certificate there."""

    def __init__(self, plane):
        self.plane, self.ca_pem = plane, plane.authority.pem
        self.contexts: dict[str, ssl.SSLContext] = {}
        self.idle: dict[str, list[http.client.HTTPSConnection]] = {}

    def connection(self, user: str) -> http.client.HTTPSConnection:
        """An idle connection of this user's, or a new one."""
        if user not in self.contexts:
            group = "system:masters" if user == "admin" else None
            pair = self.plane.issue(user, client=True, common_name=user, organization=group)
            context = ssl.create_default_context(cadata=self.ca_pem.decode())
            context.load_cert_chain(*pair.write(self.plane.folder, f"{user}.crt", f"{user}.key"))
            self.idle[user], self.contexts[user] = [], context
        with contextlib.suppress(IndexError):
            return self.idle[user].pop()
        context = self.contexts[user]
        return http.client.HTTPSConnection(
            "127.0.0.1", self.plane.port, timeout=30, context=context
        )

    def answer(self, call: Call):
        connection = self.connection(call.user)
        headers = {"Content-Type": call.content_type}
        connection.request(call.method, call.target, call.raw or None, headers)
        response = connection.getresponse()
        status, answer = response.status, json.loads(response.read())
        self.idle[call.user].append(connection)
        return status, answer

    def close(self) -> None:
        for connections in self.idle.values():
            for connection in connections:
                connection.close()


class Memory:
    """A backend that keeps the objects itself, and signs for kubelet-serving as a cluster does."""

    def __init__(self):
        self.authority = pki.Authority("kubernetes")
        self.ca_pem = self.authority.pem
        self.objects: dict[str, dict] = {}
        self.versions = itertools.count(1)
        self.lock = threading.RLock()

    def close(self) -> None:
        pass

    def answer(self, call: Call):
        with self.lock:
            path, subresource = call.path, ""
            if match := re.fullmatch(r"(.*/certificatesigningrequests/[^/]+)/(\w+)", path):
                path, subresource = match.groups()
            work = getattr(self, call.method.lower())
            return 200, copy.deepcopy(work(call, path, subresource))

    def stored(self, path: str) -> dict:
        if path not in self.objects:
            plural, name = path.rsplit("/", 2)[-2:]
            raise Refusal(404, "NotFound", f'{plural} "{name}" not found')
        return self.objects[path]

    def store(self, path: str, new: dict, call: Call) -> dict:
        if call.query.get("dryRun") != "All":
            new["metadata"]["resourceVersion"] = str(next(self.versions))
            self.objects[path] = new
        return new

    def get(self, call: Call, path: str, _) -> dict:
        if path.rsplit("/", 1)[0].endswith(COLLECTIONS):
            return self.stored(path)
        items = [one for key, one in self.objects.items() if key.rsplit("/", 1)[0] == path]
        for term in filter(None, call.query.get("labelSelector", "").split(",")):
            key, _, value = term.partition("=")
            items = [o for o in items if o["metadata"].get("labels", {}).get(key) == value]
        return {"kind": "List", "items": items}

    def post(self, call: Call, path: str, _) -> dict:
        new = copy.deepcopy(call.body)
        if path.endswith("/selfsubjectaccessreviews"):
            return {**new, "status": {"allowed": True}}
        metadata = new.setdefault("metadata", {})
        if "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if match := re.search(r"/namespaces/([^/]+)/", path):
            self.stored(f"/api/v1/namespaces/{match[1]}")
            metadata["namespace"] = match[1]
        path = f"{path}/{metadata['name']}"
        if path in self.objects:
            raise Refusal(409, "AlreadyExists", f'"{metadata["name"]}" already exists')
        metadata["uid"] = str(uuid.uuid4())
        if new["kind"] == "CertificateSigningRequest":
            new["spec"].update(username=call.user, groups=["system:authenticated"])
            new["status"] = {}
        if new["kind"] == "Pod" and self.opted_in(metadata["namespace"]):
            metadata["labels"] = {"example.com/mutated": "yes"}
        own(new, changes({}, new), call)
        return self.store(path, new, call)

    def opted_in(self, namespace: str) -> bool:
        labels = self.stored(f"/api/v1/namespaces/{namespace}")["metadata"].get("labels", {})
        return labels.get("whook") == "enabled"

    def put(self, call: Call, path: str, subresource: str) -> dict:
        old, new = self.stored(path), copy.deepcopy(call.body)
        self.compare(old, new["metadata"])
        if subresource:
            new = {**old, "metadata": {**old["metadata"]}, "status": new["status"]}
        if subresource == "approval":
            self.sign(new)
        if changed := changes(old, new):
            own(new, changed, call)
        return self.store(path, new, call)

    def compare(self, old: dict, metadata: dict) -> None:
        for key in ("uid", "resourceVersion"):
            if metadata.get(key, old["metadata"][key]) != old["metadata"][key]:
                raise Refusal(409, "Conflict", f"the object has been modified: {key}")

    def patch(self, call: Call, path: str, _) -> dict:
        """Server-side apply. A label goes when nobody is left who set it; what names a uid is not
        made anew."""
        if call.content_type != APPLY or not call.query.get("fieldManager"):
            raise Refusal(415, "UnsupportedMediaType", "only server-side apply")
        if path not in self.objects and "uid" not in call.body["metadata"]:
            return self.post(call, path.rpartition("/")[0], "")
        old = self.stored(path)
        self.compare(old, call.body["metadata"])
        new = copy.deepcopy(merge(old, call.body))
        own(new, changes({}, call.body), call)
        for key in owned_labels(old) - owned_labels(new):
            del new["metadata"]["labels"][key]
        return self.store(path, new, call)

    def delete(self, call: Call, path: str, _) -> dict:
        self.compare(self.stored(path), (call.body or {}).get("preconditions", {}))
        return self.objects.pop(path)

    def sign(self, request: dict) -> None:
        """What the controller manager does once a request for kubelet-serving is approved."""
        approved = [c["type"] for c in request["status"].get("conditions", [])] == ["Approved"]
        if request["spec"]["signerName"] != "kubernetes.io/kubelet-serving" or not approved:
            return
        csr = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
        subject = csr.subject.rfc4514_string()
        if not re.fullmatch(r"CN=system:node:[^,]+,O=system:nodes", subject):
            failed = {"type": "Failed", "status": "True", "reason": "SignerValidationFailure"}
            request["status"]["conditions"].append({**failed, "message": f"subject {subject}"})
            return
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        pair = self.authority.issue(
            names.get_values_for_type(x509.DNSName), public_key=csr.public_key()
        )
        request["status"]["certificate"] = base64.b64encode(pair.cert_pem).decode()


def merge(old, new):
    """What an apply of `new` makes of `old`: webhooks merge by name, other lists are replaced."""
    if isinstance(new, dict):
        old = old or {}
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    if isinstance(new, list) and new and "clientConfig" in new[0]:
        there = {webhook["name"]: webhook for webhook in old}
        merged = {webhook["name"]: merge(there.get(webhook["name"]), webhook) for webhook in new}
        return list({**there, **merged}.values())
    return new


def changes(old: dict, new: dict) -> dict:
    """The labels, the data and the caBundles that `new` sets, in the form of fieldsV1."""

    def bundles(one: dict) -> dict:
        return {w["name"]: w["clientConfig"].get("caBundle") for w in one.get("webhooks", [])}

    def labels(one: dict) -> dict:
        return one.get("metadata", {}).get("labels", {})

    keys, names = (
        [key for key, value in of(new).items() if value != of(old).get(key)]
        for of in (labels, bundles)
    )
    bundle = {"f:clientConfig": {"f:caBundle": {}}}
    fields = {"f:labels": {f"f:{key}": {} for key in keys}} if keys else {}
    webhooks = {f'k:{{"name":"{name}"}}': bundle for name in names}
    data = {"f:data": {}} if new.get("data") != old.get("data") else {}
    return data | {k: v for k, v in (("f:metadata", fields), ("f:webhooks", webhooks)) if v}


def own(manifest: dict, fields: dict, call: Call) -> None:
    """Note in managedFields that the caller set these fields, and none that it set before."""
    manager, metadata = call.query.get("fieldManager", "unknown"), manifest["metadata"]
    operation = "Apply" if call.method == "PATCH" else "Update"
    entry = {"manager": manager, "operation": operation, "fieldsV1": fields}
    entry["time"] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    others = [e for e in metadata.get("managedFields", []) if e["manager"] != manager]
    metadata["managedFields"] = [*others, entry] if fields else others


def owned_labels(manifest: dict) -> set[str]:
    entries = manifest["metadata"].get("managedFields", [])
    found = [e["fieldsV1"].get("f:metadata", {}).get("f:labels", {}) for e in entries]
    return {key.removeprefix("f:") for keys in found for key in keys}


class Endpoint:
    """A TLS server that shows one certificate to whoever connects, until it is given another."""

    def __init__(self, pair: pki.Pair, address: str = "127.0.0.1"):
        self.socket = socket.create_server((address, 0))
        self.address = self.socket.getsockname()
        self.serve(pair)
        threading.Thread(target=self.accept, daemon=True).start()

    def serve(self, pair: pki.Pair) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            context.load_cert_chain(*pair.write(Path(folder)))
        self.context = context

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain = self.socket.accept()[0]
                plain.settimeout(5)
                with contextlib.suppress(OSError):
                    self.context.wrap_socket(plain, server_side=True).close()

    def close(self) -> None:
        self.socket.close()
