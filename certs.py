#!/usr/bin/env python3
"""Certificates for whook: made here, signed through the cluster's certificates API, kept working.

    certs.py [ensure]    certificate, Secret and caBundle for a cluster's webhooks; the renewal too
    certs.py check       why the API server's calls fail, or soon will, and the fix for each finding
    certs.py local       a CA and a serving certificate for this machine: no cluster, no network,
                         and no package where there is the openssl command
    certs.py ca-bundle   a manifest on stdin, the same on stdout with the CA filled in

What it holds to
- The private key is made here. It goes into the Secret and a file of mode 0600, and nowhere else:
  not into a message, a log or another request. (Where there is no memfd, as on macOS, a second such
  file is there while the pair is proven. Where `local` has the openssl command make it, it comes
  and goes through pipes.) The key of a CA made here is dropped after one signature.
- Nothing is approved but what was posted, nothing published but what a TLS handshake has proven.
- caBundle is widened to old + new, the Secret written, every ready endpoint seen to serve the new
  certificate, and only then caBundle narrowed: there is no moment in which a call must fail.
- A rerun changes nothing unless something calls for it, and it says what did.

What RBAC has to grant (the function `permissions` is the same list as code)

    cluster    certificatesigningrequests                                     create, get, delete
               certificatesigningrequests/approval                            update
               signers, by the name of --signer-name                          approve
               mutating-, validatingwebhookconfigurations                     list
               the same, by name: whook and whatever else is kept             get, patch
    namespace  secrets, by name                                               get, update
               secrets: only for a first run, names can't limit it            create
               services, by name                                              get
               endpointslices                                                 list
    whook.local/serving, which is signed here, needs in the cluster
               certificatesigningrequests/status                              update
               signers whook.local/serving                                    sign
    any other signer, whose CA has to be found, needs in the namespace
               configmaps kube-root-ca.crt                                    get
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import email.utils
import functools
import importlib
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

if sys.version_info < (3, 11):  # noqa: UP036 - nothing above or below is newer syntax than 3.8
    sys.exit(f"whook: error: Python 3.11 or later is needed, this is {sys.version.split()[0]}")

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    Authority = tuple[x509.Certificate, PrivateKey]
    CRYPTOGRAPHY = hasattr(x509.Certificate, "not_valid_after_utc")  # 42 or later
except ModuleNotFoundError:  # main() says so where it is needed; --help and `local` are not
    CRYPTOGRAPHY = False

Address = tuple[str, int]
Json = dict[str, Any]
T = TypeVar("T")

KEY_TYPES = ("ecdsa-p256", "rsa-2048", "rsa-3072")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "whook.whook.svc")
OWN_SIGNER = "whook.local/serving"
KUBELET_SIGNER = "kubernetes.io/kubelet-serving"
SIGNER_ANNOTATION = "whook.local/signer-name"
FIELD_MANAGER = "whook-certs"
NAME_LABEL = "app.kubernetes.io/name"  # with the value "whook", on the configurations that are kept
BACKDATE = datetime.timedelta(minutes=5)  # for clocks that differ, as the built-in signer does
MINIMUM_VALIDITY = datetime.timedelta(minutes=10)  # the API's minimum for expirationSeconds
MAXIMUM_VALIDITY = datetime.timedelta(days=3650)
CALL_LIMIT = 10.0  # seconds for one request
OPENSSL_LIMIT = 60.0  # seconds for one openssl command: an RSA key takes a slow machine some
DIAL_LIMIT = 2.0  # seconds to reach an endpoint: it is near, or out of reach
POLL = 0.5  # seconds between two looks
SETTLE = 2.0  # seconds for every API server to learn a new caBundle; none reports that it has
LONG = datetime.timedelta(minutes=10)  # a kubelet brings a changed Secret to its pods within two
MANIFEST_LIMIT = 16 * 1024 * 1024
PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Fault(Exception):
    """What stops the program: one message and one hint, neither holding a secret."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint)


INSTALL = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
INSTALL += "; then run it with .venv/bin/python"


def require(package: str) -> None:
    """A Fault, with the remedy, where the package is not installed."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        message = f"package {error.name} is not installed for {sys.executable}"
        raise Fault(message, INSTALL) from None
    if package == "cryptography" and not CRYPTOGRAPHY:
        message = f"package cryptography is too old for {sys.executable}: 42 or later is needed"
        raise Fault(message, INSTALL)


class NotFound(Fault):
    """The API server has no such object."""


class Conflict(Fault):
    """The object is not as it was read: read it again, think again."""


class Unreachable(Fault):
    """The API server does not answer."""


def printable(text: str) -> str:
    """Others write conditions and messages: no control character of theirs reaches a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def tell(text: str) -> None:
    """One line of the result, on stdout."""
    print(printable(text), flush=True)


def say(text: str) -> None:
    """One step done, on stderr; on a terminal it takes the place of the progress line."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(clear + printable(text), file=sys.stderr, flush=True)


# ---------------------------------------------------------------- keys and certificates


@dataclass(frozen=True, repr=False)  # no repr: a key must not reach a traceback
class Pair:
    """A serving certificate with its intermediates, its key, and the CAs that prove it, as PEM."""

    chain: bytes
    key: bytes
    bundle: bytes

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def der(self) -> bytes:
        return self.leaf.public_bytes(serialization.Encoding.DER)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def new_key(key_type: str) -> PrivateKey:
    if key_type == "ecdsa-p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type[4:]))


def type_of(key: object) -> str:
    """The name in KEY_TYPES, or whatever names a key of another type."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ecdsa-p{key.key_size}"
    return f"rsa-{key.key_size}" if isinstance(key, rsa.RSAPublicKey) else type(key).__name__


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def address_of(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that this is, None where it is a name. A scope is no part of an address."""
    with contextlib.suppress(ValueError):
        return None if "%" in name else ipaddress.ip_address(name)
    return None


def alternative_name(names: Iterable[str]) -> x509.SubjectAlternativeName:
    def general(name: str) -> x509.GeneralName:
        address = address_of(name)
        return x509.IPAddress(address) if address else x509.DNSName(name)

    return x509.SubjectAlternativeName(map(general, names))


def names_of(certificate: x509.Certificate) -> set[str]:
    """The names that a client accepts; a common name counts for nothing."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = map(str, san.get_values_for_type(x509.IPAddress))
    return {*san.get_values_for_type(x509.DNSName), *addresses}


def skeleton(
    subject: str, key: PublicKey, until: datetime.datetime, ca: bool
) -> x509.CertificateBuilder:
    """A certificate with all that RFC 5280 asks for, as Python 3.13's clients do; no issuer yet."""
    encipher = not ca and isinstance(key, rsa.RSAPublicKey)
    # digital signature, -, key encipherment, -, -, certificate and revocation list signing, -, -
    usage = x509.KeyUsage(not ca, False, encipher, False, False, ca, ca, False, False)
    constraint = x509.BasicConstraints(ca=ca, path_length=0 if ca else None)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - BACKDATE)
        .not_valid_after(until)
        .add_extension(constraint, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def new_authority(until: datetime.datetime) -> Authority:
    """A CA for one signature, under a name of its own so that no two are ever confused."""
    key, subject = new_key("ecdsa-p256"), f"whook CA {os.urandom(8).hex()}"
    builder = skeleton(subject, key.public_key(), until, ca=True)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()), key


