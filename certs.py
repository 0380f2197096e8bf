#!/usr/bin/env python3
"""Certificates for whook: made here, signed through the cluster's certificates API, kept working.

    certs.py local    a CA and a serving certificate for this machine: no cluster, no network

What it holds to: the private key is made here and never printed or logged; files are written whole
or not at all, the key with mode 0600; the key of a CA made here is thrown away after one signature.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import os
import re
import ssl
import sys
import tempfile
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

KEY_TYPES = ("ecdsa-p256", "rsa-2048", "rsa-3072")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "whook.whook.svc")
BACKDATE = datetime.timedelta(minutes=5)  # for clocks that differ, as the built-in signer does
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL
)


class Fault(Exception):
    """What stops the program: one message and one hint, neither holding a secret."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


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


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def new_key(key_type: str) -> PrivateKey:
    if key_type == "ecdsa-p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type[4:]))


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def names_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> set[str]:
    """The DNS names and IP addresses in the subject alternative name; a common name counts for
    nothing, as for the API server."""
    with contextlib.suppress(x509.ExtensionNotFound):
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {*san.get_values_for_type(x509.DNSName)} | {
            str(address) for address in san.get_values_for_type(x509.IPAddress)
        }
    return set()


def key_usage(*names: str) -> x509.KeyUsage:
    known = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in names for name in known})


def new_authority(until: datetime.datetime) -> tuple[x509.Certificate, PrivateKey]:
    """A CA for one signature, under a name of its own so that no two are ever confused."""
    key, serial = new_key("ecdsa-p256"), x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"whook CA {serial:x}"[:24])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now() - BACKDATE)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
    )
    return builder.sign(key, hashes.SHA256()), key


