# Two images from one file:
#   docker build --target whook -t localhost/whook:1.0.0 .          the server
#   docker build --target certs -t localhost/whook-certs:1.0.0 .    certs.py, for manifests/renewal/
# "podman build", "buildah build" and "docker buildx build --platform linux/amd64,linux/arm64" take
# it as it is. localhost/ is what podman and buildah call an image of no registry; with it written
# out, docker says the same, and no node looks for the image on docker.io.

# One base for every stage. A tag can be moved, a digest can't: pin it with
#   --build-arg BASE=docker.io/library/python@sha256:...
# where "docker buildx imagetools inspect" or "skopeo inspect docker://" tells the tag's digest.
ARG BASE=docker.io/library/python:3.14.10-slim-trixie

# The server runs on the standard library, so pip goes, and what brings it back: site-packages is
# empty. The base has no byte code and the root of a pod is read-only: what is not compiled here is
# compiled at every start (350 ms of processor time instead of 90). A numeric user, because a pod's
# runAsNonRoot can't look names up.
FROM ${BASE} AS base
WORKDIR /app
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip* && python -m compileall -q /usr/local/lib/python3*
# The last one: no debugger may attach itself to the process (sys.remote_exec, since Python 3.14).
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHON_DISABLE_REMOTE_DEBUG=1
USER 65532:65532

# Installed apart, so that pip itself stays behind.
FROM ${BASE} AS packages
COPY requirements.txt /
RUN python -m pip install --no-cache-dir --no-compile --require-hashes --only-binary=:all: \
    --prefix=/packages -r /requirements.txt

FROM base AS certs
COPY --from=packages /packages /usr/local
COPY certs.py ./
ENTRYPOINT ["python", "certs.py"]

# Last, so that it is what a build without --target makes. Exec form: whook is process 1 and gets
# the signals itself.
FROM base AS whook
COPY whook.py objects.py ./
COPY policies/ policies/
EXPOSE 8443 8080
ENTRYPOINT ["python", "whook.py"]
