# SPDX-License-Identifier: Apache-2.0
"""Mint release statements: the owner's offline signature over what may run on one kind of chip.

A COSE_Sign1 (RFC 9052), ES256 or EdDSA, content type `application/vnd.flashjob.release+cbor`, over the CBOR map
{1 name, 2 version, 3 chip id, 4 [min, max revision], 5 secure_version, 6 sequence, 7 [+ [COSE alg, measurement]],
8 image size in bytes}. Devices and gateways check it; here it is made, and compared with the config it travels with.
"""

import contextlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from attestation import cbor, cose
from attestation.errors import Reject
from attestation.keys import Alg, PublicKey, alg_of, key_id, private_from_pem
from attestation.keys import PrivateKey as _PrivateKey
from firmware_pipeline.artifact import MAX_RELEASE_BYTES
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.signing.keys import TrustedKey, load_signer, private_pem

ReleaseKey: TypeAlias = _PrivateKey
"""An EC or Ed25519 private key; minting takes P-256 and Ed25519."""
CONTENT_TYPE: Final = "application/vnd.flashjob.release+cbor"
ANY_REVISION: Final = 65535
_SEQUENCE: Final = 6
_ALGS: Final = frozenset({Alg.ES256, Alg.EDDSA})


def mint_release(config: FirmwareConfig, sequence: int, key: ReleaseKey) -> bytes:
    """Sign the release of one chip's firmware. The same input gives the same bytes.

    Args:
        config: what is released.
        sequence: grows with every release of this application; devices refuse to go back.
        key: P-256 or Ed25519.

    Raises:
        PipelineError: ReleaseInvalid when the key or the sequence cannot be used, or names are too long.
    """
    if not 0 <= sequence < 2**63:
        raise _invalid(f"the sequence {sequence} is not from 0 to 2^63 - 1")
    if alg_of(key) not in _ALGS:
        raise _invalid("devices know P-256 (ES256) and Ed25519 (EdDSA) release keys only")
    kid = key_id(key.public_key())
    signed = cose.sign(_claims(config, sequence), key, content_type=CONTENT_TYPE, kid=kid)
    if len(signed) > MAX_RELEASE_BYTES:
        raise _invalid(f"it would have {len(signed)} bytes, {MAX_RELEASE_BYTES} are allowed")
    return signed


def read_sequence(statement: bytes, config: FirmwareConfig, key: PublicKey | None = None) -> int:
    """Check that a statement releases exactly what the config describes; return its sequence.

    Args:
        statement: COSE_Sign1.
        config: the config it travels with.
        key: verify the signature too; None leaves that to whoever holds the key.

    Raises:
        PipelineError: ReleaseInvalid.
    """
    try:
        message = cose.parse(statement, content_type=CONTENT_TYPE, algs=_ALGS, limit=MAX_RELEASE_BYTES)
        if key is not None:
            cose.verify(message, key)
        claims = cbor.strict_loads(message.payload)
    except Reject as error:
        raise _invalid(f"it is not valid ({error})") from error
    sequence = claims.get(_SEQUENCE) if isinstance(claims, dict) else None
    if type(sequence) is not int or sequence < 0 or message.payload != _claims(config, sequence):
        raise _invalid("it releases something else than this artifact's config describes")
    return sequence


def released_by(statement: bytes | None, config: FirmwareConfig, owners: Sequence[TrustedKey]) -> tuple[str, int]:
    """Which of the owner's keys signed a statement, and its sequence. Devices hold two keys, so that one can replace the
    other; whoever checks lists both for as long.

    Args:
        statement: COSE_Sign1; None where the artifact has none.
        config: the config it travels with.
        owners: the release keys that count.

    Raises:
        PipelineError: ReleaseMissing, ReleaseInvalid.
    """
    if statement is None:
        raise PipelineError(
            Reason.ReleaseMissing,
            f"The firmware for {config.chip.target} has no release statement; devices will not install it.",
            "Mint one: `firmware-pipeline release REF --key KEY --sequence N`.",
        )
    sequence = read_sequence(statement, config)
    for owner in owners:
        if not isinstance(owner.key, RSAPublicKey):
            with contextlib.suppress(PipelineError):
                return owner.name, read_sequence(statement, config, owner.key)
    names = ", ".join(owner.name for owner in owners)
    raise _invalid(f"sequence {sequence} for {config.chip.target} is not signed by any of the owner's keys ({names})")


def load_release_key(pem: bytes, name: str, password: bytes | None = None) -> ReleaseKey:
    """Read the owner's release key: PEM, encrypted or not.

    Args:
        pem: content of the file.
        name: names it in messages.
        password: of an encrypted key.

    Raises:
        PipelineError: KeyMalformed.
    """
    try:
        return private_from_pem(private_pem(load_signer(pem, name, password).private_key))
    except Reject as error:
        raise PipelineError(
            Reason.KeyMalformed,
            f"The release key {name} cannot be used: {error.message}.",
            "Make one with `firmware-pipeline keygen NAME`.",
        ) from None


def _claims(config: FirmwareConfig, sequence: int) -> bytes:
    chip = config.chip
    return cbor.dumps(
        {
            1: config.app.project_name,
            2: config.app.version,
            3: chip.chip_id,
            4: [chip.min_rev, ANY_REVISION if chip.max_rev is None else chip.max_rev],
            5: config.app.secure_version,
            _SEQUENCE: sequence,
            7: [[entry.alg, bytes.fromhex(entry.value)] for entry in config.measurements],
            8: config.app_image.size,
        }
    )


def _invalid(problem: str) -> PipelineError:
    return PipelineError(
        Reason.ReleaseInvalid,
        f"The release statement cannot be used: {problem}.",
        "Push the firmware again with `--release-key KEY --sequence N`; N is higher than that of the last release.",
    )
