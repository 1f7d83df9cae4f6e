# SPDX-License-Identifier: Apache-2.0
"""Succession statements: an owner's key names the key that follows it. Pure.

A device holds at most two keys of each kind: release keys, which say what may ever run, and grant keys, which say what
is written now. Rules, in the order in which a device checks them (tests name them):

1. A succession is a statement of content type ``application/vnd.flashjob.owner-key+cbor``, at most 320 bytes.
2. It names the kind (1 release, 2 grant), the successor as a COSE_Key, and a generation of at least 1. Nothing else. It
   names no device: one statement serves a fleet.
3. The successor is a good P-256 or Ed25519 key: on its curve, not of small order.
4. The statement that was taken last, byte for byte, is answered as it was then.
5. It is signed by a key that the device holds as that very kind: a grant key never makes a release key.
6. Its generation is above the one that the device holds for that kind.
7. The successor is held as neither kind.
8. The signature holds. Only then the successor takes the place of the key that did *not* sign, and the generation is
   stored.

So the old key stays good until the new one signs for the next: devices that were away can still follow, one statement
after the other. A statement from either key drives the other one out: after a theft the owner's statement must reach the
devices before the thief's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Final, TypeAlias

from pydantic import ConfigDict, Field

from attestation import cose, keys, statement
from attestation.cbor import dumps
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey
from attestation.statement import SIGNING_ALGS, Statement, Strict, Uint

CONTENT_TYPE: Final = "application/vnd.flashjob.owner-key+cbor"
MAX_SUCCESSION_BYTES: Final = 320
MOST_KEYS: Final = 2
LABELS: Final = {1: "kind", 2: "successor", 3: "generation"}


class Kind(IntEnum):
    """What a key of the owner is for."""

    RELEASE = 1
    GRANT = 2


class Succession(Strict):
    """Which key follows."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Kind
    successor: PublicKey
    generation: Annotated[Uint, Field(gt=0)]


SignedSuccession: TypeAlias = Statement[Succession]


@dataclass(frozen=True, slots=True)
class Slots:
    """The keys of one kind that a device holds, by key id, and what it remembers of the statement it took last."""

    keys: Mapping[bytes, PublicKey]
    generation: int = 0
    last: bytes = b""
    """SHA-256 of that statement; empty where the keys are those of its provisioning."""


def mint(kind: Kind, successor: PublicKey, generation: int, key: PrivateKey) -> bytes:
    """Sign a succession: what the owner does offline.

    Args:
        kind: of both keys.
        successor: the key that follows.
        generation: 1 for the first succession of this kind, then one more each time.
        key: the key that is followed.

    Raises:
        Reject: ``succession.structure`` or ``key.*``: no device would take it.
    """
    for alg in (keys.alg_of(successor), keys.alg_of(key)):
        if alg not in SIGNING_ALGS:
            raise Reject(Code.KEY_CURVE, f"{alg.name}: an owner's key is P-256 or Ed25519")
    named = keys.key_id(key.public_key())
    if keys.key_id(successor) == named:
        raise Reject(Code.SUCCESSION_STRUCTURE, "a key cannot follow itself")
    payload = dumps({1: int(kind), 2: keys.to_cose(successor), 3: generation})
    made = cose.sign(payload, key, content_type=CONTENT_TYPE, kid=named)
    parse(made)
    return made


def parse(data: bytes) -> SignedSuccession:
    """Check rules 1 to 3.

    Raises:
        Reject: ``size``, ``cbor.*``, ``cose.*``, ``key.*`` or ``succession.structure``.
    """
    message, kid, labels = statement.parse(
        data, CONTENT_TYPE, limit=MAX_SUCCESSION_BYTES, code=Code.SUCCESSION_STRUCTURE
    )
    values: dict[int, Any] = dict(labels)
    if type(values.get(1)) is int and values[1] in tuple(Kind):
        values[1] = Kind(values[1])
    if isinstance(values.get(2), dict):
        values[2] = keys.from_cose(values[2])
        if keys.alg_of(values[2]) not in SIGNING_ALGS:
            raise Reject(Code.KEY_CURVE, "the successor is neither a P-256 nor an Ed25519 key")
    return Statement(statement.build(Succession, LABELS, values, Code.SUCCESSION_STRUCTURE), kid, message)


def take(data: bytes, held: Mapping[Kind, Slots]) -> tuple[Kind, Slots]:
    """All rules: what a device does with a succession.

    Args:
        data: the statement as received.
        held: all keys that the device holds.

    Returns:
        The kind, and its slots from now on.

    Raises:
        Reject: as ``parse``; ``statement.key``, ``succession.generation``, ``succession.held``, or ``sig.*``.
    """
    signed = parse(data)
    told = signed.content
    slots = held[told.kind]
    digest = hashlib.sha256(data).digest()
    if digest == slots.last:
        return told.kind, slots
    if signed.kid not in slots.keys:
        raise Reject(Code.STATEMENT_KEY, f"signed by key {signed.kid.hex()}, which is no {told.kind.name.lower()} key")
    if told.generation <= slots.generation:
        raise Reject(Code.SUCCESSION_GENERATION, f"generation {told.generation}, the device is at {slots.generation}")
    successor = keys.key_id(told.successor)
    if any(successor in other.keys for other in held.values()):
        raise Reject(Code.SUCCESSION_HELD, f"the device holds key {successor.hex()} already")
    statement.check_signature(signed, slots.keys)
    kept = {signed.kid: slots.keys[signed.kid], successor: told.successor}
    return told.kind, Slots(kept, told.generation, digest)
