# SPDX-License-Identifier: Apache-2.0
"""Roots of trust: what mode and eFuses must say under each tier, and that no claim ever raises one."""

from typing import Any

import pytest

from attestation.policy import DebugStatus, Mode, RootOfTrust
from attestation.verifier import Verdict
from tests.unit.attestation.world import LOCKED, Minted, digest, judge, policy, refused

DEVICE = Minted()
SELF_REPORTED: dict[str, Any] = {"mode0": 0, "mode1": 0, "authority": bytes(64), "efuses": 0}


@pytest.mark.parametrize("bit", [0, 1, 2, 3, 7])
def test_normal_mode_with_an_open_efuse(bit: int) -> None:
    refused("ref.efuses", judge(Minted(efuses=LOCKED & ~(1 << bit))), "boot")


@pytest.mark.parametrize("bit", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("mode", [2, 3])
def test_a_tier_above_self_reported_has_locked_efuses_whatever_mode_the_policy_allows(mode: int, bit: int) -> None:
    """A policy that allows mode Debug does not make an open debug port a signed boot."""
    every = policy(DEVICE, modes=(Mode.NORMAL, Mode.DEBUG, Mode.RECOVERY), debug_status=tuple(DebugStatus))
    opened = Minted(mode0=mode, mode1=mode, efuses=LOCKED & ~(1 << bit))
    for tier in (RootOfTrust.SIGNED_BOOT, RootOfTrust.ISOLATED):
        refused("ref.efuses", judge(opened, policy=every, device=opened.anchor(tier)), "boot")
    weak = judge(opened, policy=every, device=opened.anchor(RootOfTrust.SELF_REPORTED))
    assert (weak.code, weak.proven_at_tier) == ("ref.efuses" if bit == 0 else None, False)


@pytest.mark.parametrize(
    ("mode0", "mode1", "efuses"), [(0, 0, LOCKED), (0, 1, LOCKED), (1, 0, 0), (1, 2, 1), (2, 1, 1)]
)
def test_mode_and_efuses_agree_in_every_layer(mode0: int, mode1: int, efuses: int) -> None:
    """Also where the lowest tier lets the modes themselves pass."""
    every = policy(DEVICE, modes=tuple(Mode))
    device = Minted(mode0=mode0, mode1=mode1, efuses=efuses)
    refused("ref.efuses", judge(device, policy=every, device=device.anchor(RootOfTrust.SELF_REPORTED)), "boot")


def test_the_locked_bits_are_those_of_the_device_protocol() -> None:
    from attestation.device_protocol import SECURITY_EFUSES

    assert int(SECURITY_EFUSES) == LOCKED


def test_self_reported_device_is_judged_by_its_own_tier_and_never_proven_above_it() -> None:
    device = Minted(**SELF_REPORTED)
    anchor = device.anchor(RootOfTrust.SELF_REPORTED)
    verdict = judge(device, device=anchor)
    assert verdict.accepted, verdict.message
    assert not verdict.proven_at_tier
    assert any("root of trust" in item for item in verdict.unproven)
    lowered = policy(device, min_root_of_trust=RootOfTrust.SELF_REPORTED)
    verdict = judge(device, device=anchor, policy=lowered)
    assert verdict.accepted
    assert verdict.proven_at_tier
    assert verdict.unproven == ()


def test_self_reported_device_still_obeys_all_other_rules() -> None:
    anchor = Minted().anchor(RootOfTrust.SELF_REPORTED)

    def lie(**changes: Any) -> Verdict:
        return judge(Minted(**{**SELF_REPORTED, **changes}), device=anchor)

    refused("ref.code", lie(code="app 9.9"), "application")
    refused("ref.code", lie(bootloader="evil"), "bootloader")
    refused("ref.authority", lie(authority=digest("another key")), "boot")
    refused("dice.mode", lie(mode1=2), "boot")
    refused("ref.efuses", lie(efuses=LOCKED), "boot")
    refused("eat.dbgstat", lie(debug=0), "boot")
    refused("rollback", lie(secure_version=1), "versions")


def test_a_claim_never_raises_the_tier() -> None:
    """A device enrolled as SelfReported that certifies a locked boot stays SelfReported."""
    verdict = judge(DEVICE, device=DEVICE.anchor(RootOfTrust.SELF_REPORTED))
    assert verdict.accepted
    assert verdict.tier is RootOfTrust.SELF_REPORTED
    assert not verdict.proven_at_tier


def test_not_configured_never_passes_above_self_reported() -> None:
    lax = policy(DEVICE, modes=tuple(Mode), authority_hashes=(bytes(64).hex(),))
    refused("dice.mode", judge(Minted(**SELF_REPORTED), policy=lax), "boot")
    refused(
        "ref.efuses",
        judge(
            Minted(mode0=2, mode1=2, efuses=0),
            policy=lax.model_copy(update={"authority_hashes": policy(DEVICE).authority_hashes}),
        ),
        "boot",
    )


def test_signed_boot_is_not_isolated() -> None:
    verdict = judge(DEVICE, policy=policy(DEVICE, min_root_of_trust=RootOfTrust.ISOLATED))
    assert verdict.accepted
    assert not verdict.proven_at_tier