def sign(
    key: PublicKey, names: Iterable[str], until: datetime.datetime, authority: Authority
) -> x509.Certificate:
    """A serving certificate that ends no later than its CA."""
    issuer, issuer_key = authority
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = (
        skeleton("whook", key, min(until, issuer.not_valid_after_utc), ca=False)
        .issuer_name(issuer.subject)
        .add_extension(alternative_name(names), critical=False)
        .add_extension(server, critical=False)
        .add_extension(issuer_identifier(issuer), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The CA's own subject key identifier, which it may have chosen freely, if it has one."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = cast(PublicKey, issuer.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


# ---------------------------------------------------------------- verification


def certificates_in(text: bytes) -> list[x509.Certificate]:
    """The readable certificates of a PEM text, in order; what is broken is left out, as in Go."""
    found = []
    for block in PEM_CERTIFICATE.findall(text):
        with contextlib.suppress(ValueError):
            found.append(x509.load_pem_x509_certificate(block))
    return found


def alive(some: Iterable[x509.Certificate], at: datetime.datetime) -> list[x509.Certificate]:
    return [c for c in some if c.not_valid_before_utc <= at <= c.not_valid_after_utc]


def client_context(anchors: bytes = b"") -> ssl.SSLContext:
    """A client that judges as Kubernetes' Go does: any certificate of the bundle is an anchor, an
    intermediate too, and a name counts only in the subject alternative name. It is not strict, as
    Python's default contexts are since 3.13."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if anchors:
        context.load_verify_locations(cadata=anchors.decode("ascii"))
    return context


@contextlib.contextmanager
def readable(content: bytes) -> Iterator[str]:
    """A path under which OpenSSL, which reads files only, finds the content.

    On Linux that is memory of this process, in no file system: it ends with the process, however
    that ends. Elsewhere it is a file in a folder of mode 0700, which a SIGTERM at this very moment
    leaves behind."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("pair"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="whook-") as folder:
            path = Path(folder, "pair.pem")
            path.write_bytes(content)
            yield str(path)


def server_context(pair: Pair) -> ssl.SSLContext:
    """A server with this pair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with readable(pair.key + pair.chain) as path:
        context.load_cert_chain(path, None, "")  # nobody is asked for a password
    return context


def prove(pair: Pair, name: str, anchors: bytes) -> ssl.SSLObject:
    """Serve TLS with the pair, in memory, to a client that trusts only `anchors`: that client, with
    what it saw. Without a name it takes any.

    Raises ssl.SSLError, with OpenSSL's reason, where that client would refuse."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(anchors)
    context.check_hostname = bool(name)
    client = context.wrap_bio(outward, inward, server_hostname=name or None)
    server = server_context(pair).wrap_bio(inward, outward, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client


def leaf_flaw(pair: Pair, names: Sequence[str], at: datetime.datetime) -> str | None:
    """What is wrong with certificate and key, whoever signed them; None if nothing."""
    try:
        leaf, key = pair.leaf, serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError):
        return "the certificate or the key cannot be read"
    if leaf.public_key() != key.public_key():
        return "the certificate does not belong to the key"
    if missing := [name for name in names if name not in names_of(leaf)]:
        return f"the certificate does not name {', '.join(missing)}"
    return None if alive([leaf], at) else f"the certificate is valid only {span(leaf)}"


def flaw(pair: Pair, names: Sequence[str], at: datetime.datetime) -> str | None:
    """Why a client that trusts the pair's bundle would refuse it at that time, else None.

    OpenSSL has no clock to set, so the CAs that are not valid at that time are left out."""
    if reason := leaf_flaw(pair, names, at):
        return reason
    anchors = alive(certificates_in(pair.bundle), at)
    if not anchors:
        return "the bundle holds no valid CA"
    try:
        prove(pair, names[0], pem(*anchors))
    except ssl.SSLError as error:
        return f"the certificate does not verify: {getattr(error, 'verify_message', error.reason)}"
    return None


def renewal_flaw(pair: Pair, names: Sequence[str]) -> str | None:
    """The flaw that the pair has, or will have once only a third of its life is left."""
    if reason := flaw(pair, names, now()):
        return reason
    third = (pair.leaf.not_valid_after_utc - pair.leaf.not_valid_before_utc) / 3
    reason = flaw(pair, names, now() + third)
    return f"less than a third of its life is left: {reason}" if reason else None


def replacement_reason(pair: Pair, names: Sequence[str], key_type: str) -> str | None:
    """Why this pair must be replaced, None while it is good."""
    if reason := renewal_flaw(pair, names):
        return reason
    actual = type_of(pair.leaf.public_key())
    return None if actual == key_type else f"the key is {actual}, not {key_type}"


def span(certificate: x509.Certificate) -> str:
    return period(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def period(begin: datetime.datetime, end: datetime.datetime) -> str:
    return f"from {begin:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}"


# ---------------------------------------------------------------- files

FILES = {"ca.pem": "bundle", "server-key.pem": "key", "server-cert.pem": "chain"}


def read_file(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Fault(f"cannot read {path}: {error.strerror}", "check the path") from None


def refuse_shared(folder: str) -> None:
    """A Fault where others could put a pair of theirs into the folder. Whoever could do more,
    root or who owns a folder above it, is trusted."""
    try:
        status = os.stat(folder)
    except OSError:
        return  # it is to be made, or whoever reads or writes it will say so
    if not private(status.st_uid, 0):
        raise Fault(f"{folder} belongs to another user", "name one of your own with --cert-dir")
    if stat.S_ISDIR(status.st_mode) and not private(status.st_uid, status.st_mode & 0o022):
        message = f"others may write into {folder} (mode {status.st_mode & 0o777:04o})"
        raise Fault(message, f"chmod go-w {folder}, or name another folder with --cert-dir")


def exposure(folder: str) -> str | None:
    """Which file of the pair others may have written, or the key, read; None if none."""
    for name in FILES:
        status = os.stat(Path(folder, name))
        mode = status.st_mode & 0o777
        if not private(status.st_uid, mode & (0o077 if name == "server-key.pem" else 0o022)):
            return f"others could get at {folder}/{name} (owner {status.st_uid}, mode {mode:04o})"
    return None


def private(owner: int, others: int) -> bool:
    """Whether it is ours or root's, and grants others nothing. Only POSIX knows such owners."""
    return os.name != "posix" or (owner in (0, os.geteuid()) and not others)


def read_files(folder: str) -> Pair | None:
    """The pair in the folder, None where a file is missing. A Fault where the folder is shared."""
    refuse_shared(folder)
    if not all(Path(folder, name).exists() for name in FILES):
        return None
    return Pair(**{field: read_file(Path(folder, name)) for name, field in FILES.items()})


def write_files(folder: str, pair: Pair | None) -> None:
    """Each file whole or not at all, mode 0600, the certificate last. None: try only."""
    refuse_shared(folder)
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name, field in FILES.items() if pair else ():
            write_file(Path(folder, name), getattr(pair, field))
    except OSError as error:
        hint = "name a folder that can be written with --cert-dir"
        raise Fault(f"cannot write to {folder}: {error.strerror}", hint) from None


def write_file(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)  # made with mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ---------------------------------------------------------------- local

# A bare Python is enough here. The standard library judges a pair, and what makes it is the package
# cryptography or, where that is not installed, the openssl command.

# Where in a certificate's DER its key type stands: P-256's name; or RSA's, and the key's length.
KEY_MARKS = {"ecdsa-p256": bytes.fromhex("06082a8648ce3d030107")}
KEY_MARKS["rsa-2048"] = bytes.fromhex("2a864886f70d01010105000382010f00")
KEY_MARKS["rsa-3072"] = bytes.fromhex("2a864886f70d01010105000382018f00")


@dataclass(frozen=True)
class Facts:
    """What a client sees of a certificate. It ends no later than the CAs that it trusts."""

    names: set[str]
    begin: datetime.datetime
    end: datetime.datetime
    key_type: str

    @property
    def span(self) -> str:
        return period(self.begin, self.end)


def facts_of(pair: Pair) -> Facts:
    """Of a pair whose own CA is the last in its bundle, after those before it. ssl.SSLError or
    ValueError where that CA does not prove the pair, or what is no pair."""
    client = prove(pair, "", (PEM_CERTIFICATE.findall(pair.bundle) or [pair.bundle])[-1])
    shown, der = cast(Json, client.getpeercert()), client.getpeercert(binary_form=True) or b""
    names = {str(address_of(name) or name) for _, name in shown.get("subjectAltName", ())}
    ends = [one["notAfter"] for one in (shown, *cast(list[Json], client.context.get_ca_certs()))]
    marks = [key_type for key_type, mark in KEY_MARKS.items() if mark in der]
    return Facts(
        names, moment(shown["notBefore"]), min(map(moment, ends)), (*marks, "of another type")[0]
    )


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), datetime.UTC)


def local_flaw(pair: Pair, names: Sequence[str], key_type: str) -> str | None:
    """Why this pair must be replaced, None while it is good: as replacement_reason()."""
    try:
        facts = facts_of(pair)
    except ssl.SSLCertVerificationError as error:
        return f"the certificate does not verify: {error.verify_message}"
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            return "the certificate does not belong to the key"
        return "a certificate or the key cannot be read"
    if missing := [name for name in names if name not in facts.names]:
        return f"the certificate does not name {', '.join(missing)}"
    if facts.end - now() < (facts.end - facts.begin) / 3:
        return f"less than a third of its life is left: the certificate is valid only {facts.span}"
    return None if facts.key_type == key_type else f"the key is {facts.key_type}, not {key_type}"


def local_pair(names: Sequence[str], until: datetime.datetime, key_type: str) -> Pair:
    if CRYPTOGRAPHY:
        authority, key = new_authority(until), new_key(key_type)
        leaf = sign(key.public_key(), names, until, authority)
        return Pair(pem(leaf), key_pem(key), pem(authority[0]))
    if shutil.which("openssl"):
        return openssl_pair(names, until, key_type)
    message = f"no openssl command here, and no package cryptography for {sys.executable}"
    raise Fault(message, f"install either: apt-get install openssl, or {INSTALL}")


OPENSSL_KEY = {"ecdsa-p256": ("EC", "ec_paramgen_curve:P-256")}
OPENSSL_KEY |= {f"rsa-{bits}": ("RSA", f"rsa_keygen_bits:{bits}") for bits in (2048, 3072)}
OPENSSL_SETTINGS = """\
[req]
distinguished_name = subject
[ca]
default_ca = whook
[whook]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = subject
[subject]
commonName = supplied
[authority]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:false
keyUsage = critical, {usage}
extendedKeyUsage = serverAuth
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def openssl_pair(names: Sequence[str], until: datetime.datetime, key_type: str) -> Pair:
    """What sign() would make, by way of `openssl ca`: of its commands the only one that takes both
    ends of a validity in every version. No key is ever in a file: pipes carry them."""
    dates = [f"{end:%y%m%d%H%M%SZ}" for end in (now() - BACKDATE, until)]
    kinds = ", ".join(f"{'IP' if address_of(name) else 'DNS'}:{name}" for name in names)
    usage = "digitalSignature" + ", keyEncipherment" * key_type.startswith("rsa")
    with tempfile.TemporaryDirectory(prefix="whook-") as folder:
        run = functools.partial(openssl, folder)

        def new(name: str) -> bytes:
            algorithm, option = OPENSSL_KEY[name]
            return run("genpkey", "-algorithm", algorithm, "-pkeyopt", option)

        def signed(subject: str, key: bytes, by: bytes, *options: str) -> bytes:
            asked = "-key", "/dev/stdin", "-subj", f"/CN={subject}", "-out", "request"
            run("req", "-new", "-config", "settings", *asked, stdin=key)
            signing = "-keyfile", "/dev/stdin", "-in", "request", "-notext", "-batch"
            validity = "-startdate", dates[0], "-enddate", dates[1]
            return run("ca", "-config", "settings", *signing, *validity, *options, stdin=by)

        settings = OPENSSL_SETTINGS.format(usage=usage, names=kinds)
        Path(folder, "settings").write_text(settings)
        Path(folder, "serial").write_text(os.urandom(16).hex())
        Path(folder, "index").touch()
        authority, key = new("ecdsa-p256"), new(key_type)
        subject = f"whook CA {os.urandom(8).hex()}"
        ca = signed(subject, authority, authority, "-selfsign", "-extensions", "authority")
        Path(folder, "ca").write_bytes(ca)
        leaf = signed("whook", key, authority, "-cert", "ca", "-extensions", "server")
    return Pair(leaf, key, ca)


def openssl(folder: str, *command: str, stdin: bytes = b"") -> bytes:
    """Run it in the folder: what it says on stdout. A Fault with its last word where it fails."""
    run = functools.partial(subprocess.run, cwd=folder, capture_output=True, check=True)
    try:
        return cast(bytes, run(["openssl", *command], input=stdin, timeout=OPENSSL_LIMIT).stdout)
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").splitlines()
        message = f"openssl {command[0]} failed: {said[-1] if said else error}"
        raise Fault(message, f"try the package instead: {INSTALL}") from None


def local(arguments: argparse.Namespace) -> None:
    """Certificates for this machine, kept while they are good for every name asked for.

    A CA before the new one stays in ca.pem until it expires: so that file can be handed out, and
    the new certificate be served only when everybody has it. What others could have put there
    goes at once."""
    folder, names = arguments.cert_dir, list(dict.fromkeys([*LOCAL_NAMES, *arguments.host]))
    pair, exposed, reason = read_files(folder), None, "there were none"
    if pair:
        exposed = exposure(folder)
        reason = exposed or local_flaw(pair, names, arguments.key_type) or ""
    if pair and not reason:
        tell(f"{folder}: certificates kept, valid {facts_of(pair).span}")
        return
    made = local_pair(names, now() + arguments.validity, arguments.key_type)
    if flaw := local_flaw(made, names, arguments.key_type):
        raise Fault(f"what was made is no use: {flaw}", f"try the package instead: {INSTALL}")
    before = unexpired(pair.bundle) if pair and not exposed else b""
    write_files(folder, replace(made, bundle=before + made.bundle))
    told = f"{folder}: certificates made for {', '.join(names)}"
    tell(f"{told}, valid {facts_of(made).span}: {reason}")


def unexpired(bundle: bytes) -> bytes:
    """The CAs in it whose time is not over."""
    kept = b""
    for block in PEM_CERTIFICATE.findall(bundle):
        with contextlib.suppress(ssl.SSLError, ValueError):  # what is none
            (shown,) = cast(list[Json], client_context(block).get_ca_certs())
            kept += block + b"\n" if moment(shown["notAfter"]) > now() else b""
    return kept


# ---------------------------------------------------------------- the API server

CSR = "certificatesigningrequests"
CONFIGURATIONS = {
    "mutatingwebhookconfigurations": "MutatingWebhookConfiguration",
    "validatingwebhookconfigurations": "ValidatingWebhookConfiguration",
}
GROUPS = {
    CSR: "certificates.k8s.io",
    "signers": "certificates.k8s.io",
    **dict.fromkeys(CONFIGURATIONS, "admissionregistration.k8s.io"),
    "endpointslices": "discovery.k8s.io",
    "selfsubjectaccessreviews": "authorization.k8s.io",
}  # the rest is in the core group, ""; all of them are v1
NAMESPACED = ("secrets", "services", "endpointslices", "configmaps", "pods")
METHODS = {"list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH"}


def api_path(resource: str, name: str, namespace: str) -> str:
    plural, slash, subresource = resource.partition("/")
    base = f"/apis/{GROUPS[plural]}/v1" if plural in GROUPS else "/api/v1"
    where = f"/namespaces/{namespace}" if plural in NAMESPACED else ""
    return f"{base}{where}/{plural}" + f"/{name}" * bool(name) + slash + subresource


class Cluster:
    """The API server, spoken to in plain JSON, with one deadline over the whole run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Find the cluster as kubectl does, or in a pod by its ServiceAccount."""
        require("kubernetes")  # here: it takes a second, and `local` needs none of it
        import kubernetes

        self.arguments = arguments
        self.dns_name = f"{arguments.service}.{arguments.namespace}.svc"
        self.deadline = time.monotonic() + arguments.timeout
        settings = kubernetes.client.Configuration()
        settings.retries = False
        where = arguments.kubeconfig or os.environ.get("KUBECONFIG")
        in_pod = not (where or arguments.context) and "KUBERNETES_SERVICE_HOST" in os.environ
        if arguments.kubeconfig:
            read_file(os.path.expanduser(arguments.kubeconfig))
        try:
            if in_pod:
                kubernetes.config.load_incluster_config(settings)
            else:
                files = arguments.kubeconfig, arguments.context
                kubernetes.config.load_kube_config(*files, client_configuration=settings)
        except Exception as error:  # a malformed file makes the client raise anything at all
            reason = str(error).partition("\n")[0]
            hint = "name one with --kubeconfig, and a context in it with --context"
            where = "this pod's ServiceAccount" if in_pod else where or "~/.kube/config"
            raise Fault(f"no usable kubeconfig: {where}: {reason}", hint) from None
        self.host, self.ca_file = settings.host, settings.ssl_ca_cert
        self.date = ""  # the API server's clock in its latest answer, as in HTTP
        client = kubernetes.client.ApiClient(settings)
        # Its own context would be strict, and refuse the CAs of EKS and MicroK8s. It adds the
        # kubeconfig's CA and client certificate to ours.
        context = client_context()
        context.check_hostname = settings.verify_ssl
        if not settings.ssl_ca_cert:
            context.load_default_certs()
        client.rest_client.pool_manager.connection_pool_kw["ssl_context"] = context
        # Without a discoverer the client asks nothing of its own and leaves no cache behind.
        self.client = kubernetes.dynamic.DynamicClient(client, discoverer=lambda *_: None)

    def left(self) -> float:
        return float(self.deadline - time.monotonic())

    def call(
        self, verb: str, resource: str, name: str = "", body: object = None, **options: Any
    ) -> Json:
        """One request in the words of RBAC: verb, resource ("secrets", "…/approval") and name.

        "patch" is a server-side apply under our field manager. Raises NotFound, Conflict, Fault."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        if verb == "patch":
            options["content_type"] = "application/apply-patch+yaml"
            options |= {"force_conflicts": True, "field_manager": FIELD_MANAGER}
        options["_request_timeout"] = min(CALL_LIMIT, max(DIAL_LIMIT, self.left()))
        namespace = options.pop("namespace", self.arguments.namespace)
        method, path = METHODS.get(verb, verb.upper()), api_path(resource, name, namespace)
        try:
            answer = self.client.request(method, path, body=body, serialize=False, **options)
            self.date = answer.headers.get("Date", "")
            return cast(Json, json.loads(answer.data))
        except (ApiException, HTTPError, OSError, ValueError) as error:
            if status := getattr(error, "status", None):
                action = f"{verb} {resource} {name}".strip()
                raise refusal(status, getattr(error, "body", ""), action) from None
            if flaw := tls_error(error):
                raise distrust(self.host, flaw) from None
            reason = str(getattr(error, "reason", error)).rpartition("): ")[2]
            hint = "is the cluster up, and is it the one meant? see --kubeconfig and --context"
            message = f"no answer from the API server at {self.host}: {reason}"
            raise Unreachable(message, hint) from None

    def find(self, resource: str, name: str) -> Json | None:
        """The object, None where there is none."""
        try:
            return self.call("get", resource, name)
        except NotFound:
            return None

    def settle_conflicts(self, action: Callable[[], T]) -> T:
        """Run what reads, decides and writes until nobody else writes in between."""
        while True:
            try:
                return action()
            except Conflict:
                if self.left() <= 0:
                    raise
                time.sleep(POLL)

    def wait(self, what: str, look: Callable[[], bool]) -> float | None:
        """Look until it is there. Returns the seconds waited, None if the deadline came first."""
        start = time.monotonic()
        while not look():
            waited = time.monotonic() - start
            if self.left() <= 0:
                return None
            if sys.stderr.isatty():
                line = printable(f"waiting for {what}: {waited:.0f} s")
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            time.sleep(POLL if waited > POLL else POLL / 5)
        return time.monotonic() - start


def tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """What OpenSSL said, which the clients wrap, or None if it was not TLS that failed."""
    while error:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__context__
    return None


def distrust(host: str, error: ssl.SSLError) -> Unreachable:
    """A failed TLS handshake with the API server, and where in the kubeconfig to look."""
    reason = getattr(error, "verify_message", "") or error.reason or error
    clock = "is this machine's clock right? if so, the API server's certificate is not"
    name = "server in the kubeconfig must be a name in its certificate; or tls-server-name"
    if verdict := getattr(error, "verify_code", None):
        meant = "is it the cluster meant? certificate-authority in the kubeconfig must be its CA"
        # OpenSSL's codes: not yet valid, no longer valid, another name, another address
        hint = {9: clock, 10: clock, 62: name, 64: name}.get(verdict, meant)
    else:
        hint = "does it speak HTTPS there, and take the client certificate in the kubeconfig?"
    return Unreachable(f"no TLS with the API server at {host}: {reason}", hint)


def refusal(status: int | None, body: str | bytes | None, action: str) -> Fault:
    """The API server's Status as a Fault, for a forbidden request with the RBAC rule missing."""
    try:
        message = str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        message = f"cannot {action}: HTTP status {status}"
    if status == 401:
        return Fault(message, "the credentials in the kubeconfig are not accepted")
    if status == 403:
        return Fault(message, missing_rule(message))
    if status == 404:
        return NotFound(message, "kubectl apply -f manifests/ makes what whook needs")
    if status == 409:
        return Conflict(message, "another run or another tool is at work on it; run again")
    return Fault(message, "the API server's own words; nothing of it was written")


def missing_rule(message: str) -> str:
    """The rule that would have allowed a request, from the API server's own words."""
    if match := re.search(r'cannot (\S+) resource "(\S+)" in API group "(\S*)"(.*)', message):
        verb, resource, group, rest = match.groups()
        role = "Role in that namespace" if "in the namespace" in rest else "ClusterRole"
        return f"a {role} must grant {rule(verb, group, resource)}"
    if match := re.search(r'to (approve|sign) requests with signerName "([^"]+)"', message):
        verb, name = match.groups()
        return f"a ClusterRole must grant {rule(verb, GROUPS['signers'], 'signers', name)}"
    return "not a matter of RBAC: the message names who refused"


def rule(verb: str, group: str, resource: str, name: str = "") -> str:
    names = f', resourceNames: ["{name}"]' if name else ""
    return f'apiGroups: ["{group}"], resources: ["{resource}"]{names}, verbs: ["{verb}"]'


# ---------------------------------------------------------------- what stands in the cluster


@dataclass(frozen=True)
class Configuration:
    """A webhook configuration as read, and those of its webhooks that point at our Service."""

    resource: str
    manifest: Json
    webhooks: list[Json]

    @property
    def label(self) -> str:
        return f"{self.resource[:-1]} {self.manifest['metadata']['name']}"


def configuration(cluster: Cluster, resource: str, manifest: Json | None) -> Configuration | None:
    """The configuration, None where it is missing or has no webhook for our Service."""
    manifest, wanted, webhooks = manifest or {}, cluster.arguments, []
    for webhook in manifest.get("webhooks") or []:
        service = webhook["clientConfig"].get("service") or {}
        if (service.get("namespace"), service.get("name")) == (wanted.namespace, wanted.service):
            webhooks.append(webhook)
    return Configuration(resource, manifest, webhooks) if webhooks else None


def pointing(cluster: Cluster) -> list[Configuration]:
    """All in the cluster that have a webhook for our Service."""
    listed = [(kind, one) for kind in CONFIGURATIONS for one in cluster.call("list", kind)["items"]]
    found = [configuration(cluster, resource, manifest) for resource, manifest in listed]
    return [one for one in found if one]


def is_kept(cluster: Cluster, one: Configuration) -> bool:
    """Whether its caBundle is ours to write: by its label, or because the user names it."""
    metadata = one.manifest["metadata"]
    labelled = (metadata.get("labels") or {}).get(NAME_LABEL) == "whook"
    return labelled or metadata["name"] in cluster.arguments.webhook_configuration


def configurations(cluster: Cluster) -> list[Configuration]:
    """Those whose caBundle is kept; a Fault where there are none."""
    found = pointing(cluster)
    if kept := [one for one in found if is_kept(cluster, one)]:
        return kept
    service = f"{cluster.arguments.namespace}/{cluster.arguments.service}"
    hint = "kubectl apply -f manifests/ makes it; or see --webhook-configuration and --service"
    message = f"no webhook configuration labelled {NAME_LABEL}=whook points at service {service}"
    raise Fault(message, adoption(found[0]) if found else hint)


def adoption(stray: Configuration) -> str:
    """How a configuration that is left alone comes to be kept."""
    return f"if it is whook's: kubectl label {stray.label} {NAME_LABEL}=whook; python certs.py"


def each(found: list[Configuration]) -> list[tuple[Configuration, Json]]:
    return [(one, webhook) for one in found for webhook in one.webhooks]


def bundle_of(webhook: Json) -> bytes:
    return base64.b64decode(webhook["clientConfig"].get("caBundle") or "")


def allowed(cluster: Cluster, verb: str, resource: str, name: str) -> bool:
    plural, _, subresource = resource.partition("/")
    asked = {"verb": verb, "resource": plural, "subresource": subresource, "name": name}
    asked["group"] = GROUPS.get(plural, "")
    if plural in NAMESPACED:
        asked["namespace"] = cluster.arguments.namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = cluster.call("create", "selfsubjectaccessreviews", body=review)
    return bool(answer["status"]["allowed"])


def refuse_forbidden(cluster: Cluster, one: Configuration) -> None:
    """A Fault where caBundle may not be written: RBAC names the configurations one by one."""
    name = one.manifest["metadata"]["name"]
    if not allowed(cluster, "patch", one.resource, name):
        must = rule("patch", GROUPS[one.resource], one.resource, name)
        raise Fault(f"{one.label}: you may not patch it", f"a ClusterRole must grant {must}")


def refuse_other_owner(one: Configuration) -> None:
    """A Fault where somebody else keeps caBundle: an injector that an annotation asks for, or any
    field manager but kubectl, which only wrote what stood in a manifest."""
    metadata = one.manifest["metadata"]
    owners = [
        f"the injector that annotation {annotation} calls"
        for annotation in metadata.get("annotations") or {}
        if annotation.startswith(("cert-manager.io/inject-", "service.beta.openshift.io/inject-"))
    ]
    for entry in metadata.get("managedFields") or []:
        by_webhook = (entry.get("fieldsV1") or {}).get("f:webhooks", {})
        keys = {key for key, fields in by_webhook.items() if "f:caBundle" in str(fields)}
        ours = {f'k:{{"name":"{webhook["name"]}"}}' for webhook in one.webhooks}
        if keys & ours and not entry["manager"].startswith((FIELD_MANAGER, "kubectl")):
            owners.append(f'field manager "{entry["manager"]}"')
    if owners:
        hint = "let it do its work, or take it away there; --force writes over it"
        raise Fault(f"{one.label}: caBundle is kept by {owners[0]}", hint)


def secret_pair(secret: Json | None) -> Pair | None:
    """What the Secret holds, None where one of its three keys is missing."""
    data = (secret or {}).get("data") or {}
    parts = [base64.b64decode(data.get(key, "")) for key in ("tls.crt", "tls.key", "ca.crt")]
    return Pair(parts[0], parts[1], pem(*certificates_in(parts[2]))) if all(parts) else None


def secret_label(cluster: Cluster) -> str:
    return f"secret {cluster.arguments.namespace}/{cluster.arguments.secret}"


def wrong_type(cluster: Cluster, secret: Json) -> tuple[str, str]:
    """Message and remedy: the API server lets nobody change a Secret's type."""
    message = f"type {secret['type']}, not kubernetes.io/tls"
    where = f"{cluster.arguments.namespace} delete secret {cluster.arguments.secret}"
    return message, f"kubectl -n {where}; python certs.py"


def signer_of(secret: Json | None) -> str | None:
    annotations = (secret or {"metadata": {}})["metadata"].get("annotations") or {}
    return annotations.get(SIGNER_ANNOTATION)


def endpoints(cluster: Cluster, found: list[Configuration]) -> list[Address]:
    """Where the API server's calls end: the address and port of every ready endpoint.

    A Service's port finds the endpoints' port by its name, not by its number."""
    name = cluster.arguments.service
    service = cluster.find("services", name) or {"spec": {}}
    numbers = {w["clientConfig"]["service"].get("port", 443) for _, w in each(found)}
    ports = {p.get("name", "") for p in service["spec"].get("ports", []) if p["port"] in numbers}
    selector = f"kubernetes.io/service-name={name}"
    slices = cluster.call("list", "endpointslices", label_selector=selector)["items"]
    addresses = {
        (endpoint["addresses"][0], port["port"])
        for one in slices
        for endpoint in one.get("endpoints") or []
        if endpoint.get("conditions", {}).get("ready") is not False
        for port in one.get("ports") or []
        if port.get("name", "") in ports and port.get("port")
    }
    return sorted(addresses)


def dial(address: Address, name: str, anchors: bytes = b"") -> bytes | None:
    """Connect as the API server does; returns the leaf that is served, None if nobody answers.

    With anchors, raises ssl.SSLCertVerificationError where the API server would refuse it."""
    if anchors:
        context = client_context(anchors)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        plain = socket.create_connection(address, DIAL_LIMIT)
        with plain, context.wrap_socket(plain, server_hostname=name) as secure:
            return secure.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError:
        raise
    except OSError:
        return None


def dial_all(cluster: Cluster, addresses: list[Address]) -> list[bytes | None]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda address: dial(address, cluster.dns_name), addresses))


