"""Honest clients beside stuck ones: what 150 stuck connections do to the others' latency.

    python -m bench.stuck

Stuck are, in equal parts, clients that say nothing, that stop in the TLS handshake, in a request's
head, and in its body. Rounds with and without them take turns; the median latency of the honest
ones, each on a connection of its own, is compared. Bounded: 2 s a round. Prints one line.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time

from tests.server import POD, Whook, request_bytes

STUCK, HONEST, ROUNDS, SECONDS = 150, 2, 5, 2.0
LABEL = "def mutate(obj, request): obj['metadata'].setdefault('labels', {})['team'] = 'shop'"
HELLO = bytes.fromhex("160301020001")  # the start of a TLS record


def stick(server: Whook, number: int) -> socket.socket:
    """A client of the sort that `number` says, left as it is."""
    if number % 4 < 2:
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.sendall(HELLO * (number % 4))
        return raw
    client = server.connect()
    client.sendall(b"POST /mutate HTTP/1.1\r\nHo" if number % 4 == 2 else request_bytes()[:-9])
    return client


def latency(server: Whook) -> float:
    """The median, in milliseconds, of reviews on keep-alive connections, one after the other."""
    taken = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(HONEST)]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for client in clients:
                start = time.perf_counter()
                status, _ = server.post(POD, connection=client)
                taken.append(time.perf_counter() - start)
                assert status == 200
    return statistics.median(taken) * 1000


def main() -> None:
    alone, beside = [], []
    with Whook(policies={"label": LABEL}) as server:
        for _ in range(ROUNDS):
            alone.append(latency(server))
            stuck = [stick(server, number) for number in range(STUCK)]
            beside.append(latency(server))
            for client in stuck:
                client.close()
    one, other = statistics.median(alone), statistics.median(beside)
    rounds = [round(b / a, 2) for a, b in zip(alone, beside, strict=True)]
    print(
        f"median latency: {one:.2f} ms alone, {other:.2f} ms beside {STUCK} stuck clients: "
        f"{other / one:.2f} times; rounds {rounds}"
    )


if __name__ == "__main__":
    main()
