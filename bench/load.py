"""The load: which reviews are sent, how an answer is checked, and what one run measures."""

from __future__ import annotations

import base64
import copy
import http.client
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

from bench.servers import HERE, ROOT, Running

REVIEWS = ROOT / "tests" / "reviews"
LABEL, TEAM = "example.com/team", "shop"


def pod_review(size: int) -> bytes:
    """The real review of a pod, with as many of its containers as `size` bytes hold; at least the
    review itself."""
    review = json.loads((REVIEWS / "create-pod.json").read_bytes())
    containers = review["request"]["object"]["spec"]["containers"]
    first = containers[0]
    room = size - len(dump(review))
    for number in range(room // (len(dump(first)) + 6)):
        containers.append(copy.deepcopy(first) | {"name": f"app-{number:04}"})
    return dump(review)


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def write_reviews(folder: Path) -> dict[str, tuple[str, Path]]:
    """What the table compares: a name, the path that it is posted to, and the file with it."""
    large = folder / "large.json"
    large.write_bytes(pod_review(70_000))
    pod = REVIEWS / "create-pod.json"
    return {
        "1 KB": ("/mutate", REVIEWS / "create-namespace.json"),
        "5 KB": ("/mutate", pod),
        "70 KB": ("/mutate", large),
        "passthrough": ("/validate", pod),
    }


def connect(port: int, authority: Path) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(authority))
    return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)


def exchange(
    connection: http.client.HTTPSConnection, path: str, body: bytes, *, close: bool = False
) -> bytes:
    """Post a review and return the answer's body. Raises ValueError if its status is not 200."""
    headers = {"Content-Type": "application/json"} | ({"Connection": "close"} if close else {})
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ValueError(f"{path} answered {answer.status}: {content[:200]!r}")
    return content


def post(connection: http.client.HTTPSConnection, path: str, body: bytes, *, close: bool = False):
    """Post a review and check the answer: its status, its uid, and what its patch does."""
    content = exchange(connection, path, body, close=close)
    check(json.loads(body)["request"], json.loads(content), labelled=path.startswith("/mutate"))


def patch_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON Patch of a review's response, which is empty if the response has none."""
    return json.loads(base64.b64decode(response.get("patch") or "bnVsbA==")) or []


def check(request: dict[str, Any], answer: dict[str, Any], labelled: bool) -> None:
    response = answer["response"]
    if response["uid"] != request["uid"] or response["allowed"] is not True:
        raise ValueError(f"the wrong verdict: {response}")
    patch = patch_of(response)
    value = {LABEL: TEAM} if not request["object"]["metadata"].get("labels") else TEAM
    path = "/metadata/labels" + ("/example.com~1team" if value == TEAM else "")
    wanted = [{"op": "add", "path": path, "value": value}] if labelled else []
    if patch != wanted:
        raise ValueError(f"the wrong patch: {patch}")


def is_ready(port: int, authority: Path, review: Path = REVIEWS / "create-pod.json") -> bool:
    """Whether a first review is answered; ValueError if it is answered wrong."""
    connection = connect(port, authority)
    try:
        post(connection, "/validate", review.read_bytes(), close=True)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def start_wrk(
    server: Running, path: str, body: Path, seconds: int, connections: int = 8, pause: int = 0
) -> subprocess.Popen[str]:
    """Start wrk, which posts one review over and over on keep-alive connections.

    Each connection waits `pause` milliseconds before each request.
    """
    url = f"https://127.0.0.1:{server.place.port}{path}"
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--timeout", "20",
               "--duration", str(seconds), "--script", str(HERE / "post.lua"), url]  # fmt: skip
    environment = os.environ | {"BODY": str(body), "PAUSE": str(pause)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wrk_result(wrk: subprocess.Popen[str]) -> dict[str, float]:
    """Return what post.lua printed. Raises CalledProcessError if wrk failed."""
    output, _ = wrk.communicate()
    if wrk.returncode:
        raise subprocess.CalledProcessError(wrk.returncode, wrk.args)
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def measure(
    server: Running, path: str, body: Path, seconds: int, connections: int = 8, pause: int = 0
) -> dict[str, float]:
    """Let wrk post one review over and over on keep-alive connections; what a review cost."""
    before = server.cpu()
    result = wrk_result(start_wrk(server, path, body, seconds, connections, pause))
    spent = server.cpu() - before
    if not result["reviews"]:
        raise ValueError(f"{server.peer.name} answered no review in {seconds} s")
    return {
        "cpu_us": spent / max(result["reviews"], 1) * 1e6,
        "rate": result["reviews"] / result["seconds"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "failed": result["failed"],
    }


def fresh_connections(server: Running, authority: Path, count: int) -> float:
    """CPU µs of a review on a connection of its own: TCP, handshake, review, end."""
    body = (REVIEWS / "create-namespace.json").read_bytes()
    before = server.cpu()
    for _ in range(count):
        connection = connect(server.place.port, authority)
        post(connection, "/mutate", body, close=True)
        connection.close()
    return (server.cpu() - before) / count * 1e6