# ---------------------------------------------------------------- the signing request


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def request_manifest(key: PrivateKey, cluster: Cluster) -> Json:
    """The object to post. Its name is left to the API server: whoever may create requests could put
    one of their own under a name known beforehand. A common name holds 64 characters at most, so
    it is a constant, and kubelet-serving takes no other form of subject than this one."""
    wanted = cluster.arguments
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, "whook")]
    if wanted.signer_name == KUBELET_SIGNER:
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, "system:node:whook"),
        ]
    builder = x509.CertificateSigningRequestBuilder(x509.Name(subject))
    builder = builder.add_extension(alternative_name([cluster.dns_name]), critical=False)
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    usages = ["digital signature", "server auth", "key encipherment"]
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": f"{wanted.service}-"},
        "spec": {
            "request": encode(request),
            "signerName": wanted.signer_name,
            "usages": usages[: 2 + isinstance(key, rsa.RSAPrivateKey)],
            "expirationSeconds": int(wanted.validity.total_seconds()),
        },
    }


def post(cluster: Cluster, key: PrivateKey) -> Json:
    """Post the request; the answer is the record of what we asked for, and as whom."""
    manifest = request_manifest(key, cluster)
    posted = cluster.call("create", CSR, body=manifest)
    for field in ("request", "signerName", "usages"):
        if posted["spec"].get(field) != manifest["spec"][field]:
            hint = "a webhook or a proxy of this cluster changes requests; nothing was approved"
            raise Fault(f"{label(posted)}: spec.{field} is not what was posted", hint)
    return posted


