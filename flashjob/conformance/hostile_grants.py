# SPDX-License-Identifier: Apache-2.0
"""Grants that a device must refuse before it erases a byte, in the order of its checks; nothing here changes it."""

from __future__ import annotations

import secrets
from typing import Any, Final

from attestation import cose, grants
from attestation import device_protocol as dp
from attestation.cbor import dumps
from attestation.device_protocol import ErrorCode, Request
from attestation.grants import PayloadFormat, Verb
from flashjob.conformance.check import Broken, Need, NotTestable, check
from flashjob.conformance.subject import Subject, expect

_PAYLOAD: Final = bytes(4096)
_KEYS: Final = (Need.NETWORK, Need.GRANT_KEY, Need.RELEASE_KEY)


@check("grant.too_large")
async def grant_too_large(subject: Subject) -> None:
    """A grant of more than 1,024 bytes is too large (2)."""
    expect(await subject.send_bytes(bytes(dp.MAX_REQUEST_BYTES + 1)), ErrorCode.TOO_LARGE, "1,025 bytes")


@check("grant.malformed")
async def grant_malformed(subject: Subject) -> None:
    """A grant is an untagged COSE_Sign1 with exactly alg, content type and kid protected, and exactly the labels of
    its verb (1)."""
    good = await subject.running_grant(Verb.REVERT)
    install = await subject.install_grant(_PAYLOAD)
    signer = subject.signer
    whole = grants.mint(good, signer)
    anonymous: dict[str, Any] = {"kid": None}
    cases = {
        "no bytes": b"",
        "an array of nothing": dumps([]),
        "a cut grant": whole[:-1],
        "a byte after the grant": whole + b"\0",
        "tag 18": b"\xd2" + whole,
        "an unprotected header": subject.respelt(good, {}, unprotected={4: b"k"}),
        "one more protected header": subject.respelt(good, {}, protected={16: "x"}),
        "a foreign content type": subject.respelt(good, {}, content_type="application/cbor"),
        "no key id": subject.respelt(good, {}, **anonymous),
        "an unknown label": subject.respelt(good, {99: 1}),
        "an unknown verb": subject.respelt(good, {1: 9}),
        "no fence": subject.respelt(good, {5: None}),
        "a fence below zero": subject.respelt(good, {5: -1}),
        "a grant id of zeros": subject.respelt(good, {4: bytes(16)}),
        "a short grant id": subject.respelt(good, {4: b"short"}),
        "a label of another verb": subject.respelt(good, {14: bytes(32)}),
        "a digest of a wrong size": subject.respelt(good, {6: [-16, bytes(31)]}),
        "a base without a delta": subject.respelt(install, {10: install.result.to_cbor()}),
        "a delta without a base": subject.respelt(install, {9: int(PayloadFormat.ESP_DELTA)}),
        "allow-downgrade that says false": subject.respelt(install, {13: False}),
        "a payload of no bytes": subject.respelt(install, {8: 0}),
    }
    for what, data in cases.items():
        expect(await subject.send_bytes(data), ErrorCode.MALFORMED, what)


@check("grant.release_malformed", Need.NETWORK)
async def grant_release_malformed(subject: Subject) -> None:
    """A release statement that is none is malformed (1)."""
    grant = await subject.install_grant(_PAYLOAD, release=b"no statement")
    expect(await subject.send(grant), ErrorCode.MALFORMED, "a release statement that is none")


@check("grant.other_device")
async def grant_other_device(subject: Subject) -> None:
    """A grant for another device is refused (5), whatever else is right."""
    for verb in (Verb.CONFIRM, Verb.REVERT, Verb.CANCEL):
        grant = await subject.running_grant(verb, ueid=b"\x01" + secrets.token_bytes(32))
        expect(await subject.send(grant), ErrorCode.OTHER_DEVICE, f"{verb.name.lower()} of another device")
    install = await subject.install_grant(_PAYLOAD, ueid=b"\x01" + secrets.token_bytes(32))
    expect(await subject.send(install), ErrorCode.OTHER_DEVICE, "install of another device")


