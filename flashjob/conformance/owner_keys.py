# SPDX-License-Identifier: Apache-2.0
"""Succession of owner keys: who may name whom, and what a device holds afterwards.

Where a generation is given, test keys come and go in both slots of a kind; in the end the device holds the given key
again, and beside it one that nobody has.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import cose, keys, succession
from attestation import device_protocol as dp
from attestation.cbor import dumps
from attestation.device_protocol import ErrorCode, Request
from attestation.keys import PrivateKey
from attestation.succession import Kind
from flashjob.conformance.check import Broken, Need, NotTestable, check
from flashjob.conformance.line import Answer
from flashjob.conformance.subject import Subject, expect

_SMALL_ORDER: Final = {1: 1, 3: -8, -1: 6, -2: b"\x01" + bytes(31)}
_OFF_CURVE: Final = {1: 2, 3: -7, -1: 1, -2: bytes(31) + b"\x01", -3: bytes(31) + b"\x01"}


@check("owner.too_large")
async def owner_too_large(subject: Subject) -> None:
    """A succession of more than 320 bytes is too large (2)."""
    for size in (succession.MAX_SUCCESSION_BYTES + 1, dp.MAX_REQUEST_BYTES + 1):
        expect(await _tell(subject, bytes(size)), ErrorCode.TOO_LARGE, f"{size} bytes")


@check("owner.malformed")
async def owner_malformed(subject: Subject) -> None:
    """A succession is an untagged COSE_Sign1 that names kind, a good successor and a generation, and nothing else,
    no device either (1)."""
    good = _statement(subject.stranger, {})
    anonymous: dict[str, Any] = {"kid": None}
    cases = {
        "no bytes": b"",
        "an array of nothing": dumps([]),
        "a cut statement": good[:-1],
        "a byte after the statement": good + b"\0",
        "tag 18": b"\xd2" + good,
        "an unprotected header": _statement(subject.stranger, {}, unprotected={4: b"k"}),
        "a grant's content type": _statement(subject.stranger, {}, content_type="application/vnd.flashjob.grant+cbor"),
        "no key id": _statement(subject.stranger, {}, **anonymous),
        "a device's name": _statement(subject.stranger, {4: (await subject.info()).ueid}),
        "kind 0": _statement(subject.stranger, {1: 0}),
        "kind 3": _statement(subject.stranger, {1: 3}),
        "generation 0": _statement(subject.stranger, {3: 0}),
        "a generation below zero": _statement(subject.stranger, {3: -1}),
        "no generation": _statement(subject.stranger, {3: None}),
        "no successor": _statement(subject.stranger, {2: None}),
        "a successor that is off its curve": _statement(subject.stranger, {2: _OFF_CURVE}),
        "a successor of small order": _statement(subject.stranger, {2: _SMALL_ORDER}),
        "a successor of 384 bits": _statement(
            subject.stranger, {2: keys.to_cose(_new_key(ec.SECP384R1()).public_key())}
        ),
    }
    for what, data in cases.items():
        expect(await _tell(subject, data), ErrorCode.MALFORMED, what)


@check("owner.unknown_key")
async def owner_unknown_key(subject: Subject) -> None:
    """A succession that is signed by a key which the device does not hold is refused (4), of either kind."""
    for kind in Kind:
        data = _mint(kind, _new_key(), 1, subject.stranger)
        expect(await _tell(subject, data), ErrorCode.UNKNOWN_KEY, f"a stranger's {kind.name.lower()} key")


@check("owner.other_kind", Need.GRANT_KEY, Need.RELEASE_KEY)
async def owner_other_kind(subject: Subject) -> None:
    """A grant key names no release key, a release key no grant key (4)."""
    for kind, other in ((Kind.RELEASE, Kind.GRANT), (Kind.GRANT, Kind.RELEASE)):
        data = _mint(kind, _new_key(), 1, _key(subject, other))
        expect(await _tell(subject, data), ErrorCode.UNKNOWN_KEY, f"a {kind.name.lower()} key named by the other kind")


@check("owner.signature", Need.GRANT_KEY, Need.GENERATION)
async def owner_signature(subject: Subject) -> None:
    """A succession under a held key's id that this key did not sign is refused (3)."""
    held = keys.key_id(_key(subject, Kind.GRANT).public_key())
    data = _statement(subject.stranger, {3: subject.next_generation()}, kid=held)
    expect(await _tell(subject, data), ErrorCode.SIGNATURE, "a statement forged under the grant key's id")


@check("owner.held", Need.GRANT_KEY, Need.RELEASE_KEY, Need.GENERATION)
async def owner_held(subject: Subject) -> None:
    """A successor that the device holds already, as either kind, is refused (9): no key is ever both."""
    grant, release = _key(subject, Kind.GRANT), _key(subject, Kind.RELEASE)
    generation = subject.next_generation()
    cases = {"the key itself": grant, "the release key as a grant key": release}
    for what, named in cases.items():
        data = _statement(grant, {2: keys.to_cose(named.public_key()), 3: generation})
        expect(await _tell(subject, data), ErrorCode.STATE, what)


@check("owner.grant_key", Need.GRANT_KEY, Need.GENERATION)
async def owner_grant_key(subject: Subject) -> None:
    """A grant key's successor takes the other slot and may name the next, which drives the first one out; a repeat gets
    the same answer, and neither an old statement nor another one of the same generation is taken (14)."""
    await _round(subject, Kind.GRANT)