def label(request: Json) -> str:
    return f"certificatesigningrequest {request['metadata']['name']}"


def read_back(cluster: Cluster, posted: Json) -> Json:
    """The request as it stands: a Fault unless it is the one posted, unchanged, and not refused.

    The API server lets nobody change a spec, so a difference means that another took its place."""
    hint = "see in the audit log who did it; nothing was published, run again"
    current = cluster.find(CSR, posted["metadata"]["name"])
    if not current:
        raise Fault(f"{label(posted)} was deleted before its certificate was issued", hint)
    if current["metadata"]["uid"] != posted["metadata"]["uid"]:
        raise Fault(f"{label(posted)} was replaced by another of the same name", hint)
    for field in sorted(current["spec"].keys() | posted["spec"].keys()):
        if current["spec"].get(field) != posted["spec"].get(field):
            raise Fault(f"{label(posted)}: spec.{field} is not what was posted", hint)
    for condition in conditions(current):
        if condition["type"] in ("Denied", "Failed"):
            reason = f"{condition.get('reason', '')}: {condition.get('message', '')}"
            hint = "an approver or the signer refused; the default --signer-name asks neither"
            raise Fault(f"{label(posted)}: {condition['type']}: {reason}", hint)
    return current


def conditions(request: Json) -> list[Json]:
    return list(request.get("status", {}).get("conditions") or [])