@check("grant.nonce")
async def grant_nonce(subject: Subject) -> None:
    """A grant holds the live nonce of this device for this verb (6): not a made-up one, not another verb's, not one
    that a newer one voided."""
    revert = await subject.running_grant(Verb.REVERT, device_nonce=secrets.token_bytes(16))
    expect(await subject.send(revert), ErrorCode.NONCE, "a made-up nonce")
    other = await subject.running_grant(Verb.REVERT, device_nonce=await subject.device_nonce(Verb.CONFIRM))
    expect(await subject.send(other), ErrorCode.NONCE, "a nonce for another verb")
    old = await subject.running_grant(Verb.REVERT)
    await subject.device_nonce(Verb.REVERT)
    expect(await subject.send(old), ErrorCode.NONCE, "a nonce that a newer one voided")


@check("grant.fence")
async def grant_fence(subject: Subject) -> None:
    """An install grant whose fence is not above the stored one is an old writer's (7)."""
    grant = await subject.install_grant(_PAYLOAD, fence=await subject.fence())
    expect(await subject.send(grant), ErrorCode.FENCE, f"fence {grant.fence} again, under another grant id")


@check("grant.idle")
async def grant_idle(subject: Subject) -> None:
    """Where nothing waits, there is nothing to confirm, to revert or to cancel (9)."""
    if (await subject.info()).slot_state in (0, 1):
        raise NotTestable("the device waits for a confirmation")
    for verb in (Verb.CONFIRM, Verb.REVERT, Verb.CANCEL):
        expect(await subject.send(await subject.running_grant(verb)), ErrorCode.STATE, verb.name.lower())


@check("grant.chip", Need.NETWORK)
async def grant_chip(subject: Subject) -> None:
    """A release for another chip, or for other revisions of it, is refused (12)."""
    info = await subject.info()
    other = {"chip_id": info.chip_id ^ 1}
    expect(
        await subject.send(await subject.install_grant(_PAYLOAD, released=other)),
        ErrorCode.IMAGE_OR_CHIP,
        "another chip",
    )
    newer = {"revisions": [info.chip_revision + 1, 65535]}
    expect(
        await subject.send(await subject.install_grant(_PAYLOAD, released=newer)),
        ErrorCode.IMAGE_OR_CHIP,
        "a newer revision",
    )


@check("grant.slot", Need.NETWORK)
async def grant_slot(subject: Subject) -> None:
    """A payload or an image that is larger than the slot is refused (15)."""
    room = (await subject.info()).target_slot_size
    payload = await subject.install_grant(_PAYLOAD, payload_size=room + 1)
    expect(await subject.send(payload), ErrorCode.SLOT, "a payload one byte larger than the slot")
    image = await subject.install_grant(_PAYLOAD, released={"image_size": room + 1})
    expect(await subject.send(image), ErrorCode.SLOT, "an image one byte larger than the slot")


@check("grant.secure_version", Need.NETWORK)
async def grant_secure_version(subject: Subject) -> None:
    """A release below the anti-rollback counter in the eFuses is refused (13), whatever the grant allows."""
    burnt = (await subject.info()).efuse_secure_version
    if burnt == 0:
        raise NotTestable("the counter is at 0, nothing is below it")
    grant = await subject.install_grant(_PAYLOAD, released={"secure_version": burnt - 1})
    expect(
        await subject.send(grant), ErrorCode.SECURE_VERSION, f"secure_version {burnt - 1}, the counter is at {burnt}"
    )


@check("grant.base", Need.NETWORK)
async def grant_base(subject: Subject) -> None:
    """A delta whose base is not what runs is refused (16)."""
    result = await subject.result(_PAYLOAD)
    grant = await subject.install_grant(_PAYLOAD, payload_format=PayloadFormat.ESP_DELTA, base=result)
    expect(await subject.send(grant), ErrorCode.BASE, "a delta from an image that does not run")


@check("grant.unknown_key", Need.NETWORK)
async def grant_unknown_key(subject: Subject) -> None:
    """A grant signed by a key that the device does not hold is refused (4)."""
    grant = await subject.install_grant(_PAYLOAD)
    expect(await subject.send(grant, signer=subject.stranger), ErrorCode.UNKNOWN_KEY, "a stranger's grant")


