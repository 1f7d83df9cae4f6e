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


def load_signer(pem: bytes, name: str) -> LocalSigner:
    """Read an unencrypted PEM private key (PKCS #8).

    Raises:
        PipelineError: KeyMalformed. The message never holds key material.
    """
    if b"ENCRYPTED" in pem[:200]:
        raise _bad_key(name, "it is encrypted; keys are read unencrypted, from a file or secret store of your choice")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
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


def private_pem(key: SignerKey) -> bytes:
    """Unencrypted PKCS #8 PEM: the caller must keep it from others (file mode 0600)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: VerifyKey) -> bytes:
    """PEM SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _bad_key(name: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.KeyMalformed,
        f"The key {name} cannot be used: {problem}.",
        "Make a key pair with `firmware-pipeline keygen`; trusted keys are PEM files (BEGIN PUBLIC KEY).",
    )
