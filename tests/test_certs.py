"""certs.py, section by section; then whole runs, against a stand-in API server and a real one.

The same cases run on both: `Cases` stands once before tests.apiserver.Memory and, where the
binaries are found, once before a real control plane (`RealCluster` says what is missing elsewhere).
"""

from __future__ import annotations

import ast
import base64
import contextlib
import datetime
import importlib.util
import io
import json
import os
import pkgutil
import pty
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import warnings
from pathlib import Path
from unittest import mock

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import certs
from tests import controlplane, pki
from tests.apiserver import Endpoint, Front, Memory, Refusal, Relay

HERE = Path(__file__).resolve().parent.parent
ROLES = HERE / "manifests" / "renewal"
NAME = "whook.whook.svc"
DAY = datetime.timedelta(days=1)
OTHER_SIGNER = "example.com/serving"
STILL_WIDE = "caBundle still holds an old CA, so no call fails; a run in ten minutes takes it out\n"
NO_CONFIGURATION = "no webhook configuration labelled app.kubernetes.io/name=whook points at "
NO_CONFIGURATION += "service whook/whook"
SECRET = "/api/v1/namespaces/whook/secrets/whook-certs"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MUTATING = f"{ADMISSION}/mutatingwebhookconfigurations"
VALIDATING = f"{ADMISSION}/validatingwebhookconfigurations"
CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/whook/endpointslices"


def pair_of(issued: pki.Pair, bundle: bytes) -> certs.Pair:
    return certs.Pair(issued.cert_pem, issued.key_pem, bundle)


def without_cryptography() -> types.ModuleType:
    """The program as it is where the package is not installed."""
    spec = importlib.util.spec_from_file_location("bare_certs", HERE / "certs.py")
    module = sys.modules["bare_certs"] = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"cryptography": None}):
        spec.loader.exec_module(module)
    return module


def run(*argv: str, stdin: bytes = b"", program=certs) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one run of the program, in this process."""
    out, err = io.StringIO(), io.StringIO()
    source = mock.Mock(buffer=io.BytesIO(stdin))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with mock.patch.object(sys, "stdin", source):
            try:
                status = program.main(argv)
            except SystemExit as exit:
                status = int(exit.code or 0)
    return status, out.getvalue(), err.getvalue()


class InFolder(unittest.TestCase):
    """Each test in an empty folder of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="certs-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.enterContext(contextlib.chdir(self.folder))


# ---------------------------------------------------------------- keys, certificates, verification


class Certificates(unittest.TestCase):
    def made(self, key_type: str = "ecdsa-p256", names=(NAME, "127.0.0.1")) -> certs.Pair:
        until = certs.now() + 90 * DAY
        authority, key = certs.new_authority(until), certs.new_key(key_type)
        leaf = certs.sign(key.public_key(), names, until, authority)
        return certs.Pair(certs.pem(leaf), certs.key_pem(key), certs.pem(authority[0]))

    def test_strict_clients_take_every_key_type(self):
        for key_type in certs.KEY_TYPES:
            with self.subTest(key_type):
                pair = self.made(key_type)
                self.assertEqual(certs.type_of(pair.leaf.public_key()), key_type)
                client = ssl.create_default_context(cadata=pair.bundle.decode())
                client.verify_flags |= ssl.VERIFY_X509_STRICT
                with mock.patch.object(certs, "client_context", return_value=client):
                    certs.prove(pair, NAME, pair.bundle)
                    certs.prove(pair, "127.0.0.1", pair.bundle)

    def test_what_stands_in_a_certificate(self):
        pair = self.made()
        self.assertEqual(certs.names_of(pair.leaf), {NAME, "127.0.0.1"})
        self.assertEqual(pair.leaf.subject.rfc4514_string(), "CN=whook")
        self.assertLess(pair.leaf.not_valid_before_utc, certs.now() - DAY / 300)
        ca = certs.certificates_in(pair.bundle)[0]
        self.assertEqual(ca.subject, pair.leaf.issuer)
        self.assertNotEqual(ca.subject, certs.certificates_in(self.made().bundle)[0].subject)

    def test_a_leaf_ends_with_its_ca(self):
        authority = certs.new_authority(certs.now() + DAY)
        key = certs.new_key("ecdsa-p256").public_key()
        leaf = certs.sign(key, [NAME], certs.now() + 90 * DAY, authority)
        self.assertEqual(leaf.not_valid_after_utc, authority[0].not_valid_after_utc)

    def test_a_key_never_shows(self):
        self.assertNotIn("PRIVATE", repr(self.made()))

    def test_flaws(self):
        root = pki.Authority("root")
        middle = pki.Authority("middle", parent=root)
        old = pki.Authority("old", not_before=-3 * DAY, not_after=-DAY)
        good, other = root.issue([NAME]), root.issue([NAME])
        valid = f"valid only {certs.span(root.issue([NAME], -3 * DAY, -DAY).certificate)}"
        swapped = pki.Pair(good.cert_pem, other.key_pem)
        below = middle.issue([NAME])
        bare = pki.Pair(certs.pem(below.certificate), below.key_pem)
        cases = [
            (good, root.pem, None),
            (good, b"junk\n" + old.pem + root.pem, None),
            (below, root.pem, None),
            (below, middle.pem, None),
            (bare, middle.pem, None),
            (bare, root.pem, "the certificate does not verify: "),
            (swapped, root.pem, "the certificate does not belong to the key"),
            (pki.Pair(b"", good.key_pem), root.pem, "the certificate or the key cannot be read"),
            (pki.Pair(good.cert_pem, b"x"), root.pem, "the certificate or the key cannot be read"),
            (root.issue(["a.b"]), root.pem, f"the certificate does not name {NAME}"),
            (root.issue([], common_name=NAME), root.pem, f"the certificate does not name {NAME}"),
            (root.issue([NAME], -3 * DAY, -DAY), root.pem, f"the certificate is {valid}"),
            (good, old.pem, "the bundle holds no valid CA"),
            (good, b"", "the bundle holds no valid CA"),
            (good, pki.Authority("root").pem, "the certificate does not verify: "),
            (root.issue([NAME], client=True), root.pem, "the certificate does not verify: uns"),
        ]
        for number, (issued, bundle, expected) in enumerate(cases):
            with self.subTest(number, expected=expected):
                actual = certs.flaw(pair_of(issued, bundle), [NAME], certs.now())
                if expected and expected.endswith(("verify: ", "uns")):
                    self.assertTrue(actual and actual.startswith(expected), actual)
                else:
                    self.assertEqual(actual and actual[: len(expected or "")], expected)

    def test_renewal_is_due_in_the_last_third_of_leaf_or_ca(self):
        root = pki.Authority("root", -DAY, 90 * DAY)
        short = pki.Authority("short", -DAY, 10 * DAY)
        cases = [
            (root.issue([NAME], -20 * DAY, 11 * DAY), root, False),
            (root.issue([NAME], -20 * DAY, 9 * DAY), root, True),
            (short.issue([NAME], -DAY, 60 * DAY), short, True),
        ]
        for issued, authority, due in cases:
            with self.subTest(due=due):
                flaw = certs.renewal_flaw(pair_of(issued, authority.pem), [NAME])
                self.assertEqual(bool(flaw), due, flaw)
                self.assertTrue(not due or flaw.startswith("less than a third of its life is left"))

    def test_the_proof_leaves_no_file_behind(self):
        pair = self.made()
        before = [sorted(os.listdir(folder)) for folder in ("/dev/shm", tempfile.gettempdir())]
        certs.prove(pair, NAME, pair.bundle)
        after = [sorted(os.listdir(folder)) for folder in ("/dev/shm", tempfile.gettempdir())]
        new = {*after[0], *after[1]} - {*before[0], *before[1]}
        self.assertEqual([name for name in new if name.startswith("whook-")], [])

    @unittest.skipUnless(hasattr(os, "memfd_create"), "only where there is memfd_create")
    def test_the_proof_leaves_no_file_behind_when_it_is_killed(self):
        code = "import os, ssl, certs\nkilled = lambda *_: os.kill(os.getpid(), 9)\n"
        code += "ssl.SSLContext.load_cert_chain = killed\n"
        code += "certs.server_context(certs.Pair(b'chain', b'key', b''))"
        with tempfile.TemporaryDirectory() as folder:
            before = {*os.listdir("/dev/shm")}
            environment = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": folder}
            done = subprocess.run([sys.executable, "-c", code], env=environment)
            self.assertEqual((done.returncode, os.listdir(folder)), (-9, []))
            new = {*os.listdir("/dev/shm")} - before
            self.assertEqual([name for name in new if name.startswith("whook-")], [])

    def test_the_proof_without_memfd(self):
        if hasattr(os, "memfd_create"):
            self.addCleanup(setattr, os, "memfd_create", os.memfd_create)
            del os.memfd_create
        self.test_the_proof_leaves_no_file_behind()
        pair = self.made()
        with certs.readable(pair.key) as path:
            self.assertEqual(Path(path).read_bytes(), pair.key)
            self.assertEqual(Path(path).parent.stat().st_mode & 0o777, 0o700)


# ---------------------------------------------------------------- files, local


