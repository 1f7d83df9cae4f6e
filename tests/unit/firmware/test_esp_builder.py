# SPDX-License-Identifier: Apache-2.0
"""The project's images before the vendor's own tools, run as programs."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from firmware_pipeline.errors import Reason
from firmware_pipeline.esp.builder import build_app, build_bootloader
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.signature import find_signatures
from tests.unit.firmware.builds import PAYLOAD, refused

CHIPS = ["esp32", "esp32s2", "esp32s3", "esp32c3"]


def tool(name: str, *arguments: str) -> str:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        pytest.skip(f"{name} is not installed beside this Python (extra: serial)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("chip", CHIPS)
def test_esptool_accepts_an_application(chip: str, tmp_path: Path) -> None:
    path = tmp_path / "app.bin"
    path.write_bytes(
        build_app(chip, "porch-sensor", "2.1.0", secure_version=3, min_rev=1, max_rev=399, payload_size=PAYLOAD)
    )
    said = tool("esptool", "--chip", chip, "image-info", str(path))
    assert re.search(r"Checksum: 0x[0-9a-f]{2} \(valid\)", said)
    assert re.search(r"Validation hash: [0-9a-f]{64} \(valid\)", said)
    assert f"Chip ID: {by_target(chip).chip_id} " in said
    for line in ("Project name: porch-sensor", "App version: 2.1.0", "Secure version: 3", "MMU page size: 64 KB",
                 "Minimal chip revision: v0.1", "Maximal chip revision: v3.99", "Flash size: 4MB", "Flash freq: 80m"):  # fmt: skip
        assert line in said
    assert "warning" not in said.lower()


@pytest.mark.parametrize("chip", CHIPS)
def test_esptool_accepts_a_bootloader(chip: str, tmp_path: Path) -> None:
    path = tmp_path / "bootloader.bin"
    path.write_bytes(build_bootloader(chip, version=4))
    said = tool("esptool", "--chip", chip, "image-info", str(path))
    assert "Bootloader Information" in said
    assert "Bootloader version: 4" in said
    assert said.count("(valid)") == 2


def test_builds_are_reproducible_and_differ_by_identity() -> None:
    first = build_app("esp32s3", "p", "1.0", payload_size=PAYLOAD)
    assert first == build_app("ESP32-S3", "p", "1.0", payload_size=PAYLOAD)
    others = [
        build_app("esp32s3", "p", "1.1", payload_size=PAYLOAD),
        build_app("esp32s3", "q", "1.0", payload_size=PAYLOAD),
        build_app("esp32s3", "p", "1.0", payload_size=PAYLOAD, seed=b"x"),
    ]
    assert len({first, *others}) == 4


def test_images_a_user_cannot_have() -> None:
    refused(Reason.UnknownChip, lambda: build_app("esp8266", "p", "1"))
    refused(Reason.AppDescriptorMalformed, lambda: build_app("esp32", "p" * 32, "1"))
    refused(Reason.ImageMalformed, lambda: build_app("esp32", "p", "1", payload_size=100))


@pytest.mark.parametrize("scheme", ["rsa3072", "ecdsa256", "ecdsa384"])
def test_signatures_of_espsecure_are_found_and_their_keys_identified(scheme: str, tmp_path: Path) -> None:
    plain, signed, key, digest = (tmp_path / name for name in ("app", "signed", "key.pem", "digest"))
    plain.write_bytes(build_app("esp32c3", "p", "1", payload_size=PAYLOAD))
    tool("espsecure", "generate-signing-key", "--version", "2", "--scheme", scheme, str(key))
    tool("espsecure", "sign-data", "--version", "2", "--keyfile", str(key), "-o", str(signed), str(plain))
    tool("espsecure", "digest-sbv2-public-key", "--keyfile", str(key), "-o", str(digest))
    data = signed.read_bytes()
    length = parse_image(data).image_length
    (block,) = find_signatures(data, length)
    assert block.key_digest == digest.read_bytes()
    assert find_signatures(plain.read_bytes(), length) == ()

    for where, what in ((length + 40, "CRC"), (length + 1196, "CRC"), (100, "other bytes")):
        damaged = bytearray(data)
        damaged[where] ^= 1
        error = refused(Reason.SecureBootSignatureMalformed, partial(find_signatures, bytes(damaged), length))
        assert what in error.message
