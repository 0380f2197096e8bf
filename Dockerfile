# Two images from one file:
#   docker build --target whook -t whook:1.0.0 .          the server
#   docker build --target certs -t whook-certs:1.0.0 .    certs.py, for manifests/renewal/
# "buildah build" and "docker buildx build --platform linux/amd64,linux/arm64" take it as it is.

# The server runs on the standard library, so pip goes, and what brings it back: site-packages is
# empty. A numeric user, because a pod's runAsNonRoot can't look names up.
FROM python:3.13-slim AS base
WORKDIR /app
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip*
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532

# Installed apart, so that pip itself stays behind.
FROM python:3.13-slim AS packages
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