def update_status(cluster: Cluster, current: Json, part: str, **change: object) -> None:
    """PUT part of the status, with uid and resourceVersion: for this object as it was read."""
    manifest = {**current, "status": {**current.get("status", {}), **change}}
    cluster.call("update", f"{CSR}/{part}", current["metadata"]["name"], manifest)


def approve(cluster: Cluster, posted: Json) -> None:
    current = read_back(cluster, posted)
    if "Approved" in [condition["type"] for condition in conditions(current)]:
        return
    approval = {"type": "Approved", "status": "True", "reason": "ApprovedByItsAuthor"}
    approval["message"] = "certs.py posted this request, read it back unchanged and approved it"
    update_status(cluster, current, "approval", conditions=[*conditions(current), approval])


def hand_in(cluster: Cluster, posted: Json, certificate: bytes) -> None:
    current = read_back(cluster, posted)
    if not current["status"].get("certificate"):
        update_status(cluster, current, "status", certificate=encode(certificate))


def issued(cluster: Cluster, posted: Json) -> bytes:
    """Wait for the certificate and return it, as PEM."""
    found = []

    def look() -> bool:
        certificate = read_back(cluster, posted).get("status", {}).get("certificate")
        found.append(base64.b64decode(certificate or ""))
        return bool(certificate)

    signer = posted["spec"]["signerName"]
    waited = cluster.wait(f"{signer} to sign {label(posted)}", look)
    if waited is None:
        raise Fault(
            f"{label(posted)}: approved, but {signer} signed nothing within "
            f"{cluster.arguments.timeout:g} s",
            f"does a signer run under that name? EKS has beta.eks.amazonaws.com/app-serving; "
            f"{OWN_SIGNER} needs none",
        )
    say(f"{label(posted)}: issued, waited {waited:.1f} s")
    return found[-1]


def known_issuers(cluster: Cluster) -> Iterator[tuple[str, list[x509.Certificate]]]:
    """Where a signer's CA may be found, in the order in which it is tried."""
    for name, path in ("--ca-cert", cluster.arguments.ca_cert), ("kubeconfig", cluster.ca_file):
        if path:
            yield name, certificates_in(read_file(path))
    root = cluster.find("configmaps", "kube-root-ca.crt") or {"data": {}}
    yield "kube-root-ca.crt", certificates_in(root["data"].get("ca.crt", "").encode())


def with_issuer(
    pair: Pair, names: list[str], sources: Iterable[tuple[str, list[x509.Certificate]]]
) -> Pair:
    """The pair with the CAs that verify it, from the first source that has any."""
    tried = []
    for source, anchors in sources:
        if good := [a for a in anchors if not flaw(replace(pair, bundle=pem(a)), names, now())]:
            return replace(pair, bundle=pem(*dict.fromkeys(good)))
        tried += [f"{a.subject.rfc4514_string()} ({source})" for a in anchors]
    raise Fault(
        f"no known CA verifies the certificate; tried: {', '.join(tried) or 'none found'}",
        "ask the signer's operator for its CA and name that with --ca-cert; nothing was published",
    )


def signing_authority(arguments: argparse.Namespace) -> Authority | None:
    """The CA that signs here: the user's, or one for this run. None leaves it to the signer."""
    if arguments.signer_name != OWN_SIGNER:
        return None
    if not arguments.ca_key:
        return new_authority(now() + arguments.validity)
    try:
        key = serialization.load_pem_private_key(read_file(arguments.ca_key), None)
    except (ValueError, TypeError):
        hint = "it must be PEM, and not encrypted"
        raise Fault(f"{arguments.ca_key}: no readable key", hint) from None
    for certificate in alive(certificates_in(read_file(arguments.ca_cert)), now()):
        if certificate.public_key() == key.public_key() and isinstance(key, PrivateKey):
            return certificate, key
    raise Fault(
        f"{arguments.ca_cert}: no valid certificate belongs to the key in {arguments.ca_key}",
        "both must come from one CA, RSA or ECDSA, that has not expired",
    )


def issue(cluster: Cluster, authority: Authority | None) -> Pair:
    """A new key and its certificate by way of the certificates API: posted, compared, approved,
    signed, read back and proven. Publishes nothing."""
    wanted, names = cluster.arguments, [cluster.dns_name]
    key = new_key(wanted.key_type)
    posted = post(cluster, key)
    say(f"{label(posted)}: posted for signer {wanted.signer_name}")
    cluster.settle_conflicts(lambda: approve(cluster, posted))
    say(f"{label(posted)}: approved")
    sources = known_issuers(cluster)
    if authority:
        leaf = sign(key.public_key(), names, now() + wanted.validity, authority)
        cluster.settle_conflicts(lambda: hand_in(cluster, posted, pem(leaf)))
        say(f"{label(posted)}: signed by {leaf.issuer.rfc4514_string()}")
        sources = iter([("this run", [authority[0]])])
    pair = Pair(issued(cluster, posted), key_pem(key), b"")
    if reason := leaf_flaw(pair, names, now()):
        hint = "nothing was published; ask the signer's operator, or run again"
        raise Fault(f"{label(posted)}: what {wanted.signer_name} issued is no use: {reason}", hint)
    pair = with_issuer(pair, names, sources)
    say(f"certificate: valid {span(pair.leaf)}, verified by {subjects(pair.bundle)}")
    forget(cluster, posted)
    return pair


def subjects(bundle: bytes) -> str:
    return ", ".join(c.subject.rfc4514_string() for c in certificates_in(bundle))


def forget(cluster: Cluster, posted: Json) -> None:
    """Delete our request; where that fails, the controller manager does it after an hour."""
    uid = {"preconditions": {"uid": posted["metadata"]["uid"]}}
    try:
        cluster.call("delete", CSR, posted["metadata"]["name"], uid)
        say(f"{label(posted)}: deleted")
    except Fault as fault:
        say(f"{label(posted)}: left behind: {fault}")


# ---------------------------------------------------------------- publishing


def widened(current: bytes, pair: Pair) -> bytes:
    """What is trusted now and the pair's CAs, without the expired and the duplicate."""
    anchors = alive(certificates_in(current), now()) + certificates_in(pair.bundle)
    return pem(*dict.fromkeys(anchors))


def narrowed(current: bytes, pair: Pair, stale: set[x509.Certificate]) -> bytes:
    """The same without the stale: an anchor that came since then is another run's, and stays."""
    return widened(pem(*(a for a in certificates_in(current) if a not in stale)), pair)


def stale_anchors(found: list[Configuration], pair: Pair) -> set[x509.Certificate]:
    trusted = {anchor for _, w in each(found) for anchor in certificates_in(bundle_of(w))}
    return trusted - {*certificates_in(pair.bundle)}


