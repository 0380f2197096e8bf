"""kopf's webhook server and its admission engine, without the operator around them (that needs a
cluster): kopf_peer.py CERT KEY PORT. kopf has no worker processes."""

import asyncio
import functools
import sys

import kopf
from kopf._cogs.structs import ephemera, references
from kopf._core.engines import admission, indexing
from kopf._core.reactor import inventory

LABEL, TEAM = "example.com/team", "shop"


@kopf.on.mutate("pods", id="mutate")
@kopf.on.mutate("namespaces", id="mutate")
def label(patch, labels, **_):
    if LABEL not in labels:
        patch.metadata.labels[LABEL] = TEAM


@kopf.on.validate("pods", id="validate")
def validate(**_):
    pass


async def main():
    cert, key, port = sys.argv[1:]
    insights = references.Insights()
    for plural, kind, namespaced in (("pods", "Pod", True), ("namespaces", "Namespace", False)):
        insights.webhook_resources.add(
            references.Resource("", "v1", plural, kind=kind, namespaced=namespaced, preferred=True)
        )
    answer = functools.partial(
        admission.serve_admission_request,
        settings=kopf.OperatorSettings(),
        memories=inventory.ResourceMemories(),
        memobase=ephemera.Memo(),
        registry=kopf.get_default_registry(),
        insights=insights,
        indices=indexing.OperatorIndexers().indices,
    )
    server = kopf.WebhookServer(addr="127.0.0.1", port=int(port), certfile=cert, pkeyfile=key)
    async for _ in server(answer):
        pass


asyncio.run(main())
