# SPDX-License-Identifier: Apache-2.0
"""Keys that sign artifacts, and keys that are trusted to have signed them. `cryptography` does the work.

Signing: ECDSA P-256 and P-384 (deterministic, RFC 6979, so that signing twice changes nothing) and Ed25519.
Verifying: also ECDSA P-521 and RSA PKCS #1 v1.5 from 2048 bits, since such cosign keys exist.
The older signature format hashes with SHA-256 whatever the curve; the newer one uses the curve's own hash. Both count.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from firmware_pipeline.errors import PipelineError, Reason

SignerKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
VerifyKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
MIN_RSA_BITS: Final = 2048
PASSWORD_VARIABLE: Final = "FIRMWARE_PIPELINE_KEY_PASSWORD"
"""Environment variable that callers take the password of an encrypted key from."""
_CURVE_HASH: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


class Signer(Protocol):
    """What can sign: a local key here; a key management service fits in the same place."""

    @property
    def public_key(self) -> VerifyKey: ...

    def sign(self, data: bytes, *, curve_hash: bool) -> bytes:
        """Sign: DER for ECDSA, 64 bytes for Ed25519.

        Args:
            data: what to sign.
            curve_hash: hash with the curve's own algorithm instead of SHA-256.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalSigner:
    """A private key in memory."""

    private_key: SignerKey

    @property
    def public_key(self) -> VerifyKey:
        return self.private_key.public_key()

    def sign(self, data: bytes, *, curve_hash: bool) -> bytes:
        key = self.private_key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        algorithm = _CURVE_HASH[key.curve.name] if curve_hash else hashes.SHA256()
        return key.sign(data, ec.ECDSA(algorithm, deterministic_signing=True))

    def __repr__(self) -> str:
        return f"LocalSigner({key_hint(self.public_key)})"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key whose signature counts, and how people call it."""

    name: str
    key: VerifyKey

    @property
    def id(self) -> str:
        """Equal for equal keys, whatever their names."""
        return key_hint(self.key)


def key_hint(key: VerifyKey) -> str:
    """base64 of SHA-256 of the key's DER SubjectPublicKeyInfo: how bundles name a key."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def signature_holds(key: VerifyKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is one of `key` over `data`."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
            return True
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            return True
    except InvalidSignature:
        return False
    return any(_ecdsa_holds(key, signature, data, h) for h in (hashes.SHA256(), _CURVE_HASH[key.curve.name]))


def _ecdsa_holds(
    key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, algorithm: hashes.HashAlgorithm
) -> bool:
    try:
        key.verify(signature, data, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def load_trusted_key(pem: bytes, name: str) -> TrustedKey:
    """Read a PEM public key (`cosign.pub`).

    Raises:
        PipelineError: KeyMalformed.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _bad_key(name, "it is not a PEM public key") from None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise _bad_key(name, f"RSA with {key.key_size} bits is too weak")
        return TrustedKey(name, key)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return TrustedKey(name, key)
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_HASH:
        return TrustedKey(name, key)
    raise _bad_key(name, "only ECDSA P-256/P-384/P-521, Ed25519 and RSA keys are supported")


def load_signer(pem: bytes, name: str, password: bytes | None = None) -> LocalSigner:
    """Read a PEM private key (PKCS #8), encrypted or not.

    Args:
        pem: content of the file.
        name: names it in messages.
        password: of an encrypted key; not looked at for others.

    Raises:
        PipelineError: KeyMalformed. The message never holds key material.
    """
    if b"SIGSTORE PRIVATE KEY" in pem or b"COSIGN PRIVATE KEY" in pem:
        raise _bad_key(
            name,
            "it is in cosign's own encrypted form",
            "Sign with cosign itself, or with a PKCS #8 key: `firmware-pipeline keygen NAME`, or openssl genpkey.",
        )
    encrypted = b"ENCRYPTED" in pem[:200]
    if encrypted and not password:
        raise _bad_key(name, "it is encrypted, and no password is given", f"Set {PASSWORD_VARIABLE}.")
    try:
        key = serialization.load_pem_private_key(pem, password=password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise _bad_key(name, "it cannot be decrypted", f"Check the password in {PASSWORD_VARIABLE}.") from None
        raise _bad_key(name, "it is not a PEM private key") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return LocalSigner(key)
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return LocalSigner(key)
    raise _bad_key(name, "signing needs an ECDSA P-256, P-384 or Ed25519 key")


def distinct(keys: Sequence[TrustedKey]) -> dict[str, TrustedKey]:
    """id -> key; the same key under two names counts once."""
    result: dict[str, TrustedKey] = {}
    for key in keys:
        result.setdefault(key.id, key)
    return result


def private_pem(key: SignerKey, password: bytes | None = None) -> bytes:
    """PKCS #8 PEM, encrypted with `password` if there is one. The caller keeps it from others (file mode 0600)."""
    protection: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def public_pem(key: VerifyKey) -> bytes:
    """PEM SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def hash_name(key: VerifyKey, *, curve_hash: bool) -> str:
    """Which hash a signature is made with: `sha256`, `sha384`, `sha512`, or `none` for Ed25519."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "none"
    if isinstance(key, rsa.RSAPublicKey) or not curve_hash:
        return "sha256"
    return _CURVE_HASH[key.curve.name].name


def _bad_key(name: str, problem: str, next_step: str = "") -> PipelineError:
    return PipelineError(
        Reason.KeyMalformed,
        f"The key {name} cannot be used: {problem}.",
        next_step or "Make a key pair with `firmware-pipeline keygen`; trusted keys are PEM files (BEGIN PUBLIC KEY).",
    )
