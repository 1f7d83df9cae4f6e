# SPDX-License-Identifier: Apache-2.0
"""From the first boot of an installation to its confirmation, or back. The device ends with the test image confirmed."""

from __future__ import annotations

import secrets
from typing import Final

from attestation.device_protocol import ErrorCode
from attestation.eat import SlotState
from attestation.grants import ConfirmGrant, Verb
from flashjob.conformance.check import Broken, Need, check
from flashjob.conformance.subject import PENDING, Subject, expect

_IMAGE: Final = (Need.NETWORK, Need.GRANT_KEY, Need.RELEASE_KEY, Need.IMAGE)
_DEADLINE_SECONDS: Final = 3


@check("boot.proves", *_IMAGE)
async def boot_proves(subject: Subject) -> None:
    """After the last byte the device boots the other slot, and attests the granted measurement, the grant id as
    boot id, the fence, and that it is not confirmed."""
    before = await subject.info()
    grant = await subject.install(confirm_seconds=90)
    info, proof = await subject.info(), await subject.proof()
    if info.running_slot == before.running_slot:
        raise Broken(f"it still runs slot {info.running_slot:#x}")
    if proof.measurement != grant.result:
        raise Broken(f"attested is {str(proof.measurement)[:24]}, granted was {str(grant.result)[:24]}")
    if proof.config.boot_id != grant.grant_id:
        raise Broken(f"attested boot id {proof.config.boot_id.hex()}, the grant id is {grant.grant_id.hex()}")
    if proof.token.fence != grant.fence:
        raise Broken(f"attested fence {proof.token.fence}, granted was {grant.fence}")
    if proof.token.slot_state not in PENDING:
        raise Broken(f"the slot is attested as {proof.token.slot_state.name} before it was confirmed")
    if not 0 < (info.confirm_seconds_left or 0) <= 90:
        raise Broken(f"90 s were granted until it rolls back, info 19 says {info.confirm_seconds_left}")


@check("pending.install", *_IMAGE)
async def pending_install(subject: Subject) -> None:
    """While an installation waits for its confirmation, no other one is begun (9)."""
    await subject.install()
    expect(await subject.send(await subject.install_grant(subject.image)), ErrorCode.STATE, "install while one waits")


@check("revert.goes_back", *_IMAGE)
async def revert_goes_back(subject: Subject) -> None:
    """Revert gives the installation up: the old slot runs again."""
    before = await subject.info()
    await subject.install()
    waiting = await subject.info()
    answer = await subject.send(await subject.running_grant(Verb.REVERT))
    if not answer.ok or answer.labels:
        raise Broken(f"revert: {answer}")
    info = await subject.until(lambda info: info.bootseed != waiting.bootseed, "come back after revert")
    if info.running_slot != before.running_slot or info.measurement != before.measurement:
        raise Broken(f"it runs slot {info.running_slot:#x}, before the installation it ran {before.running_slot:#x}")


@check("deadline.goes_back", *_IMAGE)
async def deadline_goes_back(subject: Subject) -> None:
    """An installation that nobody confirms in time is given up by the device itself."""
    before = await subject.info()
    await subject.install(confirm_seconds=_DEADLINE_SECONDS)
    await subject.until(
        lambda info: info.running_slot == before.running_slot and info.slot_state not in PENDING,
        f"go back by itself after {_DEADLINE_SECONDS} s without confirmation",
        _DEADLINE_SECONDS + subject.materials.boot_seconds,
    )


@check("reset.goes_back", *_IMAGE, Need.RESET)
async def reset_goes_back(subject: Subject) -> None:
    """Any reset before the confirmation ends in the old slot."""
    before = await subject.info()
    await subject.install()
    info = await subject.reset()
    if info.running_slot != before.running_slot:
        raise Broken(f"after a reset it still runs the unconfirmed slot {info.running_slot:#x}")