def apply_bundle(cluster: Cluster, old: Configuration, change: Callable[[bytes], bytes]) -> bool:
    """Server-side apply of caBundle to each webhook of ours; False where all are as they should be.

    The uid keeps this from making a configuration that somebody has deleted, the resourceVersion
    from undoing what another run did."""
    name = old.manifest["metadata"]["name"]
    one = configuration(cluster, old.resource, cluster.find(old.resource, name))
    if not one:
        raise Fault(f"{old.label}: gone since this run began", "apply the manifests, run again")
    wanted = {webhook["name"]: change(bundle_of(webhook)) for webhook in one.webhooks}
    if all(bundle_of(webhook) == wanted[webhook["name"]] for webhook in one.webhooks):
        return False
    if not cluster.arguments.force:
        refuse_other_owner(one)
    metadata = {key: one.manifest["metadata"][key] for key in ("name", "uid", "resourceVersion")}
    manifest = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": CONFIGURATIONS[one.resource],
        "metadata": metadata,
        "webhooks": [
            {"name": webhook, "clientConfig": {"caBundle": encode(bundle)}}
            for webhook, bundle in wanted.items()
        ],
    }
    cluster.call("patch", one.resource, name, manifest)
    count = max(len(certificates_in(bundle)) for bundle in wanted.values())
    say(f"{one.label}: caBundle of {', '.join(wanted)}: {count} CA" + "s" * (count > 1))
    return True


def apply_bundles(
    cluster: Cluster, found: list[Configuration], change: Callable[[bytes], bytes]
) -> bool:
    """True if any caBundle was written."""
    actions = [functools.partial(apply_bundle, cluster, one, change) for one in found]
    return any([cluster.settle_conflicts(action) for action in actions])


def write_secret(cluster: Cluster, secret: Json | None, pair: Pair, **options: Any) -> None:
    """Create or replace the Secret, provided that its data are still those of `secret`."""
    name = cluster.arguments.secret
    current = cluster.find("secrets", name) if secret else None
    if (current or {}).get("data") != (secret or {}).get("data"):
        raise Fault(
            f"{secret_label(cluster)}: changed since this run began",
            "another run is at work; run again",
        )
    metadata = {"name": name, **(current or {"metadata": {}})["metadata"]}
    metadata["annotations"] = {
        **metadata.get("annotations", {}),
        SIGNER_ANNOTATION: cluster.arguments.signer_name,
    }
    data = {"tls.crt": pair.chain, "tls.key": pair.key, "ca.crt": pair.bundle}
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": metadata,
        "data": {key: encode(value) for key, value in data.items()},
    }
    verb = "update" if current else "create"
    cluster.call(verb, "secrets", name if current else "", manifest, **options)


def confirm(
    cluster: Cluster, found: list[Configuration], pair: Pair
) -> tuple[bool, set[bytes | None]]:
    """Wait until every ready endpoint serves the pair's leaf. False, with the reason said, if not:
    a kubelet takes a minute or two to bring a Secret to its pods, and from outside the cluster
    their addresses may be out of reach. Beside that, the leaves that are served. All the while the
    pair's CAs are held in caBundle, should a run that began earlier take them out."""
    leaf = pair.der
    addresses: list[Address] = []
    served: list[bytes | None] = []
    silent = 0

    def look() -> bool:
        nonlocal addresses, served, silent
        apply_bundles(cluster, found, lambda current: widened(current, pair))
        addresses = endpoints(cluster, found)
        served = dial_all(cluster, addresses)
        silent = 0 if any(served) else silent + 1
        return silent == 3 or set(served) == {leaf}

    waited = cluster.wait("every ready endpoint to serve the certificate", look)
    others = [f"{a[0]}:{a[1]}" for a, der in zip(addresses, served, strict=True) if der != leaf]
    if addresses and not others:
        say(f"endpoints: all {len(addresses)} serve the certificate, waited {waited or 0:.1f} s")
        return True, {leaf}
    if not addresses:
        say("endpoints: none is ready")
    elif silent:
        say(f"endpoints: {', '.join(others)} cannot be reached from here")
    else:
        say(f"endpoints: not yet serving the certificate: {', '.join(others)}")
    return False, set(served)


def held_long(cluster: Cluster, secret: Json) -> bool:
    """Whether the Secret's data are older than what any pod that is ready may still have of it. The
    API server noted when they were written, and the time now is by its clock too."""
    entries = secret["metadata"].get("managedFields") or []
    times = [entry.get("time") for entry in entries if "f:data" in (entry.get("fieldsV1") or {})]
    if not times or None in times or not cluster.date:
        return False
    written = max(map(datetime.datetime.fromisoformat, times))
    return email.utils.parsedate_to_datetime(cluster.date) - written > LONG


def outlived(
    cluster: Cluster, secret: Json | None, served: set[bytes | None], pair: Pair
) -> set[x509.Certificate] | None:
    """The CAs that must stay although not every endpoint was seen to serve the pair: those of the
    pair that the Secret has held so far, for long. None: any CA may still be in use."""
    held = secret_pair(secret)
    if not secret or not held or flaw(held, [cluster.dns_name], now()):
        return None
    if not held_long(cluster, secret) or served - {None, held.der, pair.der}:
        return None
    say(f"{secret_label(cluster)}: had been there for long, so no pod serves what was before it")
    return {*certificates_in(held.bundle)}


def publish(cluster: Cluster, found: list[Configuration], secret: Json | None, pair: Pair) -> bool:
    """Bring the pair to webhooks, files, Secret and endpoints, in an order in which no call fails.

    False where caBundle had to be left wide. A reader of the files is served as the pods are."""
    stale = stale_anchors(found, pair)
    wide = apply_bundles(cluster, found, lambda current: widened(current, pair))
    if wide and stale:
        time.sleep(SETTLE)
    folder = cluster.arguments.cert_dir
    if folder and read_files(folder) != pair:
        write_files(folder, pair)
        say(f"{folder}: {', '.join(FILES)} written")
    if secret_pair(secret) != pair:
        cluster.settle_conflicts(lambda: write_secret(cluster, secret, pair))
        say(f"{secret_label(cluster)}: written")
        if not secret:
            restart = f"kubectl -n {cluster.arguments.namespace} rollout restart deployment whook"
            say(f"pods that waited for it start within two minutes, or at once: {restart}")
    if not stale:
        return True
    confirmed, served = confirm(cluster, found, pair)
    staying = set() if confirmed else outlived(cluster, secret, served, pair)
    if staying is None:
        return False
    if secret_pair(cluster.find("secrets", cluster.arguments.secret)) != pair:
        raise Fault(f"{secret_label(cluster)}: another run wrote it meanwhile", "run again")
    apply_bundles(cluster, found, lambda current: narrowed(current, pair, stale - staying))
    return not stale & staying


# ---------------------------------------------------------------- ensure


def issue_reason(cluster: Cluster, secret: Json | None) -> str | None:
    """Why a certificate must be issued, None where the one in the Secret will do."""
    wanted, names, pair = cluster.arguments, [cluster.dns_name], secret_pair(secret)
    if not secret:
        return "there is none"
    if not pair:
        return "one of tls.crt, tls.key, ca.crt is missing"
    if reason := replacement_reason(pair, names, wanted.key_type):
        return reason
    if signer_of(secret) != wanted.signer_name:
        return f"it was issued by {signer_of(secret) or 'an unknown signer'}"
    if wanted.ca_cert and flaw(replace(pair, bundle=read_file(wanted.ca_cert)), names, now()):
        return f"it was not issued by the CA in {wanted.ca_cert}"
    files = read_files(wanted.cert_dir) if wanted.cert_dir else None
    if files and files.key == pair.key and (reason := exposure(wanted.cert_dir)):
        return reason
    return "--renew asks for it" if wanted.renew else None


def plan(
    cluster: Cluster, found: list[Configuration], pair: Pair | None, reason: str | None
) -> list[str]:
    """What is to be done, a line a step; empty where nothing is."""
    folder = cluster.arguments.cert_dir
    steps = []
    if reason:
        steps.append(f"{secret_label(cluster)}: issue and write a certificate: {reason}")
    for one, webhook in each(found):
        if reason or not pair or bundle_of(webhook) != pair.bundle:
            steps.append(f"{one.label}, webhook {webhook['name']}: write caBundle")
    if folder and (reason or read_files(folder) != pair):
        steps.append(f"{folder}: write {', '.join(FILES)}")
    return steps


def ensure(arguments: argparse.Namespace) -> None:
    """Look, say what is to be done and why, and do it. What can fail is tried before what counts:
    a forbidden or impossible write of the Secret or the files shows before anything is made."""
    cluster = Cluster(arguments)
    found = configurations(cluster)
    for stray in [one for one in pointing(cluster) if not is_kept(cluster, one)]:
        say(f"{stray.label}: calls whook, but is left alone; {adoption(stray)}")
    for one in found if not arguments.force else ():
        refuse_other_owner(one)
    secret = cluster.find("secrets", arguments.secret)
    if secret and secret["type"] != "kubernetes.io/tls":
        message, hint = wrong_type(cluster, secret)
        raise Fault(f"{secret_label(cluster)}: {message}", hint)
    pair, reason = secret_pair(secret), issue_reason(cluster, secret)
    steps = plan(cluster, found, pair, reason)
    if pair and not steps:
        tell(f"nothing to do: {summary(cluster, pair)}")
    elif arguments.dry_run:
        for step in steps:
            tell(step)
    else:
        carry_out(cluster, found, secret, steps, bool(reason))


