# Two images from one file:
#   docker build --target whook -t localhost/whook:1.0.0 .          the server
#   docker build --target certs -t localhost/whook-certs:1.0.0 .    certs.py, for manifests/renewal/
# "podman build", "buildah build" and "docker buildx build --platform linux/amd64,linux/arm64" accept
# it as it is. podman and buildah prefix the name of an image without a registry with localhost/. With
# the prefix written out, docker uses the same name, and no node looks for the image on docker.io.

# One base for every stage. A tag can be moved, a digest can't: pin it with
#   --build-arg BASE=docker.io/library/python@sha256:...
# "docker buildx imagetools inspect" and "skopeo inspect docker://" print the tag's digest.
ARG BASE=docker.io/library/python:3.14.10-slim-trixie
ARG VERSION=1.0.0

# The server needs only the standard library, so pip and ensurepip are removed, and site-packages is
# empty. The base has no byte code, and a pod's root is read-only: modules that are not compiled here
# would be compiled at every start (350 ms of processor time instead of 90). Python does not compare
# this byte code with its source's time, because a reproducible build changes that time later. The
# user is numeric because runAsNonRoot can't look up names. Only the kubelet probes, not docker.
FROM ${BASE} AS base
WORKDIR /app
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip* && \
    python -m compileall -q --invalidation-mode=unchecked-hash /usr/local/lib/python3*
# The last variable keeps debuggers from attaching to the process (sys.remote_exec, Python 3.14).
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHON_DISABLE_REMOTE_DEBUG=1
HEALTHCHECK NONE
USER 65532:65532

# A separate stage, so that pip is not in the image. Packages that certs.py never imports are removed
# (docs/images.md).
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

# docker build --target sbom --output sbom . writes an SBOM of each image, in CycloneDX.
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

# A build without --target makes the last stage. The entry point is in exec form, so that whook gets
# the kubelet's signals, and not a shell. As process 1, whook also ends if it is paused for 15 s: the
# manifests set shareProcessNamespace, and "docker run" has --init.
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
