"""The floor for threads in Python: TLS, read a request, send a canned answer, nothing between.

floor_peer.py CERT KEY PORT WORKERS. It looks for the length and the uid, and for nothing else.
"""

import base64
import os
import socket
import ssl
import sys
import threading

PATCH = base64.b64encode(
    b'[{"op":"add","path":"/metadata/labels/example.com~1team","value":"shop"}]'
)
BODY = (
    b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"%b",'
    b'"allowed":true%b}}'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def main():
    cert, key, port, workers = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=1024)
    for _ in range(int(workers) - 1):
        if not os.fork():
            break
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(context, client), daemon=True).start()


def serve(context, client):
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(client, server_side=True) as tls:
        while data := tls.recv(64 * 1024):
            end = data.index(b"\r\n\r\n") + 4
            head = data[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            while len(data) < end + length:
                data += tls.recv(64 * 1024)
            uid = data.partition(b'"uid":"')[2].partition(b'"')[0]
            patch = b',"patchType":"JSONPatch","patch":"%b"' % PATCH
            body = BODY % (uid, patch if head.startswith(b"post /mutate") else b"")
            tls.sendall(HEAD % len(body) + body)


main()
