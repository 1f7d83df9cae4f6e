# SPDX-License-Identifier: Apache-2.0
"""TLS, which is optional: a key of this boot, named by the evidence that comes over it. No owner's key is needed."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.device_http import key_of
from attestation.device_protocol import DeviceError
from attestation.keys import PublicKey
from flashjob.conformance.check import Broken, Need, check
from flashjob.conformance.subject import Proof, Subject


@check("tls.bound", Need.TLS)
async def tls_bound(subject: Subject) -> None:
    """Over TLS evidence names the key of the connection that brought it (cnf)."""
    await _bound(subject)


@check("tls.one_key", Need.TLS)
async def tls_one_key(subject: Subject) -> None:
    """Within one boot every connection is under the same key."""
    found = set()
    for _ in range(3):
        await subject.info()
        found.add(_shown(subject))
    if len(found) != 1:
        raise Broken(f"three connections were under {len(found)} keys")


@check("tls.no_dice_key", Need.TLS)
async def tls_no_dice_key(subject: Subject) -> None:
    """The TLS key is none of the chain's: those sign certificates and evidence only."""
    proof = await _bound(subject)
    anchor = subject.materials.anchor
    if _shown(subject) in {_spki(key) for key in (*proof.keys, *([anchor] if anchor else ()))}:
        raise Broken("TLS is spoken under a key of the DICE chain")


@check("tls.new_key", Need.TLS, Need.RESET)
async def tls_new_key(subject: Subject) -> None:
    """Each boot has a TLS key of its own, and its evidence names that one."""
    await _bound(subject)
    before = _shown(subject)
    await subject.reset()
    await _bound(subject)
    if _shown(subject) == before:
        raise Broken("after a reset it speaks under the same key")


async def _bound(subject: Subject) -> Proof:
    proof = await subject.proof()
    named = proof.token.confirmation_key
    if named is None:
        raise Broken("the evidence names no TLS key (cnf)")
    if _spki(named) != _shown(subject):
        raise Broken("the evidence names another key than that of the connection")
    return proof


def _shown(subject: Subject) -> bytes:
    """The key of the last connection."""
    try:
        return key_of(subject.http.certificate)
    except DeviceError as error:
        raise Broken(error.message) from error


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


CHECKS: Final = (tls_bound, tls_one_key, tls_no_dice_key, tls_new_key)
