# SPDX-License-Identifier: Apache-2.0
"""Deltas, which are optional (flag 6 of `info`): judged by their result, and refused by who does not take them.

The delta here leads from the test image to itself, so that no second signed image is needed. What a device that runs
something else makes of a delta is asked in `hostile_grants`.
"""

from __future__ import annotations

from typing import Any, Final

from attestation.device_protocol import ErrorCode, Flag
from attestation.grants import PayloadFormat, Verb
from firmware_pipeline.errors import PipelineError
from flashjob.conformance.check import Broken, Need, NotTestable, check
from flashjob.conformance.subject import Subject, expect
from flashjob.flasher import delta

_KEYS: Final = (Need.NETWORK, Need.GRANT_KEY, Need.RELEASE_KEY)
_IMAGE: Final = (*_KEYS, Need.IMAGE)


@check("delta.accepted", *_IMAGE)
async def delta_accepted(subject: Subject) -> None:
    """Where flag 6 is set, a delta from what runs is applied, and the result boots under its boot id."""
    payload, granted = await _delta(subject)
    before = await subject.info()
    grant = await subject.grant_install(payload, **granted)
    answer = await subject.put(payload)
    if not answer.ok:
        raise Broken(f"the last byte of a good delta: {answer}")
    await subject.until(lambda info: info.bootseed != before.bootseed, "boot what the delta made")
    proof = await subject.proof()
    if proof.measurement != grant.result or proof.config.boot_id != grant.grant_id:
        raise Broken(f"it attests {str(proof.measurement)[:24]} under boot id {proof.config.boot_id.hex()}")
    if proof.config.slot == before.running_slot:
        raise Broken("it runs the slot that the delta was to start from")


@check("delta.result", *_IMAGE)
async def delta_result(subject: Subject) -> None:
    """A delta that makes something else than was granted is refused at its last byte (11), and what ran runs on."""
    payload, granted = await _delta(subject)
    granted |= {"result": await subject.result(b"another image")}
    await _refused_at_the_end(subject, payload, granted, ErrorCode.DIGEST)


@check("delta.spoiled", *_IMAGE)
async def delta_spoiled(subject: Subject) -> None:
    """A payload that is granted as a delta and is none is refused at its last byte (12), and what ran runs on."""
    payload, granted = await _delta(subject)
    await _refused_at_the_end(subject, bytes(len(payload)), granted, ErrorCode.IMAGE_OR_CHIP)


@check("delta.unsupported", Need.NETWORK)
async def delta_unsupported(subject: Subject) -> None:
    """Where flag 6 is not set, a delta is refused (16), from what runs as well."""
    info = await subject.info()
    if Flag.DELTA in info.flags:
        raise NotTestable("the device takes deltas")
    payload = bytes(4096)
    grant = await subject.install_grant(payload, payload_format=PayloadFormat.ESP_DELTA, base=info.measurement)
    expect(await subject.send(grant), ErrorCode.BASE, "a delta from what runs")


async def _delta(subject: Subject) -> tuple[bytes, dict[str, Any]]:
    """A delta from what runs, and what its grant says; the test image is installed and confirmed for it."""
    info = await subject.info()
    if Flag.DELTA not in info.flags:
        raise NotTestable("the device takes no deltas (flag 6 is not set)")
    if not delta.available():
        raise NotTestable("the extra `delta` is not installed here")
    result = await subject.result(subject.image)
    try:
        payload = delta.make(subject.image, subject.image)
    except (ValueError, PipelineError) as error:
        raise NotTestable(f"no delta can be made from this image: {error}") from error
    if payload is None:
        raise NotTestable("the image is too small for a delta")
    if info.measurement != result:
        await subject.install()
        if not (await subject.send(await subject.running_grant(Verb.CONFIRM))).ok:
            raise Broken("a good confirm was refused")
    granted = {"payload_format": PayloadFormat.ESP_DELTA, "base": result, "result": result}
    return payload, {**granted, "released": {"image_size": len(subject.image)}}


async def _refused_at_the_end(subject: Subject, payload: bytes, granted: dict[str, Any], code: ErrorCode) -> None:
    before = await subject.info()
    await subject.grant_install(payload, **granted)
    expect(await subject.put(payload), code, "the last byte")
    await subject.unharmed(before.bootseed)


CHECKS: Final = (delta_accepted, delta_result, delta_spoiled, delta_unsupported)
