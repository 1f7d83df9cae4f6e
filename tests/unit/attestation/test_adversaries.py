# SPDX-License-Identifier: Apache-2.0
"""Adversaries, each with what stops it; where something else would not have stopped it, a twin test says so."""

import hashlib
from dataclasses import replace
from typing import Any

from attestation import nonce
from attestation.discovery import rules
from attestation.discovery.addresses import Address
from attestation.eat import SlotState
from attestation.policy import Measurement, RootOfTrust
from attestation.replay import InMemorySingleUse
from attestation.verifier import IssuedNonce, Verdict, verify_once
from tests.unit.attestation.world import (
    BOOT_ID,
    NOW,
    RING,
    Minted,
    context,
    digest,
    judge,
    policy,
    ref,
)

D = Minted()
NEW_BOOT_ID = bytes(range(16, 32))
TARGET = Measurement.of_hash(digest("app 2.0"))


def answer_from(host: str) -> rules.Attestation:
    """An answer that was received from this address, port 80."""
    return rules.Attestation(
        device_id=D.ueid.hex(),
        evidence=D.evidence(),
        boot_seed=bytes(range(16)),
        slot_state=int(SlotState.VALID),
        endpoint=f"{host}:80",
        reached=Address(host, 80),
        nonce=D.fresh_nonce(),
        at=0.0,
        unix=NOW,
    )


def forged_from_uds(nonce_value: bytes) -> bytes:
    """What a running application that can read the UDS answers: it makes the whole chain of the wanted firmware."""
    forger = replace(D, nonce=nonce_value)
    return forger.evidence()


def test_an_application_that_holds_the_uds_is_stopped_by_the_minimum_root_of_trust() -> None:
    """On a chip whose key any signed application can use, only hardware isolation proves more."""
    strict = policy(D, min_root_of_trust=RootOfTrust.ISOLATED)
    verdict = judge(D, forged_from_uds(D.fresh_nonce()), policy=strict)
    assert not verdict.proven_at_tier
    assert any("root of trust" in text for text in verdict.unproven)


def test_twin_the_same_application_passes_under_signed_boot() -> None:
    """So nobody may claim more for SignedBoot than that no signed image was compromised."""
    assert judge(D, forged_from_uds(D.fresh_nonce())).proven_at_tier


def test_a_target_cdi_that_leaked_earlier_is_stopped_by_the_boot_id() -> None:
    """The earlier installation's key answers a fresh nonce perfectly, but for the installation that is now expected."""
    expected: dict[str, Any] = {"expected": frozenset({TARGET}), "boot_ids": frozenset({NEW_BOOT_ID})}
    assert judge(D, **expected).code == "boot.id"
    assert judge(replace(D, boot_id=NEW_BOOT_ID), **expected).accepted


def test_twin_without_a_demanded_boot_id_the_leaked_cdi_passes() -> None:
    assert judge(D, expected=frozenset({TARGET})).accepted


def test_a_device_that_never_rebooted_still_runs_the_old_application() -> None:
    old = replace(D, code="app 1.0", boot_id=BOOT_ID)
    known = policy(D).model_copy(
        update={
            "application": policy(D).application.model_copy(
                update={"measurements": (ref(old.measurement), ref(TARGET))}
            )
        }
    )
    assert judge(old, policy=known).accepted
    assert judge(old, policy=known, expected=frozenset({TARGET}), boot_ids=frozenset({NEW_BOOT_ID})).code == "ref.code"


def test_the_same_image_installed_again_but_not_rebooted() -> None:
    """Measurement and version are already right: only the boot id tells that the new installation never ran."""
    assert judge(D, expected=frozenset({TARGET}), boot_ids=frozenset({NEW_BOOT_ID})).code == "boot.id"


def test_one_that_rolls_back_after_the_first_accept_is_stopped_by_confirm() -> None:
    """Success is the answer to a second nonce with the slot VALID; a pending slot or the old image is none."""
    used = InMemorySingleUse()
    pending = replace(D, slot_state=int(SlotState.PENDING), boot_id=NEW_BOOT_ID)
    demands: dict[str, Any] = {"expected": frozenset({TARGET}), "boot_ids": frozenset({NEW_BOOT_ID})}
    first = verify_once(pending.evidence(), context(pending, **demands), used)
    assert first.accepted

    def confirm(device: Minted) -> Verdict:
        asked = nonce.issue(RING, device.ueid, b"task/1/confirm", now=NOW, ttl=120, random=b"confirmed!")
        answer = replace(device, nonce=asked)
        final = {**demands, "nonce": IssuedNonce(RING, b"task/1/confirm"), "slot_states": frozenset({SlotState.VALID})}
        return verify_once(answer.evidence(), context(answer, **final), used)

    rolled_back = replace(D, code="app 1.0", boot_id=BOOT_ID)
    assert confirm(rolled_back).code == "ref.code"
    assert confirm(pending).code == "slot.state"
    assert confirm(replace(pending, slot_state=int(SlotState.VALID))).accepted


def test_an_endpoint_relay_is_not_listed_as_the_device() -> None:
    """The evidence is genuine; but the device does not call the address that answered its own."""
    verdict = judge(D)
    assert verdict.proven_at_tier
    listed, token = rules.judge(answer_from("192.0.2.7"), verdict)
    assert (listed.code, token is None) == ("", False)
    relayed, token = rules.judge(answer_from("198.51.100.1"), verdict)
    assert (relayed.code, token) == ("eat.address", None)


def test_the_right_application_with_another_partition_table() -> None:
    strict = policy(D, partition_tables=(hashlib.sha256(b"table").hexdigest(),))
    assert judge(D, policy=strict).accepted
    moved = replace(D, partition_table=hashlib.sha256(b"another table").digest())
    assert judge(moved, policy=strict).code == "ref.partitions"
    assert judge(moved, expected=frozenset({TARGET}), partition_table=D.partition_table).code == "ref.partitions"


def test_twin_where_neither_policy_nor_artifact_names_a_table_it_passes_and_that_is_said() -> None:
    moved = replace(D, partition_table=hashlib.sha256(b"another table").digest())
    verdict = judge(moved, expected=frozenset({TARGET}))
    assert verdict.accepted
    assert any("partition table" in item for item in verdict.unproven)
