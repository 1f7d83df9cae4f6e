# SPDX-License-Identifier: Apache-2.0
"""From a grant to the last byte: what a device takes, where it goes on, and what it leaves when it is stopped."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from attestation import grants
from attestation.device_protocol import ErrorCode
from attestation.grants import Verb
from flashjob.conformance.check import Broken, Need, check
from flashjob.conformance.subject import Subject, expect

_KEYS: Final = (Need.NETWORK, Need.GRANT_KEY, Need.RELEASE_KEY)
_IMAGE: Final = (*_KEYS, Need.IMAGE)
_JUNK: Final = bytes(range(256)) * 256
"""64 KiB that no device boots."""


@check("install.accepted", *_KEYS)
async def install_accepted(subject: Subject) -> None:
    """A good install grant is answered with {17: 0, 18: grant id}, and `info` shows both."""
    grant = await subject.install_grant(_JUNK)
    answer = await subject.send(grant)
    if not answer.ok or answer.labels != {17: 0, 18: grant.grant_id}:
        raise Broken(f"{answer}: {answer.labels!r:.120}")
    info = await subject.info()
    if (info.next_offset, info.active_grant) != (0, grant.grant_id):
        raise Broken(f"info shows next offset {info.next_offset} and grant {info.active_grant!r}")


@check("install.repeat", *_KEYS)
async def install_repeat(subject: Subject) -> None:
    """The same grant again, byte for byte, gets the same answer and nothing else happens."""
    grant = await subject.install_grant(_JUNK)
    data = grants.mint(grant, subject.signer)
    first, second = await subject.send_bytes(data, grant), await subject.send_bytes(data, grant)
    if not first.ok or first != second:
        raise Broken(f"first {first}, then {second}: {second.body.hex():.120}")


@check("install.replay", *_KEYS)
async def install_replay(subject: Subject) -> None:
    """A nonce is good for one grant: neither another grant over it (6) nor an old grant after a newer one (6) is
    taken."""
    first = await subject.grant_install(_JUNK)
    other = await subject.install_grant(_JUNK, device_nonce=first.device_nonce)
    expect(await subject.send(other), ErrorCode.NONCE, "another grant over a used nonce")
    await subject.grant_install(_JUNK)
    expect(await subject.send(first), ErrorCode.NONCE, "a grant that was taken earlier")


@check("install.fence", *_KEYS)
async def install_fence(subject: Subject) -> None:
    """An accepted fence is stored: another grant under it is an old writer's (7), its own grant id may come again,
    and it is attested."""
    grant = await subject.grant_install(_JUNK)
    if (await subject.proof()).token.fence != grant.fence:
        raise Broken(f"attested is fence {await subject.fence()}, accepted was {grant.fence}")
    late = await subject.install_grant(_JUNK, fence=grant.fence)
    expect(await subject.send(late), ErrorCode.FENCE, "another grant id under the stored fence")
    await subject.grant_install(_JUNK, fence=grant.fence, grant_id=grant.grant_id)


@check("install.takeover", *_KEYS)
async def install_takeover(subject: Subject) -> None:
    """Of two writers the later fence wins: a new grant ends the upload before it and begins at 0."""
    await subject.grant_install(_JUNK)
    upload = await subject.http.begin("PUT", "image?off=0", len(_JUNK), _JUNK[: len(_JUNK) // 2])
    try:
        await subject.until(lambda info: bool(info.next_offset), "take the first bytes of an upload", 10)
        later = await subject.grant_install(_JUNK)
        info = await subject.info()
        if (info.active_grant, info.next_offset) != (later.grant_id, 0):
            raise Broken(f"after the second grant info shows offset {info.next_offset} of {info.active_grant!r}")
    finally:
        upload.cut()


@check("cancel.other", *_KEYS)
async def cancel_other(subject: Subject) -> None:
    """A cancel grant for another installation is refused (9)."""
    await subject.grant_install(_JUNK)
    grant = await subject.running_grant(Verb.CANCEL, grant_id=secrets.token_bytes(16))
    expect(await subject.send(grant), ErrorCode.STATE, "cancel of another grant id")


@check("cancel.ends", *_KEYS)
async def cancel_ends(subject: Subject) -> None:
    """Cancel ends what is being received: the answer is {}, and no image is taken any more (9)."""
    await subject.grant_install(_JUNK)
    answer = await subject.send(await subject.running_grant(Verb.CANCEL))
    if not answer.ok or answer.labels:
        raise Broken(f"{answer}: {answer.labels!r:.80}")
    info = await subject.info()
    if info.active_grant is not None or info.next_offset is not None:
        raise Broken("info still shows an installation")
    expect(await subject.put(_JUNK), ErrorCode.STATE, "an upload after cancel")


@check("image.offset", *_KEYS)
async def image_offset(subject: Subject) -> None:
    """An upload that begins elsewhere is refused (10), and the refusal says where it goes on (17)."""
    await subject.grant_install(_JUNK)
    answer = await subject.put(_JUNK[4096:], 4096)
    expect(answer, ErrorCode.OFFSET, "an upload from 4096 on, at first")
    if answer.labels.get(17) != 0:
        raise Broken(f"label 17 is {answer.labels.get(17)!r}, expected 0")


@check("image.length", *_KEYS)
async def image_length(subject: Subject) -> None:
    """An upload brings all bytes that are missing: more is too large (2), fewer is malformed (1)."""
    await subject.grant_install(_JUNK)
    expect(await subject.put(_JUNK + b"!"), ErrorCode.TOO_LARGE, "one byte more than was granted")
    expect(await subject.put(_JUNK[:-1]), ErrorCode.MALFORMED, "one byte less than was granted")


@check("image.busy", *_KEYS)
async def image_busy(subject: Subject) -> None:
    """While one upload runs, another one is refused (8)."""
    await subject.grant_install(_JUNK)
    upload = await subject.http.begin("PUT", "image?off=0", len(_JUNK), _JUNK[:8192])
    try:
        info = await subject.until(lambda info: bool(info.next_offset), "take the first bytes of an upload", 10)
        at = info.next_offset or 0
        expect(await subject.put(_JUNK[at:], at), ErrorCode.BUSY, "a second upload")
    finally:
        upload.cut()


@check("image.payload", *_KEYS)
async def image_payload(subject: Subject) -> None:
    """A payload with another SHA-256 than was granted is refused at its last byte (11), and what ran runs on."""
    before = await subject.info()
    await subject.grant_install(_JUNK)
    expect(await subject.put(_JUNK[:-1] + b"!"), ErrorCode.DIGEST, "a payload with its last byte changed")
    await subject.unharmed(before.bootseed)


@check("image.no_image", *_KEYS)
async def image_no_image(subject: Subject) -> None:
    """A payload that is granted but no image for this chip is refused at its last byte (12), and what ran runs on."""
    before = await subject.info()
    await subject.grant_install(_JUNK)
    expect(await subject.put(_JUNK), ErrorCode.IMAGE_OR_CHIP, "64 KiB that are no image")
    await subject.unharmed(before.bootseed)


@check("image.measurement", *_IMAGE)
async def image_measurement(subject: Subject) -> None:
    """An image that does not measure what was granted is refused at its last byte (11), and what ran runs on."""
    before = await subject.info()
    await subject.grant_install(subject.image, result=await subject.result(b"another image"))
    expect(await subject.put(subject.image), ErrorCode.DIGEST, "an image that measures something else")
    await subject.unharmed(before.bootseed)


@check("image.resume", *_IMAGE)
async def image_resume(subject: Subject) -> None:
    """A lost connection costs nothing: `info` 17 says where to go on, and the rest completes the image."""
    before = await subject.info()
    await subject.grant_install(subject.image)
    half = len(subject.image) // 2
    upload = await subject.http.begin("PUT", "image?off=0", len(subject.image), subject.image[:half])
    try:
        await subject.until(lambda info: bool(info.next_offset), "take the first bytes of an upload", 10)
    finally:
        upload.cut()
    for _ in range(20):
        offset = (await subject.info()).next_offset
        if not offset or offset > half:
            raise Broken(f"after {half} bytes and a lost connection info shows next offset {offset}")
        answer = await subject.put(subject.image[offset:], offset)
        if answer.ok or answer.code not in (ErrorCode.BUSY, ErrorCode.OFFSET):
            break
        await asyncio.sleep(0.2)  # it may not have seen yet that the connection is gone
    if not answer.ok:
        raise Broken(f"the rest from {offset} on: {answer}")
    await subject.until(lambda info: info.bootseed != before.bootseed, "boot what was completed in two parts")


@check("image.reset", *_KEYS, Need.RESET)
async def image_reset(subject: Subject) -> None:
    """A reset in mid-upload forgets nonce and upload; the same grant id and fence, signed over a new nonce, begin
    again at 0."""
    grant = await subject.grant_install(_JUNK)
    upload = await subject.http.begin("PUT", "image?off=0", len(_JUNK), _JUNK[:8192])
    try:
        await subject.until(lambda info: bool(info.next_offset), "take the first bytes of an upload", 10)
    finally:
        upload.cut()
    info = await subject.reset()
    if info.active_grant is not None or info.next_offset is not None:
        raise Broken("it still shows the installation after a reset")
    expect(await subject.send(grant), ErrorCode.NONCE, "the grant from before the reset")
    await subject.grant_install(_JUNK, fence=grant.fence, grant_id=grant.grant_id)
    if (await subject.info()).next_offset != 0:
        raise Broken("the upload does not begin at 0 again")


CHECKS: Final = (
    install_accepted, install_repeat, install_replay, install_fence, install_takeover, cancel_other, cancel_ends,
    image_offset, image_length, image_busy, image_payload, image_no_image, image_measurement, image_resume, image_reset,
)  # fmt: skip
