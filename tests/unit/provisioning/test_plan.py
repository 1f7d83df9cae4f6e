# SPDX-License-Identifier: Apache-2.0
"""eFuse plans: the rules of plan.py, and every plan burnt into espefuse's own virtual eFuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attestation.policy import RootOfTrust
from firmware_pipeline.esp.chips import CHIPS, by_target
from flashjob.errors import FlashJobError
from flashjob.provisioning.burn import carry_out, check_mac
from flashjob.provisioning.plan import Step, command, plan
from flashjob.wire.esptool_lines import ChipEvent

ABLE = [chip for chip in CHIPS if chip.hmac_key]
MAC = "24:6f:28:01:02:03"


def seen(target: str, **changes: Any) -> ChipEvent:
    fields: dict[str, Any] = {
        "chip": target, "revision": 4, "mac": MAC, "flash_size": 1 << 22,
        "secure_boot": False, "flash_encryption": False, "secure_download": False,
    }  # fmt: skip
    return ChipEvent.model_validate(fields | changes)


def signed_boot(target: str, secret: object = "s", digest: object = "d", **changes: Any) -> tuple[Step, ...]:
    chip = by_target(target)
    return plan(chip, seen(target, **changes), RootOfTrust.SIGNED_BOOT, secret=str(secret), digest=str(digest))


def test_1_the_secret_comes_first_and_the_lock_last() -> None:
    steps = [step.arguments for step in signed_boot("esp32c3") if step.arguments]
    assert steps[0] == ("burn-key", "BLOCK_KEY4", "s", "HMAC_UP")
    assert steps[-1] == ("burn-efuse", "ENABLE_SECURITY_DOWNLOAD", "1")


@pytest.mark.parametrize("chip", [chip for chip in CHIPS if not chip.hmac_key], ids=lambda chip: chip.target)
def test_2_no_hmac_key_no_signed_boot(chip: Any) -> None:
    with pytest.raises(FlashJobError) as caught:
        plan(chip, seen(chip.target), RootOfTrust.SIGNED_BOOT, secret="s", digest="d")
    assert caught.value.reason == "RootOfTrustTooLow"
    assert plan(chip, seen(chip.target), RootOfTrust.SELF_REPORTED, secret="s", digest="d") == ()


def test_2_nothing_of_ours_is_isolated() -> None:
    with pytest.raises(FlashJobError):
        plan(by_target("esp32c3"), seen("esp32c3"), RootOfTrust.ISOLATED, secret="s", digest="d")


def test_3_what_is_done_is_not_done_again() -> None:
    steps = signed_boot("esp32s3", secure_boot=True, flash_encryption=True, secure_download=True)
    left = [step.arguments[0:2] for step in steps if not step.done]
    assert left == [("burn-key", "BLOCK_KEY4"), ("burn-efuse", "DIS_PAD_JTAG")]


def test_4_flash_encryption_is_left_and_said() -> None:
    (left,) = [step for step in signed_boot("esp32c3") if not step.arguments]
    assert "flash encryption" in left.what
    assert not left.done


def test_5_a_step_is_a_command_line() -> None:
    step = signed_boot("esp32c3")[2]
    assert command(by_target("esp32c3"), "/dev/ttyX", step) == (
        "espefuse", "--chip", "esp32c3", "--port", "/dev/ttyX", "burn-efuse", "SECURE_BOOT_EN", "1",
    )  # fmt: skip
    by_usb = command(by_target("esp32c3"), "/dev/ttyX", step, "usb-jtag")
    assert by_usb[5:] == ("--before", "usb-reset", *step.arguments)


@pytest.mark.parametrize("target", ["esp32c3", "esp32s2", "esp32s3"])
async def test_the_plan_is_burnt_by_espefuse_itself(tmp_path: Path, target: str) -> None:
    secret, digest, fuses = tmp_path / "s.bin", tmp_path / "d.bin", tmp_path / "fuses.bin"
    secret.write_bytes(bytes(range(32)))
    digest.write_bytes(bytes(range(1, 33)))
    steps = [step for step in signed_boot(target, secret, digest) if step.arguments]
    said: list[str] = []
    virtual = ("--virt", "--path-efuse-file", str(fuses))
    await carry_out(by_target(target), "none", steps, said.append, *virtual, reset="usb-jtag")
    assert said == [step.what for step in steps]
    words = ["espefuse", "--chip", target, *virtual, "summary", "--format", "json"]
    done = subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], capture_output=True, check=True)
    shown = json.loads(done.stdout[done.stdout.index(b"{") :])
    assert shown["KEY_PURPOSE_4"]["value"] == "HMAC_UP"
    assert shown["KEY_PURPOSE_0"]["value"] == "SECURE_BOOT_DIGEST0"
    assert shown["SECURE_BOOT_EN"]["value"] is True
    assert shown["ENABLE_SECURITY_DOWNLOAD"]["value"] is True
    assert "??" in shown["BLOCK_KEY4"]["value"], "the secret cannot be read back"
    with pytest.raises(FlashJobError) as caught:
        await carry_out(by_target(target), "none", steps, said.append, *virtual)
    assert "Burnt before: nothing" in caught.value.message, "a second secret is refused by espefuse"


@pytest.mark.slow
@pytest.mark.parametrize("chip", ABLE, ids=lambda chip: chip.target)
async def test_every_chip_knows_the_names_in_its_plan(tmp_path: Path, chip: Any) -> None:
    (tmp_path / "k.bin").write_bytes(bytes(range(32)))
    key = tmp_path / "k.bin"
    steps = [step for step in signed_boot(chip.target, key, key) if step.arguments]
    await carry_out(chip, "none", steps, lambda _: None, "--virt", "--path-efuse-file", str(tmp_path / "fuses.bin"))


@pytest.mark.parametrize("typed", ["", "24:6f:28:01:02:04", "yes"])
def test_burning_needs_the_mac_of_this_very_chip(typed: str) -> None:
    with pytest.raises(FlashJobError) as caught:
        check_mac(seen("esp32c3"), typed)
    assert caught.value.reason == "WrongDevice"
    check_mac(seen("esp32c3"), f" {MAC.upper()}\n")
    with pytest.raises(FlashJobError):
        check_mac(seen("esp32c3", mac=""), "")
