# SPDX-License-Identifier: Apache-2.0
"""Who it is and what it proves: info, evidence, nonces. No owner's key is needed."""

from __future__ import annotations

import secrets
from typing import Final

from attestation import device_protocol as dp
from attestation.cbor import dumps
from attestation.device_protocol import ErrorCode, Request
from attestation.grants import Verb
from flashjob.conformance.check import Broken, check
from flashjob.conformance.subject import Subject, expect

_N32: Final = bytes(range(32))
_BAD_ATTEST: Final = {
    "an empty body": b"",
    "bytes that are no CBOR": b"\xff\xff",
    "an array": dumps([_N32]),
    "a nonce of 31 bytes": dumps({1: _N32[:31]}),
    "a nonce of 33 bytes": dumps({1: _N32 + b"!"}),
    "a text instead of the nonce": dumps({1: "x" * 32}),
    "an unknown label": dumps({1: _N32, 2: 0}),
    "the wrong label": dumps({2: _N32}),
    "an indefinite-length map": b"\xbf\x01\x58\x20" + _N32 + b"\xff",
    "a label that is not in its shortest form": b"\xa1\x18\x01\x58\x20" + _N32,
    "a label twice": b"\xa2\x01\x58\x20" + _N32 + b"\x01\x58\x20" + _N32,
    "a tag": b"\xc0" + dumps({1: _N32}),
    "a cut body": dumps({1: _N32})[:-1],
    "a body that goes on after its end": dumps({1: _N32}) + b"\0",
    "arrays in arrays": b"\x81" * 64 + b"\0",
}
_BAD_NONCE: Final = {
    "verb 0": dumps({1: 0}),
    "verb 5": dumps({1: 5}),
    "a negative verb": dumps({1: -1}),
    "a verb in words": dumps({1: "install"}),
    "an unknown label": dumps({1: 1, 2: 1}),
    "an empty map": dumps({}),
    "an empty body": b"",
}
_TOO_LARGE: Final = dumps({1: bytes(dp.MAX_REQUEST_BYTES)})


@check("info.shape")
async def info_shape(subject: Subject) -> None:
    """`info` is a deterministic CBOR map with every label that is required, of the right type and size."""
    info = await subject.info()
    if dp.VERSION not in info.versions:
        raise Broken(f"it speaks versions {info.versions}, not {dp.VERSION}")


@check("info.stable")
async def info_stable(subject: Subject) -> None:
    """Within one boot `info` names the same device, boot seed, slot and measurement."""
    first, second = await subject.info(), await subject.info()
    for name in ("ueid", "bootseed", "running_slot", "measurement", "chip_id", "flash_size", "partition_table"):
        if getattr(first, name) != getattr(second, name):
            raise Broken(f"{name} was {getattr(first, name)!r:.60} and then {getattr(second, name)!r:.60}")


@check("attest.fresh")
async def attest_fresh(subject: Subject) -> None:
    """Evidence carries the nonce that was sent, and is made anew for each one."""
    one, two = await subject.proof(), await subject.proof()
    if one.token.boot_seed != two.token.boot_seed:
        raise Broken("two tokens of one boot have different boot seeds")


@check("attest.chain")
async def attest_chain(subject: Subject) -> None:
    """Each certificate is signed by the key before it, the token by the last one; id and anchor are the device's."""
    proof, info = await subject.proof(), await subject.info()
    if proof.token.ueid != info.ueid:
        raise Broken(f"the token is of {proof.token.ueid.hex()}, info of {info.ueid.hex()}")


@check("attest.agrees")
async def attest_agrees(subject: Subject) -> None:
    """What is attested is what `info` says: application, version, slot, slot state, measurement, partition table, eFuses."""
    proof, info = await subject.proof(), await subject.info()
    pairs = {
        "application": (proof.token.name, info.name),
        "certified application": (proof.config.name, info.name),
        "version": (proof.token.version, info.version),
        "slot": (proof.config.slot, info.running_slot),
        "slot state": (int(proof.token.slot_state), info.slot_state),
        "measurement": (proof.measurement, info.measurement),
        "partition table": (proof.config.partition_table, info.partition_table),
        "eFuse security version": (proof.token.efuse_secure_version, info.efuse_secure_version),
        "boot seed": (proof.token.boot_seed, info.bootseed),
        "security eFuses": (proof.config.security_efuses, int(info.flags & dp.SECURITY_EFUSES)),
    }
    for name, (attested, claimed) in pairs.items():
        if attested != claimed:
            raise Broken(f"{name}: attested is {attested!s:.80}, info says {claimed!s:.80}")


@check("attest.rate")
async def attest_rate(subject: Subject) -> None:
    """Evidence is made at most once a second; who asks earlier is told to slow down (17)."""
    await subject.evidence()
    answer = await subject.line.ask(Request.ATTEST, dp.attest_request(secrets.token_bytes(32)))
    expect(answer, ErrorCode.SLOW_DOWN, "a second attest at once")


@check("attest.malformed")
async def attest_malformed(subject: Subject) -> None:
    """An attest request that is not exactly {1: 32 bytes} in deterministic CBOR is malformed (1)."""
    for what, body in _BAD_ATTEST.items():
        expect(await subject.line.ask(Request.ATTEST, body), ErrorCode.MALFORMED, what)


@check("attest.too_large")
async def attest_too_large(subject: Subject) -> None:
    """A request of more than 1,024 bytes is too large (2)."""
    expect(await subject.line.ask(Request.ATTEST, _TOO_LARGE), ErrorCode.TOO_LARGE, f"{len(_TOO_LARGE)} bytes")
    expect(await subject.line.ask(Request.NONCE, _TOO_LARGE), ErrorCode.TOO_LARGE, f"{len(_TOO_LARGE)} bytes")


@check("nonce.fresh")
async def nonce_fresh(subject: Subject) -> None:
    """A nonce has 16 bytes, is given for each of the four verbs, lives at most 600 s, and never comes twice."""
    seen = set()
    for verb in Verb:
        answer = await subject.line.ask(Request.NONCE, dp.nonce_request(verb))
        if not answer.ok:
            raise Broken(f"verb {int(verb)}: {answer}")
        try:
            nonce = dp.parse_nonce(answer.body)
        except dp.DeviceError as error:
            raise Broken(error.message) from error
        if nonce.ttl_seconds > 600:
            raise Broken(f"the nonce lives for {nonce.ttl_seconds} s")
        seen.add(nonce.value)
    if len(seen) != len(Verb):
        raise Broken("a nonce came twice")


@check("nonce.malformed")
async def nonce_malformed(subject: Subject) -> None:
    """A nonce request that is not exactly {1: verb 1 to 4} is malformed (1)."""
    for what, body in _BAD_NONCE.items():
        expect(await subject.line.ask(Request.NONCE, body), ErrorCode.MALFORMED, what)


CHECKS: Final = (
    info_shape, info_stable, attest_fresh, attest_chain, attest_agrees, attest_rate, attest_malformed, attest_too_large,
    nonce_fresh, nonce_malformed,
)  # fmt: skip