class Local(InFolder):
    """Made by the package cryptography."""

    program, prelude = certs, ""

    def local(self, *argv: str) -> tuple[int, str, str]:
        return run("local", *argv, program=self.program)

    def alone(self, code: str) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own."""
        code = f"import sys; {self.prelude}import certs; {code}"
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )

    def test_made_kept_and_made_again(self):
        status, out, err = self.local()
        self.assertEqual((status, err), (0, ""))
        names = "localhost, 127.0.0.1, ::1, whook.whook.svc"
        self.assertRegex(out, f"^local-certs: certificates made for {names}, valid .*none\n$")
        for name in certs.FILES:
            self.assertEqual((self.folder / "local-certs" / name).stat().st_mode & 0o777, 0o600)
        first = certs.read_files("local-certs")
        self.assertIsNone(certs.flaw(first, certs.LOCAL_NAMES, certs.now()))
        self.assertRegex(self.local()[1], "^local-certs: certificates kept, valid ")
        self.assertEqual(certs.read_files("local-certs"), first)
        out = self.local("--host", "laptop.lan", "--host", "2001:DB8::1")[1]
        self.assertIn("the certificate does not name laptop.lan, 2001:db8::1", out)
        self.assertIn("kept", self.local("--host", "laptop.lan")[1])
        self.assertIn("the key is ecdsa-p256, not rsa-2048", self.local("--key-type=rsa-2048")[1])

    def test_the_ca_before_stays_trusted_until_it_expires_or_others_could_have_put_it_there(self):
        self.local("--validity=30m")
        (first,) = certs.certificates_in(Path("local-certs/ca.pem").read_bytes())
        self.local("--host=laptop.lan")
        before, second = certs.certificates_in(Path("local-certs/ca.pem").read_bytes())
        self.assertEqual(before, first)
        file = Path("local-certs/ca.pem")
        file.write_bytes(pki.Authority("over", -2 * DAY, -DAY).pem + file.read_bytes())
        self.local("--host=other.lan")
        anchors = certs.certificates_in(file.read_bytes())
        self.assertEqual((len(anchors), anchors[:2]), (3, [first, second]))
        os.chmod("local-certs/ca.pem", 0o666)
        self.local("--host=laptop.lan")
        (only,) = certs.certificates_in(Path("local-certs/ca.pem").read_bytes())
        self.assertNotIn(only, anchors)

    def test_a_damaged_or_missing_file_is_mended(self):
        for name in certs.FILES:
            self.local()
            Path("local-certs", name).write_bytes(b"damaged")
            self.assertIn("certificates made", self.local()[1])
            Path("local-certs", name).unlink()
            self.assertIn("certificates made", self.local()[1])
        self.assertEqual(len(list(Path("local-certs").iterdir())), 3)

    def test_a_folder_that_cannot_be_written(self):
        Path("file").touch()
        for folder, reason in ("file", "File exists"), ("file/below", "Not a directory"):
            self.assertEqual(
                self.local("--cert-dir", folder),
                (
                    1,
                    "",
                    f"whook: error: cannot write to {folder}: {reason}\n"
                    "whook: hint: name a folder that can be written with --cert-dir\n",
                ),
            )

    def test_a_folder_of_its_own(self):
        """The files of a cluster are not overwritten, nor does certs.py overwrite these."""
        self.local()
        self.assertEqual(os.listdir(), ["local-certs"])
        folder = certs.arguments_of([]).cert_dir
        self.assertEqual(folder, "webhook-certs")

    def test_a_folder_that_belongs_to_somebody_else(self):
        """Whoever owns it could put a pair of theirs there, which would be kept."""
        self.local()
        before = certs.read_files("local-certs")
        other = os.geteuid() + 12345
        if os.geteuid() == 0:
            os.chown("local-certs", other, -1)
        else:
            self.enterContext(mock.patch.object(os, "geteuid", return_value=other))
        for more in (), ("--host", "more.lan"):
            self.assertEqual(
                self.local(*more),
                (
                    1,
                    "",
                    "whook: error: local-certs belongs to another user\n"
                    "whook: hint: name one of your own with --cert-dir\n",
                ),
            )
        self.assertEqual(Path("local-certs/ca.pem").read_bytes(), before.bundle)

    def test_a_folder_that_others_may_write_into(self):
        for mode in 0o777, 0o1777, 0o720:
            os.mkdir("shared")
            os.chmod("shared", mode)
            self.assertEqual(
                self.local("--cert-dir", "shared"),
                (
                    1,
                    "",
                    f"whook: error: others may write into shared (mode {mode & 0o777:04o})\nwhook: "
                    "hint: chmod go-w shared, or name another folder with --cert-dir\n",
                ),
            )
            os.rmdir("shared")

    def test_files_that_others_could_get_at(self):
        self.local()
        for name, mode, made in (
            ("server-key.pem", 0o640, True),
            ("server-key.pem", 0o604, True),
            ("server-cert.pem", 0o644, False),
            ("server-cert.pem", 0o622, True),
            ("ca.pem", 0o660, True),
        ):
            with self.subTest(name, mode=oct(mode)):
                os.chmod(f"local-certs/{name}", mode)
                out = self.local()[1]
                self.assertIn("certificates made" if made else "certificates kept", out)
                why = f": others could get at local-certs/{name} "
                why += f"(owner {os.geteuid()}, mode {mode:04o})\n"
                self.assertEqual(out.endswith(why), made, out)
                self.assertIn("kept", self.local()[1])

    def test_a_full_disk_leaves_the_old_files_whole(self):
        self.local()
        before = certs.read_files("local-certs")
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))"
        done = self.alone(f"{limit}; sys.exit(certs.main(['local', '--host', 'more.lan']))")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, "^whook: error: .*File too large\nwhook: hint: .*\n$")
        self.assertEqual(certs.read_files("local-certs"), before)
        self.assertEqual(len(list(Path("local-certs").iterdir())), 3)

    def test_no_cluster_client_is_loaded(self):
        done = self.alone("certs.main(['local']); print('kubernetes' in sys.modules)")
        self.assertEqual(done.stdout.splitlines()[-1], "False")

    def test_what_stands_in_them(self):
        """Whoever made them: the same extensions, for strict clients too."""
        for key_type in certs.KEY_TYPES:
            with self.subTest(key_type):
                self.local(f"--key-type={key_type}", "--validity=36h", "--host=a.lan", "--host=::2")
                pair = certs.read_files("local-certs")
                names = (*certs.LOCAL_NAMES, "a.lan", "::2")
                self.assertIsNone(certs.flaw(pair, names, certs.now()))
                self.assertIsNone(certs.replacement_reason(pair, names, key_type))
                self.assertEqual(certs.names_of(pair.leaf), {*names})
                life = pair.leaf.not_valid_after_utc - pair.leaf.not_valid_before_utc
                self.assertAlmostEqual(life, 1.5 * DAY + certs.BACKDATE, delta=DAY / 1440)
                wanted = self.extensions(key_type, names)
                ca = certs.certificates_in(pair.bundle)[0]
                self.assertEqual([*map(self.shape, (ca, pair.leaf))], wanted)
                self.assertRegex(ca.subject.rfc4514_string(), "^CN=whook CA [0-9a-f]{16}$")
                self.assertEqual(pair.leaf.subject.rfc4514_string(), "CN=whook")
                client = ssl.create_default_context(cadata=pair.bundle.decode())
                client.verify_flags |= ssl.VERIFY_X509_STRICT
                with mock.patch.object(certs, "client_context", return_value=client):
                    certs.prove(pair, "a.lan", pair.bundle)

    def extensions(self, key_type, names):
        """Of what certs.sign() makes, which a cluster's webhooks are served with."""
        authority = certs.new_authority(certs.now() + DAY)
        key = certs.new_key(key_type.replace("3072", "2048")).public_key()  # as it takes less time
        leaf = certs.sign(key, names, certs.now() + DAY, authority)
        return [*map(self.shape, (authority[0], leaf))]

    def shape(self, certificate):
        """Its extensions, without what names a key: that must be there, and differs each time. A
        self-signed CA need not name its issuer's key, and OpenSSL leaves it out."""
        found = {e.oid._name: (e.critical, e.value) for e in certificate.extensions}
        for name in "subjectKeyIdentifier", "authorityKeyIdentifier":
            if name in found:
                found[name] = found[name][0]
        if certificate.subject == certificate.issuer:
            found.pop("authorityKeyIdentifier", None)
        return {name: str(value) for name, value in found.items()}

    def test_why_they_are_made_again(self):
        """The standard library judges as the package does, whichever made them."""
        root, other = pki.Authority("root"), pki.Authority("other")
        good, swapped = root.issue(certs.LOCAL_NAMES), root.issue(certs.LOCAL_NAMES)
        old = root.issue(certs.LOCAL_NAMES, -20 * DAY, 9 * DAY)
        brief = pki.Authority("brief", -DAY, DAY / 4)
        life = "less than a third of its life is left: the certificate is valid only "
        encrypted = serialization.BestAvailableEncryption(b"secret")
        locked = serialization.load_pem_private_key(good.key_pem, None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted
        )
        unreadable = "a certificate or the key cannot be read"
        distrusted = "the certificate does not verify: "
        for issued, ca, expected in [
            (good, root.pem, None),
            (pki.Pair(good.cert_pem, swapped.key_pem), root.pem,
             "the certificate does not belong to the key"),
            (pki.Pair(good.cert_pem, locked), root.pem, unreadable),
            (pki.Pair(b"x", good.key_pem), root.pem, unreadable),
            (pki.Pair(good.cert_pem, b"\xff"), root.pem, unreadable),
            (good, b"", f"{distrusted}unable to get local issuer certificate"),
            (good, b"\xff", unreadable),
            (good, b"junk", unreadable),
            (good, other.pem, distrusted),
            (root.issue(certs.LOCAL_NAMES, -3 * DAY, -DAY), root.pem,
             f"{distrusted}certificate has expired"),
            (root.issue(certs.LOCAL_NAMES, client=True), root.pem,
             f"{distrusted}unsuitable certificate purpose"),
            (old, root.pem, life + certs.span(old.certificate)),
            (brief.issue(certs.LOCAL_NAMES), brief.pem, life),
            (root.issue(["localhost"]), root.pem,
             "the certificate does not name 127.0.0.1, ::1, whook.whook.svc"),
        ]:  # fmt: skip
            with self.subTest(expected):
                pair = pair_of(issued, ca)
                actual = self.program.local_flaw(pair, certs.LOCAL_NAMES, "ecdsa-p256")
                if expected and expected.endswith(" "):
                    self.assertTrue(actual.startswith(expected), actual)
                else:
                    self.assertEqual(actual, expected)
        actual = self.program.local_flaw(pair_of(good, root.pem), [], "rsa-3072")
        self.assertEqual(actual, "the key is ecdsa-p256, not rsa-3072")

    def test_no_key_is_left_in_a_temporary_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            with mock.patch.object(tempfile, "tempdir", folder):
                self.local()
            self.assertEqual(os.listdir(folder), [])

    def test_addresses_with_a_scope_are_refused(self):
        message = 'argument --host: "fe80::1%eth0" is no name: a-z, 0-9, - and . are allowed'
        status, out, err = self.local("--host=fe80::1%eth0")
        self.assertEqual((status, out, err.splitlines()[0]), (2, "", f"whook: error: {message}"))


class LocalByOpenssl(Local):
    """Made by the openssl command, on a Python without the package."""

    prelude = "sys.modules['cryptography'] = None; "

    @classmethod
    def setUpClass(cls) -> None:
        if not shutil.which("openssl"):
            raise unittest.SkipTest("there is no openssl command")
        cls.program = without_cryptography()

    def openssl(self, script: str) -> None:
        """A command of this name that does that."""
        Path("bin").mkdir(exist_ok=True)
        Path("bin/openssl").write_text(f"#!/bin/sh\n{script}\n")
        Path("bin/openssl").chmod(0o755)
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        self.enterContext(mock.patch.dict(os.environ, PATH=path))

    def test_the_command_makes_them(self):
        self.assertFalse(self.program.CRYPTOGRAPHY)
        real = shutil.which("openssl")
        self.openssl(f'echo "$1" >> {self.folder}/used; exec {real} "$@"')
        self.assertIn("certificates made", self.local()[1])
        used = ["genpkey", "genpkey", "req", "ca", "req", "ca"]
        self.assertEqual(Path("used").read_text().split(), used)
        self.assertIn("certificates kept", self.local()[1])  # nothing is asked of it for that
        self.assertEqual(Path("used").read_text().split(), used)

    def test_no_key_is_ever_in_a_file_or_an_argument(self):
        """What each command finds in its folder, and how it was called."""
        real = shutil.which("openssl")
        self.openssl(f'echo "$@" >> {self.folder}/seen; cat * >> {self.folder}/seen; '
                     f'exec {real} "$@"')  # fmt: skip
        self.local()
        seen = Path("seen").read_text()
        self.assertIn("BEGIN CERTIFICATE-----", seen)
        self.assertNotIn("PRIVATE", seen)
        key = Path("local-certs/server-key.pem").read_text().splitlines()[1]
        self.assertNotIn(key, seen)

    def test_what_the_command_says_when_it_fails(self):
        hint = f"whook: hint: try the package instead: {certs.INSTALL}\n"
        for script, message in [
            ("echo one >&2; echo 'two \033[2J' >&2; exit 3",
             r"openssl genpkey failed: two \x1b[2J"),
            ("echo nonsense", "what was made is no use: a certificate or the key cannot be read"),
        ]:  # fmt: skip
            with self.subTest(message):
                self.openssl(script)
                self.assertEqual(self.local(), (1, "", f"whook: error: {message}\n{hint}"))
                self.assertFalse(Path("local-certs").exists())
        self.openssl("exit 3")
        self.assertRegex(self.local()[2], "^whook: error: openssl genpkey failed: .* status 3")

    def test_a_command_that_hangs(self):
        self.openssl("exec sleep 60")
        with mock.patch.object(self.program, "OPENSSL_LIMIT", 0.1):
            status, out, err = self.local()
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, "^whook: error: openssl genpkey failed: .* timed out after 0.1 sec")

    def test_neither_command_nor_package(self):
        with mock.patch.dict(os.environ, PATH=str(self.folder)):
            self.assertEqual(
                self.local(),
                (
                    1,
                    "",
                    "whook: error: no openssl command here, and no package cryptography for "
                    f"{sys.executable}\nwhook: hint: install either: apt-get install openssl, or "
                    f"{certs.INSTALL}\n",
                ),
            )

    def test_a_package_that_is_too_old(self):
        """As on Debian 12, whose cryptography is of 2022."""
        old = "import cryptography.x509 as x509; x509.Certificate = object; "
        with mock.patch.object(self, "prelude", old):
            self.assertIn("certificates made", self.alone("certs.main(['local'])").stdout)
            done = self.alone("sys.exit(certs.main(['check']))")
        message = f"package cryptography is too old for {sys.executable}: 42 or later is needed"
        expected = f"whook: error: {message}\nwhook: hint: {certs.INSTALL}\n"
        self.assertEqual((done.returncode, done.stderr), (1, expected))


# ---------------------------------------------------------------- pure parts