def carry_out(
    cluster: Cluster, found: list[Configuration], secret: Json | None, steps: list[str], renew: bool
) -> None:
    pair, arguments = secret_pair(secret), cluster.arguments
    for step in steps:
        say(f"to do: {step}")
    if renew or not pair:
        for one in found:
            refuse_forbidden(cluster, one)
        authority = signing_authority(arguments)
        write_secret(cluster, secret, pair or Pair(b"", b"", b""), dry_run="All")
        if arguments.cert_dir:
            write_files(arguments.cert_dir, None)
        pair = issue(cluster, authority)
    narrow = publish(cluster, found, secret, pair)
    tell(f"done: {summary(cluster, pair)}")
    if not narrow:
        tell("caBundle still holds an old CA, so no call fails; a run in ten minutes takes it out")


def summary(cluster: Cluster, pair: Pair) -> str:
    return f"{secret_label(cluster)}: certificate for {cluster.dns_name}, valid {span(pair.leaf)}"


# ---------------------------------------------------------------- check


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: "ok", "warning" or "error"; an error makes the exit status 1."""

    status: str
    subject: str
    message: str
    fix: str = ""


passed, warned, failed = (functools.partial(Finding, s) for s in ("ok", "warning", "error"))
RERUN = "python certs.py"


def permissions(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """What a renewal must be allowed: verb, resource, name. The module's docstring explains."""
    signer, names = arguments.signer_name, arguments.webhook_configuration
    rules = [(verb, CSR, "") for verb in ("create", "get", "delete")]
    rules += [("update", f"{CSR}/approval", ""), ("approve", "signers", signer)]
    if signer == OWN_SIGNER:
        rules += [("update", f"{CSR}/status", ""), ("sign", "signers", signer)]
    else:
        rules += [("get", "configmaps", "kube-root-ca.crt")]
    rules += [("list", kind, "") for kind in CONFIGURATIONS]
    rules += [
        (v, kind, name) for kind in CONFIGURATIONS for name in names for v in ("get", "patch")
    ]
    rules += [(verb, "secrets", arguments.secret) for verb in ("get", "update")]
    return [*rules, ("get", "services", arguments.service), ("list", "endpointslices", "")]


def check_permissions(cluster: Cluster) -> Iterator[Finding]:
    """A user who may not renew can still check, so what is missing here is a warning."""
    rules = permissions(cluster.arguments)
    missing = [asked for asked in rules if not allowed(cluster, *asked)]
    for verb, resource, name in missing:
        fix = rule(verb, GROUPS.get(resource.partition("/")[0], ""), resource, name)
        yield warned("permissions", f"you may not {verb} {resource} {name}".strip(), fix)
    if not missing:
        yield passed("permissions", f"all {len(rules)} that a renewal needs")


def check_configurations(cluster: Cluster) -> Iterator[Finding]:
    """Each webhook's Service, port, path and caBundle."""
    service = cluster.find("services", cluster.arguments.service)
    ports = [port["port"] for port in (service or {"spec": {}})["spec"].get("ports", [])]
    for _, webhook in each(configurations(cluster)):
        subject, target = f"webhook {webhook['name']}", webhook["clientConfig"]["service"]
        port, path = target.get("port", 443), target.get("path", "/")
        if not service:
            message = f"service {target['namespace']}/{target['name']} does not exist"
            yield failed(subject, message, "kubectl apply -f manifests/")
        elif port not in ports:
            message = f"port {port} is none of the service's ports {ports}"
            yield failed(subject, message, "set clientConfig.service.port to its port")
        if not re.fullmatch(r"/(mutate|validate)(/[^/]+)?", path):
            fix = "set clientConfig.service.path to /mutate or /validate, alone or with /NAME"
            yield failed(subject, f"whook has no path {path}", fix)
        bundle = bundle_of(webhook)
        blocks, anchors = bundle.count(b"-----BEGIN"), certificates_in(bundle)
        good = len(alive(anchors, now()))
        if good < max(blocks, 1):
            message = f"caBundle: {good} of {blocks} PEM blocks are a CA that is valid now"
            yield (warned if good else failed)(subject, message, RERUN)


def check_strays(cluster: Cluster) -> Iterator[Finding]:
    """Configurations that call us, but are left alone by every run, and so by the renewal."""
    for one in pointing(cluster):
        if not is_kept(cluster, one):
            yield warned(one.label, "calls whook, but is left alone", adoption(one))


def check_secret(cluster: Cluster) -> Iterator[Finding]:
    """Type, keys, key and certificate, names, expiry; and the leaf against every caBundle."""
    subject, secret = secret_label(cluster), cluster.find("secrets", cluster.arguments.secret)
    pair = secret_pair(secret)
    if not secret:
        yield failed(subject, "does not exist", RERUN)
        return
    if secret["type"] != "kubernetes.io/tls":
        yield failed(subject, *wrong_type(cluster, secret))
    if not pair:
        yield failed(subject, "lacks one of tls.crt, tls.key, ca.crt", RERUN)
        return
    if reason := renewal_flaw(pair, [cluster.dns_name]):
        yield failed(subject, reason, RERUN)
    else:
        yield passed(subject, f"certificate valid {span(pair.leaf)}")
    for _, webhook in each(configurations(cluster)):
        name = f"webhook {webhook['name']}"
        if reason := renewal_flaw(replace(pair, bundle=bundle_of(webhook)), [cluster.dns_name]):
            yield failed(name, f"its caBundle does not fit {subject}: {reason}", RERUN)
        else:
            yield passed(name, f"trusts {subject}")


def check_endpoints(cluster: Cluster) -> Iterator[Finding]:
    """There is one, and each serves the Secret's certificate, or another that is trusted."""
    found, namespace = configurations(cluster), cluster.arguments.namespace
    addresses = endpoints(cluster, found)
    if not addresses:
        message = f"service {namespace}/{cluster.arguments.service} has no ready endpoint"
        yield failed("endpoints", message, f"kubectl -n {namespace} get pods")
    pair = secret_pair(cluster.find("secrets", cluster.arguments.secret))
    bundles = {bundle_of(webhook) for _, webhook in each(found)}
    for address, der in zip(addresses, dial_all(cluster, addresses), strict=True):
        subject = f"endpoint {address[0]}:{address[1]}"
        if not der:
            fix = "from outside the cluster that is normal; else see the pod's log"
            yield warned(subject, "cannot be reached from here", fix)
        elif pair and der == pair.der:
            yield passed(subject, "serves the secret's certificate")
        else:
            message = "serves another certificate than the secret's, one that is "
            fix = f"kubectl -n {namespace} rollout restart deployment whook"
            if all(trusts(address, cluster.dns_name, bundle) for bundle in bundles):
                yield warned(subject, message + "still trusted", fix)
            else:
                yield failed(subject, message + "not trusted", fix)


def trusts(address: Address, name: str, bundle: bytes) -> bool:
    anchors = pem(*certificates_in(bundle))
    with contextlib.suppress(ssl.SSLCertVerificationError):
        return bool(anchors and dial(address, name, anchors))
    return False


