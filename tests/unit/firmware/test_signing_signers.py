# SPDX-License-Identifier: Apache-2.0
"""Signers by name: key files with and without password, programs, plug-ins; and openssl as a second opinion."""

import contextlib
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_pipeline.errors import Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.exec_signer import ExecSigner
from firmware_pipeline.signing.keys import (
    LocalSigner,
    Signer,
    TrustedKey,
    key_hint,
    load_signer,
    load_trusted_key,
    private_pem,
    public_pem,
)
from firmware_pipeline.signing.policy import Gathered, VerificationPolicy, judge
from firmware_pipeline.signing.sign import sign
from firmware_pipeline.signing.signers import open_signer
from firmware_pipeline.signing.verify import gather, verify
from tests.unit.firmware.builds import refused
from tests.unit.firmware.signed import ED, HOME, OTHER, P256, P384, put_index, trust

PASSWORD = b"correct horse"
KINDS: dict[str, LocalSigner] = {"p256": P256, "p384": P384, "ed25519": ED}

KMS = """\
import sys
from pathlib import Path
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

key = serialization.load_pem_private_key(Path(sys.argv[1]).read_bytes(), None)
if sys.argv[2] == "public-key":
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    sys.stdout.buffer.write(key.public_key().public_bytes(serialization.Encoding.PEM, form))
elif isinstance(key, ec.EllipticCurvePrivateKey):
    algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[sys.argv[3]]
    sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read(), ec.ECDSA(algorithm)))
else:
    assert sys.argv[3] == "none"
    sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))
"""


def program(tmp_path: Path, text: str, name: str = "signer.py") -> str:
    path = tmp_path / name
    path.write_text(text)
    return f"exec:{sys.executable} {path}"


# ---- key files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_encrypted_key_opens_with_its_password_only(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "signer.key"
    path.write_bytes(private_pem(KINDS[kind].private_key, PASSWORD))
    assert key_hint(open_signer(str(path), PASSWORD).public_key) == key_hint(KINDS[kind].public_key)
    for password in (None, b"", b"wrong"):
        error = refused(Reason.KeyMalformed, lambda password=password: open_signer(str(path), password))  # type: ignore[misc]
        assert "FIRMWARE_PIPELINE_KEY_PASSWORD" in error.next_step
        assert "correct horse" not in str(error)


def test_a_password_nobody_needs_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "signer.key"
    path.write_bytes(private_pem(P256.private_key))
    assert key_hint(open_signer(f"file:{path}", PASSWORD).public_key) == key_hint(P256.public_key)


@pytest.mark.parametrize("label", ["SIGSTORE", "COSIGN"])
def test_cosigns_own_key_files_are_named_as_such(label: str) -> None:
    pem = f"-----BEGIN ENCRYPTED {label} PRIVATE KEY-----\neyJrZGYi\n-----END ENCRYPTED {label} PRIVATE KEY-----\n"
    error = refused(Reason.KeyMalformed, lambda: load_signer(pem.encode(), "cosign.key", PASSWORD))
    assert "cosign's own" in error.message
    assert "keygen" in error.next_step


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    refused(Reason.StorageFailed, lambda: open_signer(str(tmp_path / "none.key")))


# ---- programs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_signs_like_a_key_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "its key").write_bytes(private_pem(KINDS[kind].private_key))
    signer = open_signer(f"{program(tmp_path, KMS)} '{tmp_path}/its key'")
    store = LayoutStore(tmp_path / "layout", create=True)
    index, _ = put_index(store)
    sign(store, index, signer, HOME)
    found = gather(store, index.digest)
    assert len(found) == 2
    for candidate in found:
        judged = judge(VerificationPolicy(trust(KINDS[kind])), Gathered(index.digest, [candidate]))
        assert judged.signers == ("key0",)


BAD_PROGRAMS = {
    "ends with an error": ("import sys; sys.exit('the token is not plugged in')", "the token is not plugged in"),
    "prints nothing": ("", "0 bytes"),
    "prints too much": ("print('x' * 100_000)", "100001 bytes"),
    "prints no key": ("print('hello')", "not a PEM public key"),
    "tells colours": ("import sys; sys.exit('\\x1b[31mno')", "31mno"),
}


@pytest.mark.parametrize("name", BAD_PROGRAMS)
def test_programs_that_give_no_key(tmp_path: Path, name: str) -> None:
    text, said = BAD_PROGRAMS[name]
    reason = Reason.KeyMalformed if name == "prints no key" else Reason.SignerFailed
    error = refused(reason, lambda: open_signer(program(tmp_path, text)))
    assert said in error.message
    assert "\x1b" not in error.message


def test_a_signature_by_another_key_is_found_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(private_pem(P256.private_key))
    honest = ExecSigner.open(f"{program(tmp_path, KMS)} {tmp_path}/key".removeprefix("exec:"))
    swapped = ExecSigner(honest.command, OTHER.public_key)
    error = refused(Reason.SignerFailed, lambda: swapped.sign(b"data", curve_hash=False))
    assert "no signature of its own key" in error.message