@check("confirm.refuses", *_IMAGE)
async def confirm_refuses(subject: Subject) -> None:
    """A confirm grant with a wrong boot id (9), an old fence (7), another measurement (11), a stranger's key (4) or
    a forged signature (3) is refused, and the slot stays unconfirmed."""
    await subject.install()

    async def confirm(**changes: object) -> ConfirmGrant:
        grant = await subject.running_grant(Verb.CONFIRM, **changes)
        if not isinstance(grant, ConfirmGrant):
            raise TypeError("a confirm grant was asked for")
        return grant

    expect(await subject.send(await confirm(grant_id=secrets.token_bytes(16))), ErrorCode.STATE, "another boot id")
    if await subject.fence():
        expect(await subject.send(await confirm(fence=await subject.fence() - 1)), ErrorCode.FENCE, "an old fence")
    other = await subject.result(b"another image")
    expect(await subject.send(await confirm(result=other)), ErrorCode.DIGEST, "another measurement")
    grant = await confirm()
    expect(await subject.send(grant, signer=subject.stranger), ErrorCode.UNKNOWN_KEY, "a stranger's confirm")
    forged = subject.forged(grant)
    expect(await subject.send_bytes(forged), ErrorCode.SIGNATURE, "a forged confirm")
    if (await subject.info()).slot_state not in PENDING:
        raise Broken("the slot counts as confirmed though every confirm was refused")


@check("confirm.proves", *_IMAGE)
async def confirm_proves(subject: Subject) -> None:
    """Confirm answers with evidence over the second nonce that says VALID; the same grant again gets the same
    answer, another one nothing to confirm (9)."""
    await subject.install()
    grant = await subject.running_grant(Verb.CONFIRM)
    if not isinstance(grant, ConfirmGrant):
        raise TypeError("a confirm grant was asked for")
    answer = await subject.send(grant)
    if not answer.ok:
        raise Broken(f"a good confirm: {answer}")
    proof = subject.open(answer.body, grant.second_nonce)
    if proof.token.slot_state is not SlotState.VALID or proof.measurement != grant.result:
        raise Broken(f"the answer attests {proof.token.slot_state.name} and {str(proof.measurement)[:24]}")
    if await subject.send(grant) != answer:
        raise Broken("the same confirm again got another answer")
    expect(await subject.send(await subject.running_grant(Verb.CONFIRM)), ErrorCode.STATE, "a second confirm")
    if (await subject.info()).confirm_seconds_left is not None:
        raise Broken("info 19 still counts down after the confirmation")


@check("confirm.stays", *_IMAGE, Need.RESET)
async def confirm_stays(subject: Subject) -> None:
    """What was confirmed runs after the next reset, and is still attested as VALID under its boot id."""
    grant = await subject.install()
    if not (await subject.send(await subject.running_grant(Verb.CONFIRM))).ok:
        raise Broken("a good confirm was refused")
    await subject.reset()
    proof = await subject.proof()
    if proof.token.slot_state is not SlotState.VALID or proof.config.boot_id != grant.grant_id:
        raise Broken(f"after a reset it attests {proof.token.slot_state.name}, boot id {proof.config.boot_id.hex()}")


@check("sequence.keeps", *_IMAGE)
async def sequence_keeps(subject: Subject) -> None:
    """The sequence of a confirmed release is stored: an older one is refused (14) unless the grant allows a
    downgrade."""
    confirmed = subject.materials.sequence + 1
    await subject.install(released={"sequence": confirmed})
    if not (await subject.send(await subject.running_grant(Verb.CONFIRM))).ok:
        raise Broken("a good confirm was refused")
    older = {"sequence": confirmed - 1}
    grant = await subject.install_grant(subject.image, released=older, allow_downgrade=None)
    expect(await subject.send(grant), ErrorCode.SEQUENCE, f"sequence {confirmed - 1} after {confirmed}")
    await subject.grant_install(subject.image, released=older)


CHECKS: Final = (
    boot_proves, pending_install, revert_goes_back, deadline_goes_back, reset_goes_back, confirm_refuses, confirm_proves,
    confirm_stays, sequence_keeps,
)  # fmt: skip
