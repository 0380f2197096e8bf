"""aiohttp, one process a core on a shared port: aiohttp_peer.py CERT KEY PORT WORKERS"""

import os
import ssl
import sys

from aiohttp import web
from label import admit


async def mutate(request):
    return web.json_response(admit(await request.json(), True))


async def validate(request):
    return web.json_response(admit(await request.json(), False))


def main():
    cert, key, port, workers = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    for _ in range(int(workers) - 1):
        if not os.fork():
            break
    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.add_routes([web.post("/mutate", mutate), web.post("/validate", validate)])
    web.run_app(
        app, host="127.0.0.1", port=int(port), ssl_context=context, reuse_port=True, print=None
    )


main()
