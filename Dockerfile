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
ARG VERSION=1.0.0

# The server runs on the standard library, so pip goes, and what brings it back: site-packages is
# empty. The base has no byte code and the root of a pod is read-only: what is not compiled here is
# compiled at every start (350 ms of processor time instead of 90). The byte code is not compared
# with its source's time: a reproducible build sets that later, and all of it would be stale. A
# numeric user, because a pod's runAsNonRoot can't look names up. The kubelet probes, docker doesn't.
FROM ${BASE} AS base
WORKDIR /app
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip* && \
    python -m compileall -q --invalidation-mode=unchecked-hash /usr/local/lib/python3*
# The last one: no debugger may attach itself to the process (sys.remote_exec, since Python 3.14).
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHON_DISABLE_REMOTE_DEBUG=1
HEALTHCHECK NONE
USER 65532:65532

# Installed apart, so that pip itself stays behind; what certs.py never imports goes (docs/images.md).
FROM ${BASE} AS packages
COPY requirements.txt /
ENV PIP_PYTHON=/packages
RUN python -m venv --without-pip /packages && \
    python -m pip install --no-cache-dir --no-compile --require-hashes --only-binary=:all: \
    -r /requirements.txt && \
    python -m pip uninstall -qy aiohttp aiohttp-retry aiohappyeyeballs aiosignal attrs frozenlist \
    multidict propcache yarl pycparser tzdata && \
    cd /packages/lib/python3*/site-packages && rm -r kubernetes/aio kubernetes/client/api && \
    python -m compileall -q --invalidation-mode=unchecked-hash -x kubernetes/client/models .

# docker build --target sbom --output sbom . writes what is in the two images, as CycloneDX.
FROM packages AS inventory
COPY sbom/ /sbom/
ARG VERSION
RUN python -m venv /tools && \
    PIP_PYTHON=/tools python -m pip install --no-cache-dir --require-hashes --only-binary=:all: \
    -r /sbom/requirements.txt && mkdir /out && cd /sbom && \
    python -m venv --without-pip /whook && ln -s /packages /whook-certs && \
    for name in whook whook-certs; do \
    /tools/bin/cyclonedx-py environment --output-reproducible /$name/bin/python | \
    /tools/bin/python sbom.py $name ${VERSION} > /out/$name.cdx.json || exit 1; done

FROM scratch AS sbom
COPY --from=inventory /out/ /

FROM base AS certs
COPY --from=packages /packages/lib/ /usr/local/lib/
COPY certs.py ./
RUN ["python", "-c", "import certs, kubernetes as k; k.dynamic.DynamicClient, k.config, k.client.ApiClient()"]
ARG BASE VERSION REVISION=""
LABEL org.opencontainers.image.title="whook-certs" \
    org.opencontainers.image.description="Renews the certificate of whook, an admission webhook" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
ENTRYPOINT ["python", "certs.py"]

# The last stage is what a build without --target makes. The entry point is in exec form, so that no
# shell is between the kubelet's signals and whook.
FROM base AS whook
COPY whook.py objects.py ./
COPY policies/ policies/
EXPOSE 8443 8080
ARG BASE VERSION REVISION=""
LABEL org.opencontainers.image.title="whook" \
    org.opencontainers.image.description="A Kubernetes admission webhook, policies in plain Python" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
ENTRYPOINT ["python", "whook.py"]