def selects(selector: Json, labels: dict[str, str]) -> bool:
    """A label selector, as the API server reads it."""
    verdicts = [labels.get(k) == v for k, v in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or []:
        present, listed = term["key"] in labels, labels.get(term["key"]) in term.get("values", [])
        by_operator = {"In": listed, "NotIn": not listed, "Exists": present}
        verdicts.append(by_operator.get(term["operator"], not present))
    return all(verdicts)


def check_namespaces(cluster: Cluster) -> Iterator[Finding]:
    """Who opted in, that whook's own namespace did not, and a pod that goes all the way."""
    own = cluster.arguments.namespace
    labels = {
        namespace["metadata"]["name"]: namespace["metadata"].get("labels") or {}
        for namespace in cluster.call("list", "namespaces")["items"]
    }
    for one, webhook in each(configurations(cluster)):
        subject, selector = f"webhook {webhook['name']}", webhook.get("namespaceSelector") or {}
        chosen = [name for name in labels if selects(selector, labels[name])]
        if own in chosen:
            fix = f"add to namespaceSelector: kubernetes.io/metadata.name NotIn [{own}]"
            yield warned(subject, f"selects namespace {own}: whook could lock itself out", fix)
        if not chosen:
            fix = "kubectl label namespace default whook=enabled"
            yield warned(subject, "selects no namespace", fix)
        elif own not in chosen and one.resource.startswith("mutating"):
            yield try_pod(cluster, subject, chosen[0])


def try_pod(cluster: Cluster, subject: str, namespace: str) -> Finding:
    """A dry-run pod in that namespace, beside one in whook's own, which no webhook touches."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "check", "image": "registry.invalid/check:1", "securityContext": security}
    spec = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "whook-check"}, "spec": spec}

    def created(where: str) -> Json:
        answer = cluster.call("create", "pods", body=pod, namespace=where, dry_run="All")
        metadata = answer["metadata"]
        return {k: metadata.get(k) for k in ("labels", "annotations")} | {"spec": answer["spec"]}

    what = f"a dry-run pod in namespace {namespace}"
    try:
        mutated = created(namespace) != created(cluster.arguments.namespace)
    except Fault as fault:
        if "denied the request" in str(fault):
            return passed(subject, f"{what} was denied: {fault}")
        return failed(subject, f"{what} failed: {fault}", "see the other findings")
    if mutated:
        return passed(subject, f"{what} came back mutated")
    fix = "should a policy change it? see whook's log: failurePolicy Ignore hides a failed call"
    return warned(subject, f"{what} came back as it was sent", fix)


CHECKS = (
    *(check_permissions, check_configurations, check_strays),
    *(check_secret, check_endpoints, check_namespaces),
)


def check(arguments: argparse.Namespace) -> int:
    """Follow the API server's call hop by hop. What can't be looked at counts as an error."""
    cluster, findings = Cluster(arguments), list[Finding]()
    for look in CHECKS:
        try:
            findings += look(cluster)
        except Unreachable:
            raise
        except Fault as fault:
            hop = look.__name__.removeprefix("check_")
            findings.append(failed(hop, str(fault), fault.hint))
    findings = list(dict.fromkeys(findings))
    if arguments.output == "json":
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            tell(f"{finding.status:8} {finding.subject}: {finding.message}")
            if finding.fix:
                tell(f"         fix: {finding.fix}")
    return int("error" in [finding.status for finding in findings])


# ---------------------------------------------------------------- ca-bundle


def client_configs(node: Any, seen: set[int]) -> Iterator[Any]:
    """Every mapping under the key "clientConfig" in a YAML node tree, aliased ones once."""
    if id(node) in seen or not isinstance(node.value, list):
        return
    seen.add(id(node))
    for item in node.value:
        key, value = item if isinstance(item, tuple) else (None, item)
        if key and key.value == "clientConfig":
            yield value
        yield from client_configs(value, seen)


def ca_bundle(arguments: argparse.Namespace) -> None:
    """Put the Secret's CA into every webhook of ours in a manifest, and in place of ${CA_BUNDLE}.

    The YAML is edited as nodes, not as values: what stays is written as it was read."""
    import yaml

    source = sys.stdin.buffer.read(MANIFEST_LIMIT + 1)
    if len(source) > MANIFEST_LIMIT:
        raise Fault("the manifest is longer than 16 MiB", "is it the right file?")
    cluster = Cluster(arguments)
    pair = secret_pair(cluster.find("secrets", arguments.secret))
    if not pair:
        raise Fault(
            f"{secret_label(cluster)}: holds no certificate yet", "python certs.py makes it"
        )
    encoded, filled = encode(pair.bundle), source.count(b"${CA_BUNDLE}")
    try:
        text = source.decode("utf-8").replace("${CA_BUNDLE}", encoded)
        documents = [node for node in yaml.compose_all(text) if node]
        for config in client_configs(yaml.SequenceNode("", documents), set()):
            filled += fill(config, encoded, arguments)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Fault(
            f"stdin is no YAML manifest: {error}", "kubectl apply would not take it"
        ) from None
    if not filled:
        message = f"no webhook for service {arguments.namespace}/{arguments.service} on stdin"
        raise Fault(message, "see --namespace and --service; or write ${CA_BUNDLE} where it goes")
    yaml.serialize_all(documents, sys.stdout, explicit_start=True, allow_unicode=True, width=2**31)


def fill(config: Any, encoded: str, arguments: argparse.Namespace) -> bool:
    """Set caBundle in a clientConfig node if it is for our Service."""
    import yaml

    def fields(node: Any) -> Json:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        return {key.value: value for key, value in pairs}

    service = {key: value.value for key, value in fields(fields(config).get("service")).items()}
    if (service.get("namespace"), service.get("name")) != (arguments.namespace, arguments.service):
        return False
    kept = [(key, value) for key, value in config.value if key.value != "caBundle"]
    entry = [yaml.ScalarNode("tag:yaml.org,2002:str", text) for text in ("caBundle", encoded)]
    config.value = [*kept, tuple(entry)]
    return True


# ---------------------------------------------------------------- command line

USAGE = """\
usage: python certs.py [ensure]     issue, publish, renew: whatever is called for, and nothing else
       python certs.py check        say what is wrong, hop by hop, and how to mend it
       python certs.py local        certificates for this machine, without a cluster
       python certs.py ca-bundle    fill in caBundle: a manifest on stdin, the same on stdout

which cluster, and what in it (ensure, check, ca-bundle)
  --kubeconfig FILE, --context NAME     as for kubectl; in a pod its ServiceAccount is used
  --namespace whook, --service whook, --secret whook-certs
  --webhook-configuration whook         of both kinds, beside those that are labelled
                                        app.kubernetes.io/name=whook; may be repeated
  --timeout 60                          seconds for the whole run

which certificate (ensure, check)
  --signer-name whook.local/serving     signed here by a CA whose key is thrown away; or any other:
                                        kubernetes.io/kubelet-serving on most clusters,
                                        beta.eks.amazonaws.com/app-serving on EKS
  --ca-cert FILE --ca-key FILE          sign with this CA; --ca-cert alone: the other signer's CA

ensure, local
  --key-type ecdsa-p256                 or rsa-2048, rsa-3072
  --validity 90d                        or hours (36h) or minutes (30m); renewed in its last third
  --cert-dir webhook-certs              for ca.pem, server-cert.pem, server-key.pem; "" for no
                                        files; local has its own, local-certs

ensure      --dry-run                   print the plan, write nothing
            --renew                     issue a new certificate although the old one is good
            --force                     write caBundle although an injector or another tool keeps it
check       --output text|json
local       --host NAME|IP              one more name in the certificate; may be repeated

  python certs.py
  python certs.py --signer-name kubernetes.io/kubelet-serving --timeout 180
  python certs.py ca-bundle < manifests/80-mutatingwebhookconfiguration.yaml | kubectl apply -f -
"""
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Parser(argparse.ArgumentParser):
    """argparse with our own words."""

    def format_help(self) -> str:
        return USAGE

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"whook: error: {message}\nwhook: hint: see python certs.py --help\n")


def dns_name(text: str) -> str:
    if len(text) > 253 or not all(map(LABEL.fullmatch, text.split("."))):
        raise argparse.ArgumentTypeError(f'"{text}" is no name: a-z, 0-9, - and . are allowed')
    return text


def host(text: str) -> str:
    return str(address_of(text) or dns_name(text))


def signer_name(text: str) -> str:
    domain, _, path = text.partition("/")
    if not (dns_name(domain) and "." in domain and re.fullmatch(r"[A-Za-z0-9._:-]+", path)):
        raise argparse.ArgumentTypeError(f'"{text}" is no signer name such as {OWN_SIGNER}')
    return text


def duration(text: str) -> datetime.timedelta:
    units = {"d": "days", "h": "hours", "m": "minutes"}
    match = re.fullmatch(r"(\d{1,7})([dhm])", text)
    length = datetime.timedelta(**{units[match[2]]: int(match[1])}) if match else None
    if not length or not MINIMUM_VALIDITY <= length <= MAXIMUM_VALIDITY:
        raise argparse.ArgumentTypeError(f'"{text}" is no time from 10m to 3650d, such as 90d')
    return length


def seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", text) or not float(text):
        raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds')
    return float(text)


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and refuse what contradicts itself, before any work."""
    cluster, key, signer = (Parser(add_help=False, allow_abbrev=False) for _ in range(3))
    for flag, default in (("namespace", "whook"), ("service", "whook"), ("secret", "whook-certs")):
        cluster.add_argument(f"--{flag}", type=dns_name, default=default)
    cluster.add_argument("--webhook-configuration", type=dns_name, action="append")
    cluster.add_argument("--kubeconfig")
    cluster.add_argument("--context")
    cluster.add_argument("--timeout", type=seconds, default="60")
    signer.add_argument("--signer-name", type=signer_name, default=OWN_SIGNER)
    key.add_argument("--key-type", choices=KEY_TYPES, default="ecdsa-p256")
    key.add_argument("--validity", type=duration, default="90d")
    top = Parser(allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, *parents: Parser) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=parents, allow_abbrev=False)

    ensuring = command("ensure", cluster, signer, key)
    ensuring.add_argument("--cert-dir", default="webhook-certs")
    for flag in ("--ca-cert", "--ca-key"):
        ensuring.add_argument(flag)
    for flag in ("--dry-run", "--renew", "--force"):
        ensuring.add_argument(flag, action="store_true")
    command("check", cluster, signer).add_argument(
        "--output", choices=("text", "json"), default="text"
    )
    alone = command("local", key)
    alone.add_argument("--cert-dir", default="local-certs")
    alone.add_argument("--host", type=host, action="append", default=[])
    command("ca-bundle", cluster)
    bare = not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help"))
    arguments = top.parse_args(["ensure", *argv] if bare else argv)
    if arguments.command == "ensure":
        own = arguments.signer_name == OWN_SIGNER
        if arguments.ca_key and not (own and arguments.ca_cert):
            top.error(f"--ca-key needs --ca-cert, and signer {OWN_SIGNER}: others have their own")
        if arguments.ca_cert and own and not arguments.ca_key:
            top.error(f"--ca-cert without --ca-key is for a signer other than {OWN_SIGNER}")
    if arguments.command == "local":
        if not arguments.cert_dir:
            top.error("--cert-dir may not be empty: local makes files")
    elif not arguments.webhook_configuration:
        arguments.webhook_configuration = ["whook"]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = arguments_of(sys.argv[1:] if argv is None else argv)
    commands = {"ensure": ensure, "check": check, "local": local, "ca-bundle": ca_bundle}
    try:
        if arguments.command != "local":
            require("cryptography")
        return commands[arguments.command](arguments) or 0
    except KeyboardInterrupt:
        fault = Fault("interrupted", "run again: it goes on from what is there")
    except OSError as error:
        fault = Fault(f"{error.strerror or error}", "is the disk full, or the temporary folder?")
    except Fault as caught:
        fault = caught
    say(f"whook: error: {fault}")
    if fault.hint:
        say(f"whook: hint: {fault.hint}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
