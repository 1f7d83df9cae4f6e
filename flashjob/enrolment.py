# SPDX-License-Identifier: Apache-2.0
"""Enrolment: look at the live device, have it prove its key, and write down who it is.

Rules (tests name them):

1. The anchor is given by whoever knows it (maker's list, provisioning station); it is never taken from the device.
2. The device proves possession: evidence over a fresh nonce, chained to that anchor, under the policy it will be judged
   by, whatever application it runs (EvidenceInvalid).
3. It must list the key that will sign its grants (GrantKeyUnknown).
4. Chip, revision, flash size and MAC are read from the live chip, not from its label.
5. The root of trust is the enroller's statement about the hardware, bounded by what that chip can have at all.
"""

from dataclasses import dataclass
from typing import Any

from attestation import keys
from attestation.enrolment import prove_possession
from attestation.errors import Reject
from attestation.keys import PublicKey
from attestation.policy import AttestationPolicySpec, RootOfTrust
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET
from firmware_pipeline.hardware import HardwareFacts
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import Transport
from flashjob.wire.base import b64url
from flashjob.wire.reasons import Reason


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What the enroller states.

    Args:
        anchor: the device's UDS public key.
        tier: what its hardware can prove.
        policy_name, policy: what will judge it.
        grant_key_id: id of the key that will sign its grants.
    """

    anchor: PublicKey
    tier: RootOfTrust
    policy_name: str
    policy: AttestationPolicySpec
    grant_key_id: bytes


async def look(transport: Transport, enrolment: Enrolment, *, nonce: bytes, now: int, seconds: float) -> HardwareFacts:
    """Rules 2 to 5 on the live device.

    Args:
        transport: the way to it.
        enrolment: what the enroller states.
        nonce: 32 fresh random bytes.
        now: Unix time in seconds.
        seconds: how long to wait for its first answer.

    Returns:
        What was read from the chip.

    Raises:
        FlashJobError: EvidenceInvalid, GrantKeyUnknown, WrongDevice; or of the transport.
    """
    await transport.info(seconds)
    evidence = await transport.evidence(nonce)
    try:
        verdict = prove_possession(
            evidence,
            enrolment.anchor,
            tier=enrolment.tier,
            policy_name=enrolment.policy_name,
            policy=enrolment.policy,
            nonce=nonce,
            now=now,
        )
    except Reject as reject:
        raise FlashJobError(
            Reason.EVIDENCE_INVALID, str(reject), "provision the device with a secret of its own"
        ) from reject
    if not verdict.accepted or verdict.claims is None:
        raise FlashJobError(
            Reason.EVIDENCE_INVALID,
            f"the device does not prove this anchor under policy {enrolment.policy_name}: {verdict.message} ({verdict.code})",
            "check --anchor, the policy's bootloader and authority hashes, and the cabling",
        )
    if enrolment.grant_key_id not in verdict.claims.owner_keys:
        listed = ", ".join(key.hex() for key in verdict.claims.owner_keys) or "none"
        raise FlashJobError(
            Reason.GRANT_KEY_UNKNOWN,
            f"the device accepts grants of keys {listed}, not of {enrolment.grant_key_id.hex()}",
            Reason.GRANT_KEY_UNKNOWN.next_step,
        )
    facts = await transport.probe(DEFAULT_TABLE_OFFSET)
    await transport.abandon()
    chip = by_target(facts.target) if facts.target else None
    if chip is None or (enrolment.tier is not RootOfTrust.SELF_REPORTED and not chip.hmac_key):
        raise FlashJobError(
            Reason.WRONG_DEVICE,
            f"a {chip.display if chip else 'chip that is not named'} cannot have root of trust {enrolment.tier}",
            "enroll it with --root-of-trust SelfReported",
        )
    return facts


def device_spec(enrolment: Enrolment, facts: HardwareFacts, connection: dict[str, Any]) -> dict[str, Any]:
    """The spec of the Device kind."""
    hardware = {
        "chip": facts.target,
        "revision": facts.revision,
        "flashSize": facts.flash_size,
        "mac": facts.mac,
        "slotSize": facts.target_slot_size,
    }
    return {
        "id": keys.ueid(enrolment.anchor).hex(),
        "trustAnchor": {"coseKey": b64url(keys.encode_cose(enrolment.anchor))},
        "rootOfTrust": str(enrolment.tier),
        "policyRef": {"name": enrolment.policy_name},
        "connection": connection,
        "hardware": {name: value for name, value in hardware.items() if value is not None},
    }