@check("grant.unknown_release_key", *_KEYS)
async def grant_unknown_release_key(subject: Subject) -> None:
    """A release signed by a key that the device does not hold is refused (4); a grant key is not a release key."""
    for what, key in (
        ("a stranger's release", subject.stranger),
        ("a release signed by the grant key", subject.signer),
    ):
        grant = await subject.install_grant(_PAYLOAD, release_signer=key)
        expect(await subject.send(grant), ErrorCode.UNKNOWN_KEY, what)


@check("grant.signature", *_KEYS)
async def grant_signature(subject: Subject) -> None:
    """A grant or a release whose signature does not hold is refused (3), though it names a known key."""
    grant = await subject.install_grant(_PAYLOAD)
    expect(
        await subject.send_bytes(subject.forged(grant)), ErrorCode.SIGNATURE, "a grant forged under the grant key's id"
    )
    good = cose.parse(grant.release)
    torn = dumps([good.protected_bytes, {}, good.payload, good.signature[:-1] + bytes([good.signature[-1] ^ 1])])
    broken = await subject.install_grant(_PAYLOAD, release=torn)
    expect(await subject.send(broken), ErrorCode.SIGNATURE, "a release with one bit of its signature flipped")


@check("grant.result", *_KEYS)
async def grant_result(subject: Subject) -> None:
    """A result that is not among the released measurements is refused (11)."""
    released = {"measurements": [await subject.result(b"something else")]}
    grant = await subject.install_grant(_PAYLOAD, released=released)
    expect(await subject.send(grant), ErrorCode.DIGEST, "a result that nobody released")


@check("grant.harmless", *_KEYS)
async def grant_harmless(subject: Subject) -> None:
    """A refused grant uses up neither nonce nor fence and changes nothing: the right one is taken afterwards."""
    before = await subject.info()
    wrong = await subject.install_grant(_PAYLOAD)
    expect(await subject.send(wrong, signer=subject.stranger), ErrorCode.UNKNOWN_KEY, "a stranger's grant")
    after = await subject.info()
    if after.model_copy(update={"confirm_seconds_left": None}) != before.model_copy(
        update={"confirm_seconds_left": None}
    ):
        raise Broken("info is not what it was before the refused grant")
    answer = await subject.send(wrong)
    if not answer.ok:
        raise Broken(f"the same grant, signed rightly, with the same nonce and fence: {answer}")


@check("image.ungranted", Need.NETWORK)
async def image_ungranted(subject: Subject) -> None:
    """Without an active grant no image is taken (9)."""
    expect(await subject.put(_PAYLOAD), ErrorCode.STATE, "an upload that nobody granted")


@check("image.malformed", Need.NETWORK)
async def image_malformed(subject: Subject) -> None:
    """An upload says where it begins, in decimal digits (1)."""
    for path in ("image", "image?off=", "image?off=-1", "image?off=0x0", "image?off=1e3", "image?off=99999999999"):
        expect(await subject.http.send("PUT", path, _PAYLOAD), ErrorCode.MALFORMED, f"PUT {path}")


@check("image.flash", Need.NETWORK)
async def image_flash(subject: Subject) -> None:
    """A flash that fails is reported as such (18)."""
    raise NotTestable("no host can make a device's flash fail")


@check("grant.install_elsewhere", Need.SERIAL)
async def grant_install_elsewhere(subject: Subject) -> None:
    """A device that is written through its loader takes no install grant (9)."""
    grant = await subject.install_grant(_PAYLOAD)
    answer = await subject.line.ask(Request.GRANT, grants.mint(grant, subject.signer))
    expect(answer, ErrorCode.STATE, "an install grant over serial")


CHECKS: Final = (
    grant_too_large, grant_malformed, grant_release_malformed, grant_other_device, grant_nonce, grant_fence, grant_idle,
    grant_chip, grant_slot, grant_secure_version, grant_base, grant_unknown_key, grant_unknown_release_key, grant_signature,
    grant_result, grant_harmless, grant_install_elsewhere, image_ungranted, image_malformed, image_flash,
)  # fmt: skip