class Parts(unittest.TestCase):
    def test_printable(self):
        self.assertEqual(certs.printable("a\x1b[2J\nb ä"), "a\\x1b[2J\\nb ä")

    def test_missing_rule(self):
        core = 'a Role in that namespace must grant apiGroups: [""], resources: ["secrets"]'
        cluster = 'a ClusterRole must grant apiGroups: ["certificates.k8s.io"], resources: '
        signer = '["signers"], resourceNames: ["a.b/c"], verbs: '
        cases = {
            'secrets "x" is forbidden: User "joe" cannot get resource "secrets" in API group "" '
            'in the namespace "whook"': core + ', verbs: ["get"]',
            'User "joe" cannot update resource "certificatesigningrequests/approval" in API group '
            '"certificates.k8s.io" at the cluster scope': cluster
            + '["certificatesigningrequests/approval"], verbs: ["update"]',
            'user not permitted to approve requests with signerName "a.b/c"': cluster
            + signer
            + '["approve"]',
            'user not permitted to sign requests with signerName "a.b/c"': cluster
            + signer
            + '["sign"]',
            "exceeded quota": "not a matter of RBAC: the message names who refused",
        }
        for message, expected in cases.items():
            self.assertEqual(certs.missing_rule(message), expected)

    def test_bundles(self):
        old, new = pki.Authority("old"), pki.Authority("new")
        other, dead = pki.Authority("other"), pki.Authority("dead", -3 * DAY, -DAY)
        pair = pair_of(new.issue([NAME]), new.pem)
        current = b"comment\n" + old.pem + dead.pem + old.pem + b"-----BEGIN CERTIFICATE-----\nx\n"
        self.assertEqual(certs.widened(current, pair), old.pem + new.pem)
        self.assertEqual(certs.widened(new.pem, pair), new.pem)
        stale = {old.certificate}
        self.assertEqual(certs.narrowed(old.pem + new.pem, pair, stale), new.pem)
        kept = certs.narrowed(old.pem + new.pem + other.pem, pair, stale)
        self.assertEqual(kept, new.pem + other.pem, "another run's CA, added meanwhile")

    def test_how_long_a_secret_has_held_its_data(self):
        """By the API server's two clocks; what can't be told is not long."""

        def entry(time: str, *fields: str) -> dict:
            return {"time": time, "fieldsV1": {f"f:{field}": {} for field in fields}}

        long, late = entry("2026-11-24T08:00:00Z", "data"), entry("2026-11-24T08:05:01Z", "data")
        now = "Tue, 24 Nov 2026 08:15:00 GMT"
        cases = [
            ([long], now, True),
            ([late], now, False),
            ([long, late], now, False),
            ([long, entry("2026-11-24T08:14:00Z", "metadata")], now, True),
            (
                [entry("2026-11-24T08:00:00Z", "metadata"), {"time": "x", "manager": "y"}],
                now,
                False,
            ),
            ([long, {"fieldsV1": {"f:data": {}}}], now, False),
            ([], now, False),
            (None, now, False),
            ([long], "", False),
            ([long], "Tue, 24 Nov 2026 08:10:00 GMT", False),
        ]
        for entries, date, expected in cases:
            with self.subTest(entries=entries, date=date):
                secret = {"metadata": {"managedFields": entries}}
                self.assertEqual(certs.held_long(mock.Mock(date=date), secret), expected)

    def test_selectors(self):
        labels = {"whook": "enabled", "kubernetes.io/metadata.name": "default"}

        def terms(operator: str, key: str = "whook", *values: str) -> dict:
            term = {"key": key, "operator": operator, **({"values": [*values]} if values else {})}
            return {"matchExpressions": [term]}

        cases = [
            ({}, True),
            ({"matchLabels": {"whook": "enabled"}}, True),
            ({"matchLabels": {"whook": "no"}}, False),
            (terms("In", "whook", "enabled", "x"), True),
            (terms("In", "absent", "x"), False),
            (terms("NotIn", "whook", "enabled"), False),
            (terms("NotIn", "absent", "x"), True),
            (terms("Exists"), True),
            (terms("Exists", "absent"), False),
            (terms("DoesNotExist"), False),
            (terms("DoesNotExist", "absent"), True),
        ]
        for selector, expected in cases:
            self.assertEqual(certs.selects(selector, labels), expected, selector)


@unittest.skipUnless(ROLES.is_dir(), "the manifests are not there")
class Permissions(unittest.TestCase):
    def granted(self) -> set[tuple[str, str, str]]:
        """Verb, resource and name of every rule in the shipped roles."""
        documents = [
            d for p in ROLES.glob("*role*.yaml") for d in yaml.safe_load_all(p.read_text())
        ]
        rules = [rule for document in documents for rule in document.get("rules", [])]
        for rule in rules:
            for resource in rule["resources"]:
                self.assertEqual(rule["apiGroups"], [certs.GROUPS.get(resource.split("/")[0], "")])
        return {
            (verb, resource, name)
            for rule in rules
            for verb in rule["verbs"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames", [""])
        }

    def test_the_shipped_roles_grant_what_is_needed_and_no_more(self):
        needed = {*certs.permissions(certs.arguments_of([]))}
        self.assertEqual(self.granted(), needed | {("create", "secrets", "")})


# ---------------------------------------------------------------- command line


class CommandLine(InFolder):
    def test_wrong_usage(self):
        own = certs.OWN_SIGNER
        cases = {
            "frob": "argument command: invalid choice: 'frob' (choose from",
            "--frob": "unrecognized arguments: --frob",
            "--name x": "unrecognized arguments: --name x",
            "local --namespace x": "unrecognized arguments: --namespace x",
            "check --dry-run": "unrecognized arguments: --dry-run",
            "local --host a_b": 'argument --host: "a_b" is no name: a-z, 0-9, - and . are allowed',
            "local --cert-dir=": "--cert-dir may not be empty: local makes files",
            "--namespace ../x": 'argument --namespace: "../x" is no name: ',
            "--validity 9": 'argument --validity: "9" is no time from 10m to 3650d, such as 90d',
            "--validity 9m": 'argument --validity: "9m" is no time from 10m to 3650d, such as 90d',
            "--validity 3651d": 'argument --validity: "3651d" is no time from 10m to 3650d',
            "--timeout 0": 'argument --timeout: "0" is no number of seconds',
            "--signer-name x": f'argument --signer-name: "x" is no signer name such as {own}',
            "--key-type dsa": "argument --key-type: invalid choice: 'dsa' (choose from",
            "--ca-key x": f"--ca-key needs --ca-cert, and signer {own}: others have their own",
            "--ca-cert x": f"--ca-cert without --ca-key is for a signer other than {own}",
        }
        for line, message in cases.items():
            with self.subTest(line):
                status, out, err = run(*line.split())
                self.assertEqual((status, out), (2, ""))
                self.assertTrue(err.startswith(f"whook: error: {message}"), err)
                self.assertTrue(err.endswith("\nwhook: hint: see python certs.py --help\n"), err)

    def test_help_names_every_flag(self):
        status, out, _ = run("--help")
        self.assertEqual(status, 0)
        flags = set(re.findall(r'"(--[a-z-]+)"', (HERE / "certs.py").read_text()))
        flags |= {"--namespace", "--service", "--secret"}
        for flag in flags - {"--help"}:
            self.assertIn(flag, out)
        self.assertLessEqual(max(map(len, out.splitlines())), 100)

    def test_help_names_files_that_are_there(self):
        named = re.findall(r"manifests/[\w.-]+", run("--help")[1])
        self.assertTrue(named)
        for path in named:
            self.assertTrue((HERE / path).is_file(), path)

    def test_without_the_packages(self):
        """As on a bare Python: help is there, `local` works, the rest says what to install."""
        bare = [sys.executable, "-S", "-E", str(HERE / "certs.py")]
        done = subprocess.run([*bare, "--help"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, certs.USAGE, ""))
        pip = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
        hint = f"whook: hint: {pip}; then run it with .venv/bin/python\n"
        missing = f"is not installed for {sys.executable}\n{hint}"
        for command in "ensure", "check", "ca-bundle":
            done = subprocess.run([*bare, command], capture_output=True, text=True, input="")
            error = f"whook: error: package cryptography {missing}"
            self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", error))
        with mock.patch.dict(sys.modules, {"kubernetes": None}):
            self.assertEqual(run(), (1, "", f"whook: error: package kubernetes {missing}"))
            self.assertIn("certificates made", run("local")[1])

    def test_an_older_python(self):
        ast.parse((HERE / "certs.py").read_text(), feature_version=(3, 8))
        code = "import sys; sys.version_info = (3, 10, 2); sys.version = '3.10.2 (main)'; "
        code += f"sys.path.insert(0, {str(HERE)!r}); import certs"
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
        error = "whook: error: Python 3.11 or later is needed, this is 3.10.2\n"
        self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", error))

    def test_a_kubeconfig_that_is_not_there(self):
        self.assertEqual(
            run("--kubeconfig", "nosuch"),
            (
                1,
                "",
                "whook: error: cannot read nosuch: No such file or directory\n"
                "whook: hint: check the path\n",
            ),
        )
        with mock.patch.dict(os.environ, {"KUBECONFIG": "nosuch"}):
            self.assertRegex(run()[2], "^whook: error: no usable kubeconfig: nosuch: ")

    def test_no_kubeconfig(self):
        with mock.patch.dict(os.environ, {"HOME": str(self.folder)}, clear=True):
            with mock.patch("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "absent"):
                status, _, err = run()
        self.assertEqual(status, 1)
        self.assertRegex(err, "^whook: error: no usable kubeconfig: .*\nwhook: hint: name one with")

    def test_broken_kubeconfig(self):
        for text in "", "{", "[]", "{}", '{"contexts": 5}':
            Path("broken").write_text(text)
            with self.subTest(text):
                status, _, err = run("--kubeconfig", "broken")
                self.assertEqual(status, 1)
                unusable = "^whook: error: no usable kubeconfig: broken: .*\nwhook: hint: .*\n$"
                self.assertRegex(err, unusable)

    def test_unreachable(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            host = f"https://127.0.0.1:{unused.getsockname()[1]}"
            config = {
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "x"}}],
                "clusters": [{"name": "x", "cluster": {"server": host}}],
            }
            Path("config").write_text(json.dumps(config))
            for command in "ensure", "check":
                self.assertEqual(
                    run(command, "--kubeconfig", "config"),
                    (
                        1,
                        "",
                        f"whook: error: no answer from the API server at {host}: "
                        "Failed to establish a new connection: [Errno 111] Connection refused\n"
                        "whook: hint: is the cluster up, and is it the one meant? see --kubeconfig "
                        "and --context\n",
                    ),
                )