def sign(
    public_key: PublicKey,
    names: Iterable[str],
    until: datetime.datetime,
    authority: tuple[x509.Certificate, PrivateKey],
) -> x509.Certificate:
    """A serving certificate with all that RFC 5280 asks for: Python 3.13 clients insist on it.

    It ends no later than its CA."""
    issuer, issuer_key = authority
    usages = ["digital_signature"]
    if isinstance(public_key, rsa.RSAPublicKey):
        usages.append("key_encipherment")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whook")]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now() - BACKDATE, issuer.not_valid_before_utc))
        .not_valid_after(min(until, issuer.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(map(general_name, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(*usages), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(authority_identifier(issuer), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The issuer's own key identifier where it has one: a CA may have chosen any."""
    with contextlib.suppress(x509.ExtensionNotFound):
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    key = typing.cast(PublicKey, issuer.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


# ---------------------------------------------------------------- verification


def certificates_in(text: bytes) -> list[x509.Certificate]:
    """The readable certificates of a PEM text, in order; what is broken is left out, as in Go."""
    found = []
    for block in PEM_CERTIFICATE.findall(text):
        with contextlib.suppress(ValueError):
            found.append(x509.load_pem_x509_certificate(block))
    return found


def alive(
    certificates: Iterable[x509.Certificate], at: datetime.datetime
) -> list[x509.Certificate]:
    return [c for c in certificates if c.not_valid_before_utc <= at <= c.not_valid_after_utc]


def client_context(anchors: bytes) -> ssl.SSLContext:
    """A client that judges as the API server's Go does: any certificate of the bundle is an anchor,
    an intermediate too, and a name counts only where it stands in the subject alternative name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=anchors.decode("ascii"))
    return context


def server_context(pair: Pair) -> ssl.SSLContext:
    """A server with this pair. OpenSSL reads only files: this one's key is encrypted, and gone."""
    password = os.urandom(32).hex()
    key = serialization.load_pem_private_key(pair.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.encode()),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory(prefix="whook-") as folder:
        path = Path(folder, "pair.pem")
        path.write_bytes(key + pair.chain)
        context.load_cert_chain(path, password=password)
    return context


def prove(pair: Pair, name: str, anchors: bytes) -> None:
    """Serve TLS with the pair, in memory, to a client that trusts only `anchors`.

    Raises ssl.SSLError, with OpenSSL's reason, where that client would refuse."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(anchors).wrap_bio(outward, inward, server_hostname=name)
    server = server_context(pair).wrap_bio(inward, outward, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()


def flaw(pair: Pair, names: Iterable[str], at: datetime.datetime) -> str | None:
    """Why a client that trusts the pair's bundle would refuse it at that time, None if it would not."""
    try:
        leaf, key = pair.leaf, serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError):
        return "certificate or key cannot be read"
    if leaf.public_key() != key.public_key():
        return "the certificate does not belong to the key"
    if missing := [name for name in names if name not in names_of(leaf)]:
        return f"the certificate does not name {', '.join(missing)}"
    if not alive([leaf], at):
        return f"the certificate is valid only {span(leaf)}"
    anchors = alive(certificates_in(pair.bundle), at)
    if not anchors:
        return "the bundle holds no valid CA"
    try:
        prove(pair, next(iter(names)), pem(*anchors))
    except ssl.SSLError as error:
        return f"the certificate does not verify: {getattr(error, 'verify_message', error.reason)}"
    return None


def renewal_reason(pair: Pair, names: Sequence[str], key_type: str) -> str | None:
    """Why this pair must be replaced, None while it is good for more than a third of its life."""
    if reason := flaw(pair, names, now()):
        return reason
    leaf = pair.leaf
    if type_of(leaf.public_key()) != key_type:
        return f"the key is {type_of(leaf.public_key())}, not {key_type}"
    third = (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 3
    if flaw(pair, names, now() + third):
        return f"under a third of its life is left, the certificate is valid {span(leaf)}"
    return None


def type_of(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ecdsa-p{key.key_size}"
    return f"rsa-{key.key_size}" if isinstance(key, rsa.RSAPublicKey) else type(key).__name__


def span(certificate: x509.Certificate) -> str:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return f"from {stamp(begin)} to {stamp(end)}"


def stamp(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# ---------------------------------------------------------------- files

FILES = {"ca.pem": "bundle", "server-key.pem": "key", "server-cert.pem": "chain"}


def read_files(folder: Path) -> Pair | None:
    try:
        return Pair(**{field: (folder / name).read_bytes() for name, field in FILES.items()})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Fault(f"cannot read {error.filename}: {error.strerror}", "see --cert-dir") from None


def write_files(folder: Path, pair: Pair) -> None:
    """Each file whole or not at all, mode 0600, the certificate last: a reader that waits for a
    pair that fits sees the old one, then the new one."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, field in FILES.items():
            write_file(folder / name, getattr(pair, field))
    except OSError as error:
        raise Fault(
            f"cannot write {folder}: {error.strerror}", "name a folder of yours with --cert-dir"
        ) from None


def write_file(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)  # mode 0600
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


def local(arguments: argparse.Namespace) -> None:
    """Certificates for this machine, kept while they are good for every name asked for."""
    folder, names = Path(arguments.cert_dir), list(dict.fromkeys([*LOCAL_NAMES, *arguments.host]))
    pair = read_files(folder)
    reason = renewal_reason(pair, names, arguments.key_type) if pair else "there are none yet"
    if pair and not reason:
        print(f"{folder}: certificates kept, valid {span(pair.leaf)}")
        return
    until = now() + arguments.validity
    authority, key = new_authority(until), new_key(arguments.key_type)
    leaf = sign(key.public_key(), names, until, authority)
    write_files(folder, Pair(pem(leaf), key_pem(key), pem(authority[0])))
    print(f"{folder}: certificates made for {', '.join(names)}, valid {span(leaf)}: {reason}")


# ---------------------------------------------------------------- command line

USAGE = """\
certs.py local [--host NAME|IP]... [--cert-dir webhook-certs]
                      [--key-type ecdsa-p256|rsa-2048|rsa-3072] [--validity 90d]

  python certs.py local                        a CA and a certificate for this machine
  python certs.py local --host laptop.lan      one more name in it
"""


def host(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    if len(text) > 253 or not all(map(DNS_LABEL.fullmatch, text.split("."))):
        raise argparse.ArgumentTypeError(f'"{text}" is neither a DNS name nor an IP address')
    return text


def duration(text: str) -> datetime.timedelta:
    match = re.fullmatch(r"(\d{1,6})([dhm])", text)
    unit = {"d": "days", "h": "hours", "m": "minutes"}
    span = datetime.timedelta(**{unit[match[2]]: int(match[1])}) if match else None
    if not span or not MINIMUM_VALIDITY <= span <= MAXIMUM_VALIDITY:
        raise argparse.ArgumentTypeError(f'"{text}" is not a time from 10m to 3650d, such as 90d')
    return span


MINIMUM_VALIDITY = datetime.timedelta(minutes=10)  # expirationSeconds' own minimum
MAXIMUM_VALIDITY = datetime.timedelta(days=3650)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="certs.py", usage=USAGE, add_help=True)
    top.add_argument("command", choices=["local"])
    top.add_argument("--host", type=host, action="append", default=[])
    top.add_argument("--cert-dir", default="webhook-certs")
    top.add_argument("--key-type", choices=KEY_TYPES, default="ecdsa-p256")
    top.add_argument("--validity", type=duration, default="90d")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        local(arguments)
    except Fault as fault:
        print(f"whook: error: {fault}", file=sys.stderr)
        if fault.hint:
            print(f"whook: hint: {fault.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