@check("owner.release_key", Need.RELEASE_KEY, Need.GENERATION)
async def owner_release_key(subject: Subject) -> None:
    """The same holds for release keys."""
    await _round(subject, Kind.RELEASE)


@check("owner.any_state", Need.NETWORK, Need.GRANT_KEY, Need.RELEASE_KEY, Need.GENERATION)
async def owner_any_state(subject: Subject) -> None:
    """A succession is taken in any state: an installation that is being received goes on."""
    grant = await subject.grant_install(bytes(4096))
    key, successor, generation = _key(subject, Kind.RELEASE), _new_key(), subject.next_generation()
    await _taken(subject, _mint(Kind.RELEASE, successor, generation, key), Kind.RELEASE, (key, successor), generation)
    if (await subject.info()).active_grant != grant.grant_id:
        raise Broken("the installation ended")


@check("owner.reset", Need.GRANT_KEY, Need.GENERATION, Need.RESET)
async def owner_reset(subject: Subject) -> None:
    """Keys and generation survive a reset: the last statement gets its answer again, another one of its generation is
    refused (14)."""
    key, successor, generation = _key(subject, Kind.GRANT), _new_key(), subject.next_generation()
    data = _mint(Kind.GRANT, successor, generation, key)
    await _taken(subject, data, Kind.GRANT, (key, successor), generation)
    await subject.reset()
    await _attested(subject, (key, successor))
    again = _mint(Kind.GRANT, _new_key(), generation, key)
    expect(await _tell(subject, again), ErrorCode.SEQUENCE, f"generation {generation} again after a reset")
    await _taken(subject, data, Kind.GRANT, (key, successor), generation)


async def _round(subject: Subject, kind: Kind) -> None:
    """From the given key over two others back to it."""
    key, one, two = _key(subject, kind), _new_key(), _new_key()
    generation = subject.next_generation()
    first = _mint(kind, one, generation, key)
    answer = await _taken(subject, first, kind, (key, one), generation)
    if await _tell(subject, first) != answer:
        raise Broken("the same statement again got another answer")
    same = _mint(kind, two, generation, key)
    expect(await _tell(subject, same), ErrorCode.SEQUENCE, f"another successor under generation {generation}")
    generation = subject.next_generation()
    await _taken(subject, _mint(kind, two, generation, one), kind, (one, two), generation)
    generation = subject.next_generation()
    try:
        expect(
            await _tell(subject, _mint(kind, _new_key(), generation, key)), ErrorCode.UNKNOWN_KEY, "the key that went"
        )
    finally:
        await _taken(subject, _mint(kind, key, generation, one), kind, (one, key), generation)
    expect(await _tell(subject, first), ErrorCode.SEQUENCE, "an old statement, replayed")


async def _taken(subject: Subject, data: bytes, kind: Kind, held: Collection[PrivateKey], generation: int) -> Answer:
    """The device takes it and says so. Raises Broken."""
    answer = await _tell(subject, data)
    if not answer.ok:
        raise Broken(f"a good succession of generation {generation}: {answer}; is --generation above what it holds?")
    try:
        said = dp.parse_owner_keys(answer.body)
    except dp.DeviceError as error:
        raise Broken(error.message) from error
    if (said.kind, sorted(said.ids), said.generation) != (kind, sorted(_ids(held)), generation):
        raise Broken(f"it says that it holds {[one.hex() for one in said.ids]} in generation {said.generation}")
    return answer


async def _attested(subject: Subject, held: Collection[PrivateKey], gone: Collection[PrivateKey] = ()) -> None:
    """Evidence lists the keys that it holds, and no others. Raises Broken."""
    listed = set((await subject.proof()).token.owner_keys)
    if missing := _ids(held) - listed:
        raise Broken(f"its evidence does not list key {min(missing).hex()} (-71014)")
    if kept := _ids(gone) & listed:
        raise Broken(f"its evidence still lists key {min(kept).hex()} (-71014)")


def _ids(held: Collection[PrivateKey]) -> set[bytes]:
    return {keys.key_id(key.public_key()) for key in held}


async def _tell(subject: Subject, data: bytes) -> Answer:
    return await subject.line.ask(Request.OWNER, data)


def _mint(kind: Kind, successor: PrivateKey, generation: int, key: PrivateKey) -> bytes:
    return succession.mint(kind, successor.public_key(), generation, key)


def _statement(key: PrivateKey, labels: dict[int, Any], **how: Any) -> bytes:
    """A succession of grant keys with some labels replaced (None: left out), or its envelope made otherwise."""
    payload: dict[int, Any] = {1: int(Kind.GRANT), 2: keys.to_cose(_new_key().public_key()), 3: 1} | labels
    options: dict[str, Any] = {"content_type": succession.CONTENT_TYPE, "kid": keys.key_id(key.public_key())}
    return cose.sign(dumps({k: v for k, v in payload.items() if v is not None}), key, **(options | how))


def _new_key(curve: ec.EllipticCurve | None = None) -> PrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def _key(subject: Subject, kind: Kind) -> PrivateKey:
    found = subject.materials.grant_key if kind is Kind.GRANT else subject.materials.release_key
    if found is None:
        raise NotTestable(f"no {kind.name.lower()} key was given")
    return found


CHECKS: Final = (
    owner_too_large, owner_malformed, owner_unknown_key, owner_other_kind, owner_signature, owner_held, owner_grant_key,
    owner_release_key, owner_any_state, owner_reset,
)  # fmt: skip