class Transport(InFolder):
    """How the API server is reached, and what is said where it is not."""

    def front(self, authority: pki.Authority | None = None) -> Front:
        return self.enterContext(Front(Memory(), authority))

    def kubeconfig(self, front: Front, **cluster: object) -> str:
        """A kubeconfig for this front, with other fields in its cluster; None takes one away."""
        config = json.loads(Path(front.kubeconfig()).read_text())
        fields = config["clusters"][0]["cluster"] | cluster
        config["clusters"][0]["cluster"] = {k: v for k, v in fields.items() if v is not None}
        Path("config").write_text(json.dumps(config))
        return "config"

    def says(self, kubeconfig: str, error: str, hint: str) -> None:
        for command in "ensure", "check":
            status, out, err = run(command, "--kubeconfig", kubeconfig)
            self.assertEqual((status, out), (1, ""))
            self.assertRegex(err, f"^whook: error: {error}\nwhook: hint: {re.escape(hint)}\n$")

    def test_a_ca_that_strict_clients_refuse(self):
        """Python is strict since 3.13; here every Python is."""

        def strict(make):
            def made(*argv, **options):
                context = make(*argv, **options)
                context.verify_flags |= ssl.VERIFY_X509_STRICT
                return context

            return made

        for target in "ssl.create_default_context", "urllib3.connection.create_urllib3_context":
            original = pkgutil.resolve_name(target)
            self.enterContext(mock.patch(target, strict(original)))
        for lack in {"identifiers": False}, {"key_usage": False}:
            with self.subTest(lack):
                front = self.front(pki.Authority("kubernetes", **lack))
                client = ssl.create_default_context(cadata=front.authority.pem.decode())
                with self.assertRaises(ssl.SSLCertVerificationError):
                    with socket.create_connection(front.server.server_address) as plain:
                        client.wrap_socket(plain, server_hostname="127.0.0.1")
                status, _, err = run("--kubeconfig", front.kubeconfig())
                self.assertEqual(status, 1)
                self.assertIn(NO_CONFIGURATION, err)

    def test_nothing_but_the_kubeconfigs_ca_is_trusted(self):
        """The system's CAs count only where the kubeconfig names none, as with kubectl."""
        front = self.front()
        other = Path("other.pem")
        other.write_bytes(pki.Authority("another").pem)
        meant = "is it the cluster meant? certificate-authority in the kubeconfig must be its CA"
        refused = "no TLS with the API server at https://127.0.0.1:[0-9]+: "
        refused += "(unable to get local issuer|self-signed) certificate.*"
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(front.folder / "ca.pem")}):
            named = self.kubeconfig(front, **{"certificate-authority": str(other.absolute())})
            self.says(named, refused, meant)
            system = self.kubeconfig(front, **{"certificate-authority": None})
            self.assertIn(NO_CONFIGURATION, run("--kubeconfig", system)[2])
        self.says(system, refused, meant)

    def test_insecure_skip_tls_verify(self):
        insecure = {"certificate-authority": None, "insecure-skip-tls-verify": True}
        config = self.kubeconfig(self.front(), **insecure)
        with warnings.catch_warnings(action="ignore"):
            self.assertIn(NO_CONFIGURATION, run("--kubeconfig", config)[2])

    def test_a_failed_handshake_is_called_one(self):
        front = self.front()
        at = front.server.server_port
        no = "no TLS with the API server at https://"
        named = self.kubeconfig(front, server=f"https://localhost:{at}")
        self.says(
            named,
            f"{no}localhost:{at}: .*'localhost'.*",
            "server in the kubeconfig must be a name in its certificate; or tls-server-name",
        )
        root = pki.Authority("root")
        (self.folder / "ca.pem").write_bytes(root.pem)
        expired = Endpoint(root.issue(["127.0.0.1"], -3 * DAY, -DAY))
        self.addCleanup(expired.close)
        here = {"certificate-authority": str(self.folder / "ca.pem")}
        host = f"https://127.0.0.1:{expired.address[1]}"
        self.says(
            self.kubeconfig(front, server=host, **here),
            f"no TLS with the API server at {host}: certificate has expired",
            "is this machine's clock right? if so, the API server's certificate is not",
        )
        with socket.create_server(("127.0.0.1", 0)) as plain:
            host = f"https://127.0.0.1:{plain.getsockname()[1]}"

            def answer() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        caller = plain.accept()[0]
                        caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        caller.close()

            threading.Thread(target=answer, daemon=True).start()
            self.says(
                self.kubeconfig(front, server=host),
                f"no TLS with the API server at {host}: .*",
                "does it speak HTTPS there, and take the client certificate in the kubeconfig?",
            )


# ---------------------------------------------------------------- whole runs, on either API server


def webhook(name: str, service: str = "whook", path: str = "/mutate", **more: object) -> dict:
    return {
        "name": name,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "clientConfig": {
            "service": {"name": service, "namespace": "whook", "path": path, "port": 443}
        },
        "namespaceSelector": {"matchLabels": {"whook": "enabled"}},
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "resources": ["pods"],
                "operations": ["CREATE"],
            }
        ],
        **more,
    }


def fixtures(address: str, port: int) -> dict[str, dict]:
    """What the manifests make: the object for each collection."""
    metadata = {"name": "whook", "labels": {certs.NAME_LABEL: "whook"}}
    configuration = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": metadata}
    mutating = [webhook("mutate.whook.local"), webhook("other.whook.local", "other")]
    mutating.append(webhook("labels.whook.local", path="/mutate/labels"))
    validating = [webhook("validate.whook.local", path="/validate")]
    ports = [{"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"}]
    return {
        "/api/v1/namespaces/whook/services": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "whook"},
            "spec": {"ports": ports},
        },
        SLICES: {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "whook", "labels": {"kubernetes.io/service-name": "whook"}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": port}, {"name": "metrics", "port": 8080}],
            "endpoints": [
                {"addresses": [address], "conditions": {"ready": True}},
                {"addresses": ["192.0.2.77"], "conditions": {"ready": False}},
            ],
        },
        MUTATING: {**configuration, "kind": "MutatingWebhookConfiguration", "webhooks": mutating},
        VALIDATING: {
            **configuration,
            "kind": "ValidatingWebhookConfiguration",
            "webhooks": validating,
        },
    }


