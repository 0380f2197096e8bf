"""Certificates for tests, good and bad: `pki.Authority("a CA").issue(["localhost"]).write(folder)`.

What a case needs differs from case to case, so everything that can be wrong has its argument.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

with contextlib.suppress(ImportError):  # test_whook.HouseRules runs without any package
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate (chain) and its key, as PEM."""

    cert_pem: bytes
    key_pem: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert_pem)

    def write(self, folder: Path, cert: str = "server-cert.pem", key: str = "server-key.pem"):
        """Write both files and return their paths, certificate first."""
        paths = Path(folder, cert), Path(folder, key)
        paths[0].write_bytes(self.cert_pem)
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(self.key_pem)
        return paths


class Authority:
    """A CA: a root, or below `parent` an intermediate. Without `identifiers` nothing that it signs
    names its key, as on EKS; without `key_usage` it does not say what its key is for, as on
    MicroK8s. Strict clients refuse both."""

    def __init__(
        self,
        name="test CA",
        not_before=-DAY,
        not_after=30 * DAY,
        parent=None,
        identifiers=True,
        key_usage=True,
    ):
        self.key = new_key()
        self.parent, self.identifiers = parent, identifiers
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        half = builder(self.name, self.key.public_key(), not_before, not_after)
        half = half.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        if key_usage:
            half = half.add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
        self.certificate = (parent or self).sign(half)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, half: x509.CertificateBuilder) -> x509.Certificate:
        half = half.issuer_name(self.name)
        if self.identifiers:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            half = half.add_extension(identifier, critical=False)
        return half.sign(self.key, hashes.SHA256())

    def issue(
        self,
        names=("localhost", "127.0.0.1", "::1"),
        not_before=-DAY,
        not_after=20 * DAY,
        *,
        key: Key | None = None,
        public_key=None,
        client=False,
        common_name="test",
        organization=None,
    ) -> Pair:
        """A leaf; times are timedeltas from now, or datetimes. `client` is for client
        authentication, `public_key` signs for a key that is elsewhere, and without `names`
        there is no subject alternative name."""
        key = key or new_key()
        public_key = public_key or key.public_key()
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organization:
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        half = (
            builder(x509.Name(parts), public_key, not_before, not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage(digital_signature=True, key_encipherment=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if names:
            alternative = x509.SubjectAlternativeName([general_name(name) for name in names])
            half = half.add_extension(alternative, critical=False)
        chain = self.sign(half).public_bytes(serialization.Encoding.PEM)
        return Pair(chain + (self.pem if self.parent else b""), key_pem(key))


def builder(subject, public_key, not_before, not_after) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(not_before))
        .not_valid_after(moment(not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def moment(time: datetime.timedelta | datetime.datetime) -> datetime.datetime:
    if isinstance(time, datetime.datetime):
        return time
    return datetime.datetime.now(datetime.UTC) + time


def usage(**wanted: bool) -> x509.KeyUsage:
    every = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**every, **wanted})


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def new_key(kind: str = "ec") -> Key:
    if kind == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