def ended(process: int) -> None:
    """Waits until a process that is nobody's child here is gone, a zombie at most."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process)
        try:
            assert select.select([handle], [], [], 30)[0]
        finally:
            os.close(handle)


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    text = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(marker)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    command = program(tmp_path, text).removeprefix("exec:")
    error = refused(Reason.SignerFailed, lambda: ExecSigner.open(command, time_limit=1.5))
    assert "did not end within 1.5 s" in error.message
    if marker.exists() and (child := marker.read_text()):
        ended(int(child))


@pytest.mark.parametrize("text", ["exec:", "exec:'open", "exec:/does/not/exist"])
def test_no_program(text: str) -> None:
    refused(Reason.SignerFailed, lambda: open_signer(text))


# ---- plug-ins --------------------------------------------------------------------------------------------


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with two entry points, as an installer would leave it."""
    site = tmp_path / "site"
    info = site / "kms_signer-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kms-signer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[flashjob.signers]\nexamplekms = example_kms_signer:open_key\nbroken = no_such_module:f\n"
    )
    (site / "example_kms_signer.py").write_text(
        "from pathlib import Path\n"
        "from firmware_pipeline.signing.keys import load_signer\n"
        "def open_key(rest):\n"
        "    return load_signer(Path(rest).read_bytes(), rest)\n"
    )
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("plug_ins")
def test_a_plug_in_is_found_by_its_scheme(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(private_pem(ED.private_key))
    assert key_hint(open_signer(f"examplekms:{tmp_path}/key").public_key) == key_hint(ED.public_key)
    refused(Reason.SignerFailed, lambda: open_signer("broken:x"))
    error = refused(Reason.KeyMalformed, lambda: open_signer("otherkms:x"))
    assert "broken, examplekms, exec, file" in error.message


# ---- a second opinion ------------------------------------------------------------------------------------

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl program is not installed")


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    assert OPENSSL
    return subprocess.run([OPENSSL, *arguments], input=data, capture_output=True, check=True, timeout=60).stdout


def openssl_verifies(signer: Signer, signed: bytes, signature: bytes, digest: str, folder: Path) -> bool:
    key, data, sig = folder / "pub", folder / "data", folder / "sig"
    key.write_bytes(public_pem(signer.public_key))
    data.write_bytes(signed)
    sig.write_bytes(signature)
    assert OPENSSL
    if digest == "none":
        command = ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(key), "-in", str(data), "-sigfile", str(sig)]
    else:
        command = ["dgst", f"-{digest}", "-verify", str(key), "-signature", str(sig), str(data)]
    return subprocess.run([OPENSSL, *command], capture_output=True, check=False, timeout=60).returncode == 0


@needs_openssl
@pytest.mark.parametrize(
    ("kind", "simple", "bundle"),
    [("p256", "sha256", "sha256"), ("p384", "sha256", "sha384"), ("ed25519", "none", "none")],
)
def test_openssl_agrees_with_what_we_sign(tmp_path: Path, kind: str, simple: str, bundle: str) -> None:
    store = LayoutStore(tmp_path / "layout", create=True)
    index, _ = put_index(store)
    sign(store, index, KINDS[kind], HOME)
    for candidate, digest in zip(gather(store, index.digest), (simple, bundle), strict=True):
        assert openssl_verifies(KINDS[kind], candidate.signed, candidate.signature, digest, tmp_path)
        assert not openssl_verifies(KINDS[kind], candidate.signed + b" ", candidate.signature, digest, tmp_path)


OPENSSL_KEYS = {
    "p256": (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "sha256"),
    "p384": (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], "sha384"),
    "p521": (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"], "sha512"),
    "rsa": (["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "sha256"),
}


@needs_openssl
@pytest.mark.parametrize("kind", OPENSSL_KEYS)
def test_we_agree_with_what_openssl_signs(tmp_path: Path, kind: str) -> None:
    options, digest = OPENSSL_KEYS[kind]
    key = tmp_path / "key"
    openssl("genpkey", *options, "-out", str(key))
    trusted = load_trusted_key(openssl("pkey", "-in", str(key), "-pubout"), kind)
    subject = "sha256:" + "a" * 64
    body = formats.statement(subject)
    signature = openssl("dgst", f"-{digest}", "-sign", str(key), data=formats.pae(body))
    candidate = formats.bundle_candidate(formats.bundle(body, signature, trusted.id))
    assert candidate is not None
    assert judge(VerificationPolicy([trusted]), Gathered(subject, [candidate])).signers == (kind,)


@needs_openssl
def test_a_program_around_openssl_signs_an_artifact(tmp_path: Path) -> None:
    key, script = tmp_path / "key", tmp_path / "token"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    script.write_text(
        "#!/bin/sh\n"
        f'case "$1" in public-key) exec openssl pkey -in {key} -pubout ;; sign) exec openssl dgst "-$2" -sign {key} ;; esac\n'
        "exit 2\n"
    )
    script.chmod(0o755)
    signer = open_signer(f"exec:{script}")
    store = LayoutStore(tmp_path / "layout", create=True)
    index, _ = put_index(store)
    sign(store, index, signer, HOME)
    assert verify(store, index.digest, VerificationPolicy([TrustedKey("token", signer.public_key)])).signers == (
        "token",
    )


@needs_openssl
def test_keys_that_openssl_encrypted(tmp_path: Path) -> None:
    key = tmp_path / "key"
    arguments = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes256", "-pass", "pass:secret")
    openssl("genpkey", *arguments, "-out", str(key))
    assert isinstance(open_signer(str(key), b"secret"), LocalSigner)
    refused(Reason.KeyMalformed, lambda: open_signer(str(key), b"other"))