class Cases(InFolder):
    """What certs.py does to a cluster. `front` and `address` come from the subclass."""

    front: Front
    address: str

    @classmethod
    def setUpClass(cls) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "whook"}}
        cls.front.ask("POST", "/api/v1/namespaces", namespace)

    def setUp(self) -> None:
        super().setUp()
        for name, value in ("SETTLE", 0.0), ("POLL", 0.05), ("DIAL_LIMIT", 1.0):
            self.enterContext(mock.patch.object(certs, name, value))
        self.front.reset()
        self.root = pki.Authority("test root")
        self.old = self.root.issue([NAME])
        self.endpoint = Endpoint(self.old, self.address)
        self.addCleanup(self.endpoint.close)
        self.kubeconfig = self.front.kubeconfig()
        self.make_anew()

    def make_anew(self) -> None:
        """What the manifests make, and nothing that a run made."""
        self.clear()
        for collection, manifest in fixtures(*self.endpoint.address).items():
            self.front.ask("POST", collection, manifest)
        for file in Path().glob("webhook-certs/*"):
            file.unlink()

    def clear(self) -> None:
        for collection in fixtures("192.0.2.1", 1):
            self.remove(f"{collection}/whook")
        self.remove(SECRET)
        for request in self.front.ask("GET", CSRS)["items"]:
            self.remove(f"{CSRS}/{request['metadata']['name']}")

    def remove(self, path: str) -> None:
        with contextlib.suppress(Refusal):
            self.front.ask("DELETE", path)

    def change(self, path: str, edit, manager: str = "kubectl-edit") -> dict:
        """Edit an object as somebody else would, past the rules."""
        manifest = self.front.ask("GET", path)
        edit(manifest)
        return self.front.ask("PUT", path, manifest, fieldManager=manager)

    def program(self, *argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        words = [*argv] if argv and argv[0] in ("check", "ca-bundle") else ["ensure", *argv]
        words[1:1] = ["--kubeconfig", self.kubeconfig, "--timeout", "5"]
        return run(*words, stdin=stdin)

    def ensure(self, *argv: str) -> tuple[str, str]:
        """A run that must succeed: stdout and stderr."""
        status, out, err = self.program(*argv)
        self.assertEqual(status, 0, err)
        return out, err

    def tearDown(self) -> None:
        """Whatever happened: a key went into the Secret, if anywhere, and no CA key even there."""
        for call in self.front.calls:
            if b"PRIVATE KEY" in call.raw or b"UFJJVkFURSBLRVk" in call.raw:
                self.assertIn("/secrets", call.path)

    def bundles(self) -> dict[str, bytes]:
        found = {}
        for collection in MUTATING, VALIDATING:
            for one in self.front.ask("GET", f"{collection}/whook")["webhooks"]:
                bundle = one["clientConfig"].get("caBundle") or ""
                found[one["name"]] = base64.b64decode(bundle)
        return found

    def set_bundles(self, bundle: bytes) -> None:
        def edit(manifest: dict) -> None:
            for one in manifest["webhooks"]:
                one["clientConfig"]["caBundle"] = base64.b64encode(bundle).decode()

        for collection in MUTATING, VALIDATING:
            self.change(f"{collection}/whook", edit)

    def secret(self) -> dict | None:
        try:
            return self.front.ask("GET", SECRET)
        except Refusal:
            return None

    def set_secret(self, issued: pki.Pair, bundle: bytes, signer: str | None = certs.OWN_SIGNER):
        """A Secret as an earlier run would have left it."""
        self.remove(SECRET)
        values = {"tls.crt": issued.cert_pem, "tls.key": issued.key_pem, "ca.crt": bundle}
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {
                "name": "whook-certs",
                "annotations": {certs.SIGNER_ANNOTATION: signer} if signer else {},
            },
            "data": {key: base64.b64encode(value).decode() for key, value in values.items()},
        }
        return self.front.ask("POST", SECRET.rpartition("/")[0], manifest)

    def requests(self) -> list[dict]:
        return self.front.ask("GET", CSRS)["items"]

    def published(self) -> certs.Pair:
        """The pair in the Secret, after proving that all of it fits together."""
        secret = self.secret()
        self.assertEqual(secret["type"], "kubernetes.io/tls")
        pair = certs.secret_pair(secret)
        self.assertIsNone(certs.flaw(pair, [NAME], certs.now()))
        bundles = self.bundles()
        self.assertEqual(bundles.pop("other.whook.local"), b"", "not our Service, not ours to set")
        for name, bundle in bundles.items():
            self.assertEqual(bundle, pair.bundle, name)
        return pair

    def writes(self) -> list[str]:
        return [f"{c.method} {c.path}" for c in self.front.calls if c.method != "GET"]

    def follow(self, delay: int = 0) -> None:
        """Serve what the Secret holds from now on, as pods do, `delay` looks later."""

        def written(call, proceed):
            answer = proceed()
            pair = certs.secret_pair(call.body)
            if "dryRun" not in call.query:
                self.front.on("GET", "/endpointslices", looked, delay + 1)
                self.looks = 0
                self.next = pki.Pair(pair.chain, pair.key)
            return answer

        def looked(call, proceed):
            self.looks += 1
            if self.looks > delay:
                self.endpoint.serve(self.next)
            return proceed()

        self.front.on("PUT|POST", "/secrets", written, times=99)

    # ------------------------------------------------------------ first run, rerun, signers

    def test_first_run_and_rerun(self):
        out, err = self.ensure()
        pair = self.published()
        self.assertEqual(certs.read_files("webhook-certs"), pair)
        self.assertEqual(Path("webhook-certs/server-key.pem").stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.requests(), [])
        name = r"certificatesigningrequest whook-\w+"
        valid = re.escape(f"valid {certs.span(pair.leaf)}")
        webhooks = "mutate.whook.local, labels.whook.local"
        expected = [
            "to do: secret whook/whook-certs: issue and write a certificate: there is none",
            "to do: mutatingwebhookconfiguration whook, webhook mutate.whook.local: write caBundle",
            "to do: mutatingwebhookconfiguration whook, webhook labels.whook.local: write caBundle",
            "to do: validatingwebhookconfiguration whook, webhook validate.whook.local: "
            "write caBundle",
            "to do: webhook-certs: write ca.pem, server-key.pem, server-cert.pem",
            f"{name}: posted for signer whook.local/serving",
            f"{name}: approved",
            f"{name}: signed by CN=whook CA [0-9a-f]+",
            rf"{name}: issued, waited \d\.\d s",
            f"certificate: {valid}, verified by CN=whook CA [0-9a-f]+",
            f"{name}: deleted",
            f"mutatingwebhookconfiguration whook: caBundle of {webhooks}: 1 CA",
            "validatingwebhookconfiguration whook: caBundle of validate.whook.local: 1 CA",
            "webhook-certs: ca.pem, server-key.pem, server-cert.pem written",
            "secret whook/whook-certs: written",
            "pods that waited for it start within two minutes, or at once: "
            "kubectl -n whook rollout restart deployment whook",
        ]
        for line, pattern in zip(err.splitlines(), expected, strict=True):
            self.assertRegex(line, f"^{pattern}$")
        what = f"secret whook/whook-certs: certificate for {NAME}, {valid}"
        self.assertRegex(out, f"^done: {what}\n$")
        self.front.reset()
        out, err = self.ensure()
        self.assertRegex(out, f"^nothing to do: {what}\n$")
        self.assertEqual((err, self.writes()), ("", []))

    def test_kubelet_serving(self):
        self.ensure("--signer-name", certs.KUBELET_SIGNER, "--key-type", "rsa-2048")
        pair = self.published()
        self.assertEqual(pair.bundle, self.front.backend.ca_pem)
        self.assertEqual(certs.type_of(pair.leaf.public_key()), "rsa-2048")
        self.front.reset()
        out, _ = self.ensure("--signer-name", certs.KUBELET_SIGNER, "--key-type", "rsa-2048")
        self.assertRegex(out, "^nothing to do: ")
        self.assertEqual(self.writes(), [])
        steps = self.ensure("--dry-run")[0].splitlines()
        self.assertEqual(
            steps[0],
            "secret whook/whook-certs: issue and write a certificate: the key is rsa-2048, "
            "not ecdsa-p256",
        )

    def signs(self, issue, times: int = 1) -> None:
        """A signer of the test's own: `issue(csr)` is what it answers to an approved request."""

        def approved(call, proceed):
            answer = proceed()
            csr = x509.load_pem_x509_csr(base64.b64decode(call.body["spec"]["request"]))
            path, request = call.path.removesuffix("/approval"), answer[1]
            request["status"]["certificate"] = base64.b64encode(issue(csr).cert_pem).decode()
            self.front.ask("PUT", f"{path}/status", request)
            return answer

        self.front.on("PUT", "/approval", approved, times)

    def test_another_signer_whose_ca_is_given(self):
        """An intermediate signs, its chain comes along, and the root is what verifies."""
        middle = pki.Authority("middle", parent=self.root)
        Path("ca.pem").write_bytes(pki.Authority("wrong").pem + self.root.pem)
        self.signs(lambda csr: middle.issue([NAME], public_key=csr.public_key()))
        self.ensure("--signer-name", OTHER_SIGNER, "--ca-cert", "ca.pem")
        pair = self.published()
        self.assertEqual(pair.bundle, self.root.pem)
        self.assertEqual(len(certs.certificates_in(pair.chain)), 2)
        steps = self.ensure("--signer-name", OTHER_SIGNER, "--ca-cert", "ca.pem", "--dry-run")[0]
        self.assertRegex(steps, "^nothing to do")
        Path("ca.pem").write_bytes(pki.Authority("wrong").pem)
        steps = self.ensure("--signer-name", OTHER_SIGNER, "--ca-cert", "ca.pem", "--dry-run")[0]
        self.assertIn("it was not issued by the CA in ca.pem", steps)

    def test_another_signer_whose_ca_is_nowhere(self):
        self.signs(lambda csr: self.root.issue([NAME], public_key=csr.public_key()))
        Path("ca.pem").write_bytes(pki.Authority("wrong").pem)
        err = self.fails("--signer-name", OTHER_SIGNER, "--ca-cert", "ca.pem")
        self.assertIn(
            "whook: error: no known CA verifies the certificate; tried: CN=wrong (--ca-cert)", err
        )
        self.assertIn("CN=kubernetes (kubeconfig)", err)
        self.assertIn("whook: hint: ask the signer's operator for its CA and name that", err)

    def test_a_ca_of_the_users(self):
        Path("ca.pem").write_bytes(pki.Authority("wrong").pem + self.root.pem)
        Path("ca.key").write_bytes(pki.key_pem(self.root.key))
        own = ("--ca-cert", "ca.pem", "--ca-key", "ca.key")
        self.ensure()
        self.endpoint.serve(self.old)
        self.follow()
        err = self.ensure(*own)[1]
        self.assertIn("it was not issued by the CA in ca.pem", err)
        self.assertEqual(self.published().bundle, self.root.pem)
        self.assertRegex(self.ensure(*own)[0], "^nothing to do")
        Path("ca.key").write_bytes(pki.key_pem(pki.new_key()))
        self.remove(SECRET)
        err = self.fails(*own)
        self.assertIn("ca.pem: no valid certificate belongs to the key in ca.key\n", err)
        Path("ca.key").write_bytes(b"x")
        self.assertIn("whook: error: ca.key: no readable key\n", self.fails(*own))
        Path("ca.key").unlink()
        self.assertIn("error: cannot read ca.key: No such file or directory", self.fails(*own))

    def fails(self, *argv: str, recovers: bool = False) -> str:
        """A run that must fail and publish nothing. Returns stderr. With `recovers`, the next run
        must put everything right."""
        before = self.bundles(), self.secret(), certs.read_files("webhook-certs")
        status, out, err = self.program(*argv)
        self.assertEqual((status, out), (1, ""), err)
        self.assertRegex(err, r"(^|\n)whook: error: [^\n]+\nwhook: hint: [^\n]+\n$")
        self.assertEqual(err.count("error: "), 1, err)
        after = self.bundles(), self.secret(), certs.read_files("webhook-certs")
        self.assertEqual(after, before, "something was published")
        if recovers:
            self.front.reset()
            self.ensure()
            self.published()
        return err

    # ------------------------------------------------------------ when a certificate is due

    def test_why_a_certificate_is_issued(self):
        good, other = self.root.issue([NAME]), self.root.issue([NAME])
        expired = self.root.issue([NAME], -3 * DAY, -DAY)
        late = self.root.issue([NAME], -20 * DAY, 5 * DAY)
        cases = [
            (pki.Pair(good.cert_pem, other.key_pem), "the certificate does not belong to the key"),
            (pki.Pair(b"junk", good.key_pem), "the certificate or the key cannot be read"),
            (pki.Pair(good.cert_pem, b""), "one of tls.crt, tls.key, ca.crt is missing"),
            (self.root.issue(["x.y"]), f"the certificate does not name {NAME}"),
            (expired, f"the certificate is valid only {certs.span(expired.certificate)}"),
            (late, "less than a third of its life is left: the certificate is valid only "),
            (pki.Authority("x").issue([NAME]), "the certificate does not verify: "),
            (
                self.root.issue([NAME], key=pki.new_key("rsa")),
                "the key is rsa-2048, not ecdsa-p256",
            ),
        ]
        for issued, reason in cases:
            with self.subTest(reason):
                self.set_secret(issued, self.root.pem)
                steps = self.ensure("--dry-run")[0]
                what = "secret whook/whook-certs: issue and write a certificate: "
                self.assertTrue(steps.startswith(what + reason), steps)
        for signer in "a.b/c", None:
            self.set_secret(good, self.root.pem, signer)
            steps = self.ensure("--dry-run")[0]
            self.assertIn(f"it was issued by {signer or 'an unknown signer'}\n", steps)
        self.set_secret(good, self.root.pem)
        self.assertNotIn("issue and write", self.ensure("--dry-run")[0])
        self.assertIn("--renew asks for it", self.ensure("--dry-run", "--renew")[0])

    def test_dry_run_writes_nothing(self):
        before = self.bundles()
        out, err = self.ensure("--dry-run")
        self.assertEqual(err, "")
        self.assertEqual(
            out,
            "secret whook/whook-certs: issue and write a certificate: there is none\n"
            "mutatingwebhookconfiguration whook, webhook mutate.whook.local: write caBundle\n"
            "mutatingwebhookconfiguration whook, webhook labels.whook.local: write caBundle\n"
            "validatingwebhookconfiguration whook, webhook validate.whook.local: write caBundle\n"
            "webhook-certs: write ca.pem, server-key.pem, server-cert.pem\n",
        )
        self.assertEqual((self.writes(), self.bundles(), self.secret()), ([], before, None))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_files_alone_are_written_again_or_left_out(self):
        self.ensure("--cert-dir", "")
        self.assertEqual(list(self.folder.iterdir()), [])
        self.front.reset()
        err = self.ensure()[1]
        self.assertEqual(self.writes(), [])
        self.assertIn("webhook-certs: ca.pem, server-key.pem, server-cert.pem written", err)
        self.assertEqual(certs.read_files("webhook-certs"), self.published())

    def test_a_key_that_others_could_read_is_replaced(self):
        self.ensure()
        os.chmod("webhook-certs/server-key.pem", 0o644)
        reason = "others could get at webhook-certs/server-key.pem "
        reason += f"(owner {os.geteuid()}, mode 0644)"
        self.assertIn(f"write a certificate: {reason}\n", self.ensure("--dry-run")[0])
        os.chmod("webhook-certs", 0o777)
        err = self.program()[2]
        self.assertIn("error: others may write into webhook-certs (mode 0777)\n", err)

    # ------------------------------------------------------------ without a gap

    def start_old(self) -> None:
        """A cluster in service: Secret, files, caBundle and endpoint agree."""
        self.set_secret(self.old, self.root.pem)
        self.set_bundles(self.root.pem)
        certs.write_files("webhook-certs", pair_of(self.old, self.root.pem))
        self.change(f"{MUTATING}/whook", lambda m: m["webhooks"][1]["clientConfig"].pop("caBundle"))

    def watch_for_gaps(self) -> list[str]:
        """At every request: does each bundle verify what the endpoint serves right now?"""
        gaps: list[str] = []

        def look(call, proceed):
            answer = proceed()
            self.front.on(call.method, ".", look)
            for name, bundle in self.bundles().items():
                try:
                    if bundle and not certs.dial(self.endpoint.address, NAME, bundle):
                        gaps.append(f"{name} unanswered")
                except ssl.SSLCertVerificationError as error:
                    gaps.append(f"{call.method} {call.path}: {name}: {error.verify_message}")
            return answer

        for method in "GET", "PATCH":
            self.front.on(method, ".", look)
        return gaps

    def test_renewal_without_a_gap(self):
        self.start_old()
        self.follow(delay=3)
        gaps = self.watch_for_gaps()
        err = self.ensure("--renew")[1]
        self.assertEqual(gaps, [])
        self.assertNotEqual(self.published().chain, self.old.cert_pem)
        lines = [line for line in err.splitlines() if re.search("caBundle of|written|endp", line)]
        webhooks = "mutate.whook.local, labels.whook.local"
        expected = [
            f"mutatingwebhookconfiguration whook: caBundle of {webhooks}: 2 CAs",
            "validatingwebhookconfiguration whook: caBundle of validate.whook.local: 2 CAs",
            "webhook-certs: ca.pem, server-key.pem, server-cert.pem written",
            "secret whook/whook-certs: written",
            r"endpoints: all 1 serve the certificate, waited \d\.\d s",
            f"mutatingwebhookconfiguration whook: caBundle of {webhooks}: 1 CA",
            "validatingwebhookconfiguration whook: caBundle of validate.whook.local: 1 CA",
        ]
        for line, pattern in zip(lines, expected, strict=True):
            self.assertRegex(line, f"^{pattern}$")

    def test_an_endpoint_that_is_late_leaves_the_bundle_wide(self):
        self.start_old()
        out, err = self.ensure("--renew", "--timeout", "1")
        host, port = self.endpoint.address
        self.assertIn(f"\nendpoints: not yet serving the certificate: {host}:{port}\n", err)
        self.assertTrue(out.endswith(STILL_WIDE), out)
        pair = certs.secret_pair(self.secret())
        for name, bundle in self.bundles().items():
            if name != "other.whook.local":
                self.assertEqual(bundle, self.root.pem + pair.bundle)
        self.endpoint.serve(pki.Pair(pair.chain, pair.key))
        self.front.reset()
        self.ensure()
        self.assertEqual(self.published(), pair)
        self.assertEqual([w.split()[0] for w in self.writes()], ["PATCH", "PATCH"])

    def test_endpoints_out_of_reach_or_not_ready(self):
        self.start_old()
        self.endpoint.close()
        self.change(f"{SLICES}/whook", lambda m: m["endpoints"].pop(1))
        out, err = self.ensure("--renew")
        host, port = self.endpoint.address
        self.assertIn(f"endpoints: {host}:{port} cannot be reached from here\n", err)
        self.assertTrue(out.endswith(STILL_WIDE), out)
        self.change(
            f"{SLICES}/whook", lambda m: m["endpoints"][0]["conditions"].update(ready=False)
        )
        out, err = self.ensure()
        self.assertIn("endpoints: none is ready\n", err)
        self.assertTrue(out.endswith(STILL_WIDE), out)

    def renew_thrice(self) -> list[int]:
        """How many CAs caBundle holds after each of three renewals that reach no pod."""
        counts = []
        for _ in range(3):
            out, err = self.ensure("--renew")
            self.assertIn(" cannot be reached from here\n", err)
            self.assertTrue(out.endswith(STILL_WIDE), out)
            counts.append(len(certs.certificates_in(self.bundles()["validate.whook.local"])))
        return counts

    def test_renewals_from_a_laptop(self):
        """What no pod can be serving any more goes even where none can be reached."""
        self.start_old()
        self.endpoint.close()
        self.change(f"{SLICES}/whook", lambda m: m["endpoints"].pop(1))
        self.assertEqual(self.renew_thrice(), [2, 3, 4])
        self.assertTrue(self.ensure()[0].endswith(STILL_WIDE))
        with mock.patch.object(certs, "LONG", -DAY):
            pair = certs.secret_pair(self.secret())
            out, err = self.ensure()
            self.assertNotIn(STILL_WIDE, out)
            why = "had been there for long, so no pod serves what was before it"
            self.assertIn(f"\nsecret whook/whook-certs: {why}\n", err)
            self.assertEqual(self.published(), pair)
            self.assertEqual(self.renew_thrice(), [2, 2, 2])
            before = certs.certificates_in(self.bundles()["validate.whook.local"])[0]
            self.endpoint = Endpoint(self.old, self.address)
            self.addCleanup(self.endpoint.close)
            self.set_endpoint(*self.endpoint.address)
            out, err = self.ensure("--timeout", "1")
            self.assertIn("endpoints: not yet serving the certificate: ", err)
            self.assertTrue(out.endswith(STILL_WIDE), "an endpoint shows that it serves another")
            after = certs.certificates_in(self.bundles()["validate.whook.local"])
            self.assertEqual(after[0], before)

    def set_endpoint(self, address: str, port: int) -> None:
        def edit(manifest: dict) -> None:
            manifest["endpoints"][0]["addresses"] = [address]
            manifest["ports"][0]["port"] = port

        self.change(f"{SLICES}/whook", edit)

    def test_expired_duplicate_and_broken_anchors_are_dropped(self):
        self.start_old()
        dead = pki.Authority("dead", -3 * DAY, -DAY)
        self.set_bundles(dead.pem + self.root.pem + b"junk\n" + self.root.pem)
        self.change(f"{MUTATING}/whook", lambda m: m["webhooks"][1]["clientConfig"].pop("caBundle"))
        self.ensure()
        self.assertEqual(self.published(), pair_of(self.old, self.root.pem))

    def add_configuration(self, name: str, **metadata: object) -> None:
        """One more that points at our Service."""
        more = fixtures(*self.endpoint.address)[MUTATING]
        more["metadata"] = {"name": name, **metadata}
        self.front.ask("POST", MUTATING, more)
        self.addCleanup(self.remove, f"{MUTATING}/{name}")

    def bundle_in(self, name: str) -> bytes:
        one = self.front.ask("GET", f"{MUTATING}/{name}")["webhooks"][0]["clientConfig"]
        return base64.b64decode(one.get("caBundle") or "")

    def test_configurations_of_other_names(self):
        """Those that carry the label are kept, through renewals too; of others it says so."""
        self.add_configuration("mine", labels={certs.NAME_LABEL: "whook"})
        self.add_configuration("stray", labels={certs.NAME_LABEL: "else"})
        adoption = "if it is whook's: kubectl label mutatingwebhookconfiguration stray "
        adoption += "app.kubernetes.io/name=whook; python certs.py"
        left = f"mutatingwebhookconfiguration stray: calls whook, but is left alone; {adoption}\n"
        self.assertIn(left, self.ensure()[1])
        first = self.published()
        self.assertEqual(self.bundle_in("mine"), first.bundle)
        self.endpoint.serve(pki.Pair(first.chain, first.key))
        self.follow()
        self.assertIn(left, self.ensure("--renew")[1])
        self.assertNotEqual(self.published().bundle, first.bundle)
        self.assertEqual(self.bundle_in("mine"), self.published().bundle)
        self.assertEqual(self.bundle_in("stray"), b"")
        out, err = self.ensure()
        self.assertEqual((out[:13], err), ("nothing to do", left))
        stray = {
            "status": "warning",
            "subject": "mutatingwebhookconfiguration stray",
            "message": "calls whook, but is left alone",
            "fix": adoption,
        }
        self.assertIn(stray, self.findings()[1])
        self.assertEqual(self.ensure("--webhook-configuration", "stray")[1].count("left alone"), 0)
        self.assertEqual(self.bundle_in("stray"), self.published().bundle)

    def test_nothing_but_a_stray(self):
        for collection in MUTATING, VALIDATING:
            self.remove(f"{collection}/whook")
        self.add_configuration("stray")
        status, _, err = self.program()
        hint = "if it is whook's: kubectl label mutatingwebhookconfiguration stray"
        self.assertEqual(status, 1)
        self.assertIn(f"whook: error: {NO_CONFIGURATION}\nwhook: hint: {hint} app.kubern", err)

    def test_a_configuration_that_may_not_be_patched(self):
        """It stops the run before anything is made, else each try would leave one CA more."""
        self.add_configuration("mine", labels={certs.NAME_LABEL: "whook"})

        def review(call, proceed):
            asked = call.body["spec"]["resourceAttributes"]
            self.assertEqual((asked["verb"], asked["group"]), ("patch", ADMISSION.split("/")[2]))
            return 201, {"status": {"allowed": asked["name"] != "mine"}}

        self.front.on("POST", "/selfsubjectaccessreviews", review, 9)
        err = self.fails()
        error = "whook: error: mutatingwebhookconfiguration mine: you may not patch it\n"
        hint = 'whook: hint: a ClusterRole must grant apiGroups: ["admissionregistration.k8s.io"], '
        hint += 'resources: ["mutatingwebhookconfigurations"], resourceNames: ["mine"], '
        self.assertTrue(err.endswith(f'{error}{hint}verbs: ["patch"]\n'), err)
        self.assertEqual({w.split("/")[-1] for w in self.writes()}, {"selfsubjectaccessreviews"})

    def test_a_wiped_bundle_comes_back(self):
        """As after a `kubectl apply` by a tool that owns every field, or a fresh manifest."""
        self.ensure()
        self.remove(f"{MUTATING}/whook")
        manifest = fixtures(*self.endpoint.address)[MUTATING]
        self.front.ask("POST", MUTATING, manifest)
        before = self.secret()
        self.ensure()
        self.published()
        self.assertEqual(self.secret()["data"], before["data"])

    def test_another_owner_is_respected(self):
        hint = "whook: hint: let it do its work, or take it away there; --force writes over it\n"
        for annotation in (
            "cert-manager.io/inject-ca-from",
            ("service.beta.openshift.io/inject-cabundle"),
        ):
            with self.subTest(annotation):
                edit = {"annotations": {annotation: "true"}}
                self.change(f"{VALIDATING}/whook", lambda m, edit=edit: m["metadata"].update(edit))
                self.assertEqual(
                    self.fails(),
                    "whook: error: validatingwebhookconfiguration whook: caBundle is kept by the "
                    f"injector that annotation {annotation} calls\n{hint}",
                )
        self.ensure("--force")
        self.published()

    def test_another_field_manager_is_respected(self):
        self.own_bundle("cainjector")
        err = self.fails()
        self.assertIn('caBundle is kept by field manager "cainjector"\n', err)
        self.follow()
        self.ensure("--force")
        self.published()

    def test_what_kubectl_wrote_is_taken_over(self):
        self.own_bundle("kubectl-client-side-apply")
        self.follow()
        self.ensure()
        self.published()

    def own_bundle(self, manager: str) -> None:
        """As if `manager` had written one caBundle."""
        bundle = base64.b64encode(self.root.pem).decode()
        self.change(
            f"{MUTATING}/whook",
            lambda m: m["webhooks"][0]["clientConfig"].update(caBundle=bundle),
            manager,
        )

    # ------------------------------------------------------------ faults of the signing request

    def answer_with(self, edit):
        """A rule's action: the backend's answer, edited."""

        def action(call, proceed):
            status, answer = proceed()
            edit(answer)
            return status, answer

        return action

    def first(self, work):
        """A rule's action: do something behind the program's back, then go on."""

        def action(call, proceed):
            work(call.path)
            return proceed()

        return action

    def condition(self, kind: str):
        """Deny or fail the request at this path, as an approver or a signer would."""

        def work(path: str) -> None:
            path = re.sub("/(approval|status)$", "", path)
            request = self.front.ask("GET", path)
            condition = {"type": kind, "status": "True", "reason": "Because", "message": "a\nb"}
            status = {"conditions": [*request["status"].get("conditions", []), condition]}
            part = "approval" if kind == "Denied" else "status"
            self.front.ask("PUT", f"{path}/{part}", {**request, "status": status})

        return work

    def replace_request(self, path: str) -> None:
        """Somebody else's request under the name of ours."""
        request = self.front.ask("GET", path)
        self.front.ask("DELETE", path)
        key = pki.new_key()
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        csr = builder.sign(key, certs.hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        spec = {"signerName": request["spec"]["signerName"], "usages": ["server auth"]}
        spec["request"] = base64.b64encode(csr).decode()
        metadata = {"name": request["metadata"]["name"]}
        self.front.ask("POST", CSRS, {**request, "metadata": metadata, "spec": spec, "status": {}})

    def test_a_request_that_is_not_ours_any_more(self):
        item = rf"{CSRS}/[\w-]+"
        replaced = self.first(self.replace_request)
        cases = [
            ("GET", item, replaced, "was replaced by another of the same name"),
            ("GET", item, self.first(self.remove), "was deleted before its certificate was issued"),
            ("GET", item, self.first(self.condition("Denied")), ": Denied: Because: a\\nb"),
            ("PUT", f"{item}/status", self.first(self.condition("Failed")), ": Failed: Because: "),
            ("POST", f"{CSRS}[?]", self.tampered("request"), ": spec.request is not what was post"),
        ]
        cases += [
            ("GET", item, self.tampered(field), f": spec.{field} is not what was posted")
            for field in ("request", "usages", "signerName", "username")
        ]
        for method, pattern, action, message in cases:
            with self.subTest(method=method, message=message):
                self.front.on(method, pattern, action)
                err = self.fails(recovers=True)
                self.assertIn(message, err)
                for line in err.splitlines():
                    if "replaced" in message or "spec." in message:
                        self.assertNotIn("approved", line.removesuffix("nothing was approved"))
                self.make_anew()

    def tampered(self, field: str):
        other = base64.b64encode(b"other").decode()
        value = ["client auth"] if field == "usages" else other
        return self.answer_with(lambda answer: answer["spec"].update({field: value}))

    def test_replaced_between_read_and_approval(self):
        """The PUT carries uid and resourceVersion, so it cannot hit another request."""
        replaced = self.first(lambda path: self.replace_request(path.removesuffix("/approval")))
        self.front.on("PUT", "/approval", replaced)
        self.assertIn("was replaced by another of the same name", self.fails(recovers=True))

    def test_what_a_signer_gets_wrong(self):
        root, key = self.root, pki.new_key()
        cases = [
            (lambda csr: root.issue([NAME], key=key), "the certificate does not belong to the key"),
            (
                lambda csr: root.issue(["x.y"], public_key=csr.public_key()),
                f"the certificate does not name {NAME}",
            ),
            (
                lambda csr: root.issue([NAME], -3 * DAY, -DAY, public_key=csr.public_key()),
                "the certificate is valid only from ",
            ),
        ]
        for issue, message in cases:
            with self.subTest(message):
                self.signs(issue)
                err = self.fails("--signer-name", OTHER_SIGNER)
                self.assertIn(f"what {OTHER_SIGNER} issued is no use: {message}", err)
        self.signs(lambda csr: root.issue([NAME], client=True, public_key=csr.public_key()))
        Path("ca.pem").write_bytes(root.pem)
        err = self.fails("--signer-name", OTHER_SIGNER, "--ca-cert", "ca.pem")
        self.assertIn("no known CA verifies the certificate; tried: CN=test root (--ca-cert)", err)

    def test_no_signer_takes_it(self):
        err = self.fails("--signer-name", OTHER_SIGNER, "--timeout", "1", recovers=True)
        self.assertIn(f": approved, but {OTHER_SIGNER} signed nothing within 1 s\n", err)
        self.assertIn(f"does a signer run under that name? EKS has {'beta.eks.amazonaws.com'}", err)

    def test_the_subject_that_kubelet_serving_demands(self):
        wrong = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whook")])
        original = x509.CertificateSigningRequestBuilder
        with mock.patch.object(
            x509, "CertificateSigningRequestBuilder", lambda subject: original(wrong)
        ):
            err = self.fails("--signer-name", certs.KUBELET_SIGNER, recovers=True)
        self.assertIn(": Failed: SignerValidationFailure: ", err)

    def test_a_request_that_cannot_be_deleted_is_left(self):
        self.front.on("DELETE", CSRS, forbidden("delete", "certificatesigningrequests"))
        err = self.ensure()[1]
        self.assertRegex(err, r"certificatesigningrequest whook-\w+: left behind: .*cannot delete")
        self.published()
        self.assertEqual(len(self.requests()), 1)

    # ------------------------------------------------------------ conflicts and other faults

    def test_conflicts_are_settled(self):
        for method, pattern in (
            ("PUT", "/approval"),
            ("PUT", r"certificatesigningrequests/.*/status"),
            ("PATCH", MUTATING),
            ("POST", "/secrets[?]$"),
        ):
            with self.subTest(method + pattern):
                self.make_anew()
                self.front.on(method, pattern, refuse(409, "the object has been modified"), 2)
                self.ensure()
                self.published()
                self.assertEqual(self.front.rules[0][3], 0, "no conflict was met")
                self.front.reset()

    def test_a_conflict_that_stays_ends_with_the_deadline(self):
        self.front.on("PUT", "/approval", refuse(409, "the object has been modified"), 9999)
        err = self.fails("--timeout", "1", recovers=True)
        self.assertIn("whook: error: the object has been modified\n", err)

    def test_a_secret_that_another_run_wrote(self):
        self.start_old()
        theirs = pki.Authority("theirs")
        race = self.first(lambda _: self.set_secret(theirs.issue([NAME]), theirs.pem))
        self.front.on("PATCH", VALIDATING, race)
        self.follow()
        status, out, err = self.program("--renew")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("error: secret whook/whook-certs: changed since this run began\n", err)
        self.assertEqual(certs.secret_pair(self.secret()).bundle, theirs.pem)
        self.ensure("--renew")
        self.published()

    def test_the_ca_of_a_run_at_the_same_time_stays(self):
        """Narrowing takes out what was stale at the start, not what came since."""
        self.start_old()
        theirs = pki.Authority("theirs")

        def widen(call, proceed):
            answer = proceed()
            bundle = self.bundles()["validate.whook.local"]
            encoded = base64.b64encode(bundle + theirs.pem).decode()
            self.change(
                f"{VALIDATING}/whook",
                lambda m: m["webhooks"][0]["clientConfig"].update(caBundle=encoded),
            )
            return answer

        self.front.on("PATCH", VALIDATING, widen)
        self.follow()
        self.ensure("--renew", "--force")
        pair = certs.secret_pair(self.secret())
        self.assertEqual(self.bundles()["validate.whook.local"], pair.bundle + theirs.pem)

    def test_missing_namespace(self):
        for collection in MUTATING, VALIDATING:

            def elsewhere(manifest: dict) -> None:
                for one in manifest["webhooks"]:
                    one["clientConfig"]["service"]["namespace"] = "absent"

            self.change(f"{collection}/whook", elsewhere)
        status, _, err = self.program("--namespace", "absent")
        self.assertEqual(status, 1)
        self.assertRegex(err, 'error: namespaces? "absent" not found\n')
        self.assertIn("whook: hint: kubectl apply -f manifests/ makes what whook needs\n", err)
        self.assertNotIn("posted", err)

    def test_missing_configuration(self):
        for collection in MUTATING, VALIDATING:
            self.remove(f"{collection}/whook")
        status, _, err = self.program()
        self.assertEqual(
            (status, err),
            (
                1,
                f"whook: error: {NO_CONFIGURATION}\n"
                "whook: hint: kubectl apply -f manifests/ makes it; or see "
                "--webhook-configuration and --service\n",
            ),
        )

    def test_a_configuration_that_goes_away_is_not_made(self):
        self.front.on("PATCH", MUTATING, self.first(self.remove))
        status, _, err = self.program("--timeout", "2")
        self.assertEqual(status, 1)
        self.assertIn("mutatingwebhookconfiguration", err)
        with self.assertRaises(Refusal):
            self.front.ask("GET", f"{MUTATING}/whook")

    def test_a_secret_of_another_type(self):
        secret = self.set_secret(self.old, self.root.pem)
        self.remove(SECRET)
        metadata = {"name": "whook-certs"}
        secret = {**secret, "metadata": metadata, "type": "Opaque"}
        self.front.ask("POST", SECRET.rpartition("/")[0], secret)
        self.assertEqual(
            self.fails(),
            "whook: error: secret whook/whook-certs: type Opaque, not kubernetes.io/tls\nwhook: "
            "hint: kubectl -n whook delete secret whook-certs; python certs.py\n",
        )

    def test_a_type_that_would_paint_the_terminal(self):
        secret = self.set_secret(self.old, self.root.pem)
        self.remove(SECRET)
        hostile = {**secret, "metadata": {"name": "whook-certs"}, "type": "a/\x1b[2J\x9b"}
        self.front.ask("POST", SECRET.rpartition("/")[0], hostile)
        out = self.program("check")[1]
        self.assertIn(
            "secret whook/whook-certs: type a/\\x1b[2J\\x9b, not kubernetes.io/tls\n", out
        )
        self.assertTrue(out.replace("\n", "").isprintable())

    def test_forbidden(self):
        cases = [
            ("POST", f"{CSRS}[?]", "create", "certificatesigningrequests"),
            ("PUT", "/approval", "update", "certificatesigningrequests/approval"),
            ("PUT", f"{CSRS}/.*/status", "update", "certificatesigningrequests/status"),
            ("GET", f"{MUTATING}[?]", "list", "mutatingwebhookconfigurations"),
            ("GET", f"{MUTATING}/whook", "get", "mutatingwebhookconfigurations"),
            ("GET", "/secrets", "get", "secrets"),
            ("POST", "/secrets", "create", "secrets"),
            ("PATCH", MUTATING, "patch", "mutatingwebhookconfigurations"),
        ]
        for method, pattern, verb, resource in cases:
            with self.subTest(verb + resource):
                self.front.on(method, pattern, forbidden(verb, resource))
                err = self.fails(recovers=True)
                self.assertIn(f'error: User "joe" cannot {verb} resource "{resource}" in API', err)
                hint = f'resources: ["{resource}"], verbs: ["{verb}"]\n'
                self.assertTrue(err.endswith(hint), err)
                self.make_anew()

    def test_answers_that_are_no_answer(self):
        cases = [
            (
                lambda call, proceed: (500, b"<html>"),
                "cannot list mutating.*: HTTP status 500",
            ),
            (lambda call, proceed: (200, b"<html>"), "no answer from the API server at https:.*"),
            (refuse(401, "Unauthorized"), "Unauthorized"),
            (refuse(500, "etcd is sad\x1b[2J"), r"etcd is sad\\x1b\[2J"),
        ]
        for action, message in cases:
            with self.subTest(message):
                self.front.on("GET", MUTATING, action)
                self.assertRegex(self.fails(), f"^whook: error: {message}\nwhook: hint: ")

    def test_in_a_pod(self):
        """Without a kubeconfig, by the files of the ServiceAccount."""
        Path("token").write_text("admin")
        host, port = self.front.server.server_address
        variables = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
        account = "kubernetes.config.incluster_config.SERVICE_"
        with (
            mock.patch(account + "TOKEN_FILENAME", "token"),
            mock.patch(account + "CERT_FILENAME", str(self.front.folder / "ca.pem")),
            mock.patch.dict(os.environ, variables),
        ):
            status, _, err = run("--cert-dir=")
        self.assertEqual(status, 0, err)
        self.published()
        self.assertEqual([path.name for path in self.folder.iterdir()], ["token"])

    def test_progress_on_a_terminal(self):
        command = [sys.executable, str(HERE / "certs.py"), "--kubeconfig", self.kubeconfig]
        command += ["--signer-name", OTHER_SIGNER, "--timeout", "2"]
        try:
            ours, theirs = pty.openpty()
        except OSError as error:
            self.skipTest(f"no terminal to be had here: {error}")
        done = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, timeout=60)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 4096):
                shown += chunk
        os.close(ours)
        self.assertEqual(done.returncode, 1)
        waiting = rf"\r\033\[Kwaiting for {OTHER_SIGNER} to sign certificatesigningrequest [\w-]+: "
        self.assertRegex(shown.decode(), waiting + "0 s")
        self.assertRegex(shown.decode(), waiting + "1 s.*\r\033\\[Kwhook: error: ")

    def test_a_folder_that_cannot_be_written_stops_it_before_anything_is_made(self):
        Path("file").touch()
        err = self.fails("--cert-dir", "file/below")
        self.assertIn("error: cannot write to file/below: Not a directory\n", err)
        self.assertEqual(self.requests(), [])

    # ------------------------------------------------------------ ca-bundle

    def test_ca_bundle(self):
        self.ensure()
        encoded = base64.b64encode(self.published().bundle).decode()
        manifest = """\
# a comment
a: &x {clientConfig: {service: {name: whook, namespace: whook}, caBundle: old}}
b: [*x, {clientConfig: {url: "https://a.b"}}]
c: {clientConfig: {service: {name: other, namespace: whook}}}
yes: 'yes'
time: 12:30:45
date: 2026-01-01
octal: 0644
empty: ~
text: |
  two
  lines
---
caBundle: ${CA_BUNDLE}
"""
        status, out, err = self.program("ca-bundle", stdin=manifest.encode())
        self.assertEqual((status, err), (0, ""))
        before, after = (
            list(yaml.load_all(text, yaml.BaseLoader))
            for text in (manifest.replace("${CA_BUNDLE}", encoded), out)
        )
        before[0]["a"]["clientConfig"]["caBundle"] = encoded
        self.assertEqual(after, before)
        for line in "time: 12:30:45", "date: 2026-01-01", "octal: 0644", "yes: 'yes'", "empty: ~":
            self.assertIn(f"\n{line}\n", out)

    def test_ca_bundle_for_what_is_deployed(self):
        self.ensure()
        pair = self.published()
        manifests = [*fixtures(*self.endpoint.address).values()]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2)
        out = self.program("ca-bundle", stdin=text.encode())[1]
        for item in yaml.safe_load(out)["items"]:
            for one in item.get("webhooks", []):
                bundle = base64.b64decode(one["clientConfig"].get("caBundle", ""))
                ours = one["clientConfig"]["service"]["name"] == "whook"
                self.assertEqual(bundle, pair.bundle if ours else b"")

    def test_ca_bundle_faults(self):
        mine = b"clientConfig: {service: {name: whook, namespace: whook}}"
        cases = [
            (mine, "secret whook/whook-certs: holds no certificate yet"),
            (b"a: b", "no webhook for service whook/whook on stdin"),
            (b"", "no webhook for service whook/whook on stdin"),
            (b"a: [", "stdin is no YAML manifest: "),
            (b"\xff\xfe\xfa", "stdin is no YAML manifest: "),
            (b"[" * 100_000, "stdin is no YAML manifest: "),
            (b"clientConfig: 5", "no webhook for service whook/whook on stdin"),
            (b"clientConfig: {service: 5}", "no webhook for service whook/whook on stdin"),
            (b"&a [*a]", "no webhook for service whook/whook on stdin"),
        ]
        for source, message in cases:
            with self.subTest(source[:20]):
                status, out, err = self.program("ca-bundle", stdin=source)
                self.assertEqual((status, out), (1, ""))
                self.assertIn(f"whook: error: {message}", err)
                self.assertEqual(len(err.splitlines()), 2, err)
            if source is mine:
                self.ensure()

    # ------------------------------------------------------------ check

    def green(self) -> None:
        """A cluster with nothing to complain about."""
        self.start_old()
        labels = {"kubernetes.io/metadata.name": "shop", "whook": "enabled"}
        shop = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
        with contextlib.suppress(Refusal):
            shop["metadata"]["labels"] = labels
            self.front.ask("POST", "/api/v1/namespaces", shop)

    def findings(self) -> tuple[int, list[dict]]:
        status, out, err = self.program("check", "--output", "json")
        self.assertEqual(err, "")
        return status, json.loads(out)

    def test_check_green(self):
        self.green()
        status, found = self.findings()
        self.assertEqual((status, [f for f in found if f["status"] == "error"]), (0, []))
        host, port = self.endpoint.address
        text = self.program("check")[1]
        for line in (
            "ok       permissions: all 17 that a renewal needs\n",
            "ok       secret whook/whook-certs: certificate valid "
            f"{certs.span(self.old.certificate)}\n",
            "ok       webhook mutate.whook.local: trusts secret whook/whook-certs\n",
            f"ok       endpoint {host}:{port}: serves the secret's certificate\n",
        ):
            self.assertIn(line, text)

    def test_check_red(self):
        foreign = pki.Authority("foreign")

        def secret(names=(NAME,), begin=-DAY, end=20 * DAY):
            return lambda: self.set_secret(self.root.issue(names, begin, end), self.root.pem)

        def configure(**change: object):
            return lambda: self.change(
                f"{MUTATING}/whook",
                lambda m: m["webhooks"][0]["clientConfig"]["service"].update(change),
            )

        def keys() -> None:
            data = self.set_secret(self.old, self.root.pem)["data"]
            self.change(SECRET, lambda m: m["data"].update({"tls.key": data["tls.crt"]}))

        def slices(edit):
            return lambda: self.change(f"{SLICES}/whook", edit)

        again, service = "python certs.py", "/api/v1/namespaces/whook/services/whook"
        cases = [
            (lambda: self.set_bundles(foreign.pem), "its caBundle does not fit secret", again),
            (lambda: self.set_bundles(b""), "caBundle: 0 of 0 PEM blocks are a CA that is", again),
            (
                lambda: self.set_bundles(pki.Authority("x", -3 * DAY, -DAY).pem),
                "caBundle: 0 of 1 PEM blocks are a CA that is valid now",
                again,
            ),
            (secret(begin=-3 * DAY, end=-DAY), "the certificate is valid only from", again),
            (secret(begin=-20 * DAY, end=5 * DAY), "less than a third of its life is", again),
            (secret(["x.y"]), f"the certificate does not name {NAME}", again),
            (keys, "the certificate or the key cannot be read", again),
            (lambda: self.remove(SECRET), "does not exist", again),
            (
                slices(lambda m: m["endpoints"][0]["conditions"].update(ready=False)),
                "service whook/whook has no ready endpoint",
                "kubectl -n whook get pods",
            ),
            (
                slices(lambda m: m["ports"][0].update(name="other")),
                "service whook/whook has no ready endpoint",
                "kubectl -n whook get pods",
            ),
            (
                lambda: self.endpoint.serve(foreign.issue([NAME])),
                "serves another certificate than the secret's, one that is not trusted",
                "kubectl -n whook rollout restart deployment whook",
            ),
            (lambda: self.remove(service), "service whook/whook does not exist", "kubectl apply"),
            (
                configure(port=444),
                "port 444 is none of the service's ports [443]",
                "set clientConfig.service.port to its port",
            ),
            (
                configure(path="/mutates"),
                "whook has no path /mutates",
                "set clientConfig.service.path to /mutate or /validate, alone or with /NAME",
            ),
        ]
        for damage, message, fix in cases:
            with self.subTest(message):
                self.tearDown()
                self.setUp()
                self.green()
                damage()
                status, found = self.findings()
                self.assertEqual(status, 1)
                wrong = [f for f in found if f["status"] == "error" and message in f["message"]]
                self.assertTrue(wrong, found)
                self.assertTrue(wrong[0]["fix"].startswith(fix), wrong)
                if fix == again:
                    self.follow()
                    self.ensure()
                    self.assertEqual(self.findings()[0], 0, "the fix did not mend it")

    def test_check_warnings(self):
        self.green()
        self.endpoint.serve(self.root.issue([NAME]))
        self.set_bundles(self.root.pem + pki.Authority("x", -3 * DAY, -DAY).pem + b"-----BEGIN X")
        unselective = {"namespaceSelector": {}}
        self.change(f"{MUTATING}/whook", lambda m: m["webhooks"][0].update(unselective))
        nobody = {"namespaceSelector": {"matchLabels": {"whook": "never"}}}
        self.change(f"{VALIDATING}/whook", lambda m: m["webhooks"][0].update(nobody))
        status, found = self.findings()
        warnings = [f"{f['message']}: {f['fix']}" for f in found if f["status"] == "warning"]
        self.assertEqual(status, 0, found)
        for start in (
            "serves another certificate than the secret's, one that is still trusted: kubectl",
            "caBundle: 1 of 3 PEM blocks are a CA that is valid now: python certs.py",
            "selects namespace whook: whook could lock itself out: add to namespaceSelector: ",
            "selects no namespace: kubectl label namespace default whook=enabled",
        ):
            self.assertTrue([w for w in warnings if w.startswith(start)], warnings)

    def test_check_of_nothing(self):
        self.clear()
        status, found = self.findings()
        self.assertEqual(status, 1)
        messages = [f"{f['status']} {f['subject']}: {f['message']}" for f in found]
        self.assertIn(
            f"error configurations: {NO_CONFIGURATION}",
            messages,
        )
        self.assertIn("error secret whook/whook-certs: does not exist", messages)
        self.assertEqual(len(messages), len(set(messages)), "a finding stands there twice")


def refuse(status: int, message: str):
    """A rule's action: the API server refuses."""
    return lambda call, proceed: Refusal(status, "", message).answer


def forbidden(verb: str, resource: str):
    group = certs.GROUPS.get(resource.partition("/")[0], "")
    where = ' in the namespace "whook"' if resource in certs.NAMESPACED else " at the cluster scope"
    message = f'User "joe" cannot {verb} resource "{resource}" in API group "{group}"{where}'
    return refuse(403, message)


class StandIn(Cases):
    """The cases against the stand-in."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.front = cls.enterClassContext(Front(Memory()))
        cls.address = "127.0.0.1"
        super().setUpClass()


class RealCluster(Cases):
    """The cases against a real control plane, and what only that can show."""

    @classmethod
    def setUpClass(cls) -> None:
        if reason := controlplane.missing():
            raise unittest.SkipTest(reason)
        cls.address = cls.enterClassContext(controlplane.network_namespace())
        cls.plane = cls.enterClassContext(controlplane.ControlPlane())
        cls.front = cls.enterClassContext(Front(Relay(cls.plane)))
        super().setUpClass()

    @unittest.skipUnless(ROLES.is_dir(), "the manifests are not there")
    def test_the_shipped_roles_are_enough(self):
        roles = [str(path) for path in sorted(ROLES.glob("*role*.yaml"))]
        self.assertTrue(roles)
        self.plane.kubectl("apply", *(word for path in roles for word in ("-f", path)))
        admin, account = self.kubeconfig, "system:serviceaccount:whook-renewal:whook-certs"
        self.kubeconfig = self.front.kubeconfig(account)
        self.ensure()
        first = self.published()
        self.follow()
        self.endpoint.serve(pki.Pair(first.chain, first.key))
        self.ensure("--renew")
        self.assertNotEqual(self.published(), first)
        self.assertEqual(self.requests(), [])
        found = self.findings()[1]
        self.assertEqual(found[0]["message"], "all 17 that a renewal needs")
        err = self.fails("--signer-name", OTHER_SIGNER)
        self.assertIn(
            f'user not permitted to approve requests with signerName "{OTHER_SIGNER}"', err
        )
        self.assertTrue(
            err.endswith(f'resourceNames: ["{OTHER_SIGNER}"], verbs: ["approve"]\n'), err
        )
        status, _, err = self.program("--secret", "other")
        self.assertEqual(status, 1)
        self.assertIn("is forbidden: ", err)
        self.add_configuration("mine", labels={certs.NAME_LABEL: "whook"})
        self.assertIn("mutatingwebhookconfiguration mine: you may not", self.program("--renew")[2])
        self.kubeconfig = admin

    def test_nobody_may_do_nothing(self):
        self.kubeconfig = self.front.kubeconfig("nobody")
        self.assertIn('User "nobody" cannot list resource "mutatingwebhook', self.fails())
        status, found = self.findings()
        self.assertEqual(status, 1)
        missing = [f for f in found if f["subject"] == "permissions"]
        self.assertEqual([f["status"] for f in missing], ["warning"] * 17)
        self.assertEqual(missing[0]["message"], "you may not create certificatesigningrequests")


class Admission(InFolder):
    """From nothing to a pod that the API server had mutated, and on through the renewals: a real
    API server calls whook.py, which serves the files that certs.py leaves."""

    @classmethod
    def setUpClass(cls) -> None:
        if reason := controlplane.missing():
            raise unittest.SkipTest(reason)
        cls.address = cls.enterClassContext(controlplane.network_namespace())
        cls.plane = cls.enterClassContext(controlplane.ControlPlane())
        cls.front = cls.enterClassContext(Front(Relay(cls.plane)))

    def program(self, *argv: str) -> str:
        status, out, err = run(*argv, "--kubeconfig", str(self.plane.kubeconfig))
        self.assertEqual(status, 0, out + err)
        return out

    def pod(self) -> dict:
        """A pod as the API server would keep it."""
        container = {"name": "web", "image": "registry.invalid/web:1"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "web-"},
            "spec": {"containers": [container], "automountServiceAccountToken": False},
        }
        return self.front.ask("POST", "/api/v1/namespaces/shop/pods", pod, dryRun="All")

    def mutated(self) -> bool:
        with contextlib.suppress(Refusal):
            return self.pod()["metadata"].get("labels") == {"seen": "yes"}
        return False

    def wait(self, what: str, look) -> None:
        deadline = time.monotonic() + 30
        while not look():
            self.assertLess(time.monotonic(), deadline, f"not in 30 s: {what}")
            time.sleep(0.05)

    def start_whook(self, port: int) -> None:
        Path("label.py").write_text(
            "def mutate(obj, request):\n    obj['metadata']['labels'] = {'seen': 'yes'}\n"
        )
        command = [sys.executable, str(HERE / "whook.py"), "--policy", "label.py"]
        command += ["--tls-cert", "webhook-certs/server-cert.pem", "--host", self.address]
        command += ["--tls-key", "webhook-certs/server-key.pem", "--port", str(port)]
        with open("whook.log", "wb") as log:
            server = subprocess.Popen([*command, "--health-port", "0"], stderr=log, stdout=log)
        self.addCleanup(server.wait, 30)
        self.addCleanup(server.kill)  # the API server stays connected, so it would drain for long

    def test_the_whole_story(self):
        port = controlplane.free_ports(1)[0]
        own, shop = (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            for name, labels in (("whook", {}), ("shop", {"whook": "enabled"}))
        )
        for namespace in own, shop:
            self.front.ask("POST", "/api/v1/namespaces", namespace)
        for collection, manifest in fixtures(self.address, port).items():
            if collection == MUTATING:
                del manifest["webhooks"][1:]
                manifest["webhooks"][0]["failurePolicy"] = "Fail"
            if collection != VALIDATING:
                self.front.ask("POST", collection, manifest)
        with self.subTest("the default signer"):
            self.assertRegex(self.program(), "^done: ")
            self.start_whook(port)
            self.wait("a mutated pod", self.mutated)
            self.assertRegex(self.program(), "^nothing to do: ")
            self.program("check")
        with self.subTest("kubelet-serving, while pods are made"):
            self.renewal_under_load("--signer-name", certs.KUBELET_SIGNER)
            self.assertEqual(certs.read_files("webhook-certs").bundle, self.plane.authority.pem)
            self.program("check", "--signer-name", certs.KUBELET_SIGNER)
        with self.subTest("back to the default signer, and again, while pods are made"):
            self.renewal_under_load()
            self.renewal_under_load("--renew")
            self.assertRegex(self.program(), "^nothing to do: ")

    def renewal_under_load(self, *argv: str) -> None:
        """Pods are made all the while, failurePolicy is Fail: each must come back mutated."""
        before, stop = certs.read_files("webhook-certs"), threading.Event()
        outcomes: list[object] = []

        def make_pods() -> None:
            while not stop.is_set():
                try:
                    outcomes.append(self.pod()["metadata"].get("labels"))
                except Refusal as refusal:
                    outcomes.append(str(refusal.answer))

        threads = [threading.Thread(target=make_pods) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            out = self.program(*argv)
            count = len(outcomes)
            self.wait("twenty more pods", lambda: len(outcomes) > count + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertNotIn(STILL_WIDE, out)
        self.assertNotEqual(certs.read_files("webhook-certs"), before)
        self.assertGreater(count, 20)
        self.assertEqual([o for o in outcomes if o != {"seen": "yes"}], [])


del Cases  # a mixin: not to be collected by itself

if __name__ == "__main__":
    unittest.main()
