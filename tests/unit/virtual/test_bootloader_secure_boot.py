# SPDX-License-Identifier: Apache-2.0
"""Secure Boot v2: what espsecure signs boots, what we sign espsecure accepts, and nothing else boots."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from attestation.device_protocol import ErrorCode
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.signature import find_signatures
from flashjob.virtual import secure_boot
from flashjob.virtual.bootloader import BootError
from flashjob.virtual.profile import DeviceIdentity, make_identity
from tests.unit.virtual.test_bootloader import install_by_hand
from tests.unit.virtual.workbench import Bench, code, image

KEY = secure_boot.maker_key(b"test")
OLD, NEW = secure_boot.sign(image("1.0"), KEY), secure_boot.sign(image("2.0"), KEY)


def strict(digest: bytes | None = None) -> DeviceIdentity:
    return make_identity("s", "esp32s3", secret=b"test", verifies_signatures=True, secure_boot_key_digest=digest)


def espsecure(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "espsecure", *arguments], check=True, capture_output=True, timeout=60)


def test_signed_images_boot_and_update() -> None:
    bench = Bench(identity=strict(), first=OLD)
    assert bench.install(NEW).status == 200
    assert bench.reset().boot.version == "2.0"
    assert bench.application.boot.measurement == bench.measurement(image("2.0")), "the signature is not measured"


def test_rule_3_an_unsigned_image_is_refused_over_the_network_and_does_not_boot() -> None:
    bench = Bench(identity=strict(), first=OLD)
    assert code(bench.install(image("2.0"))) is ErrorCode.IMAGE_OR_CHIP
    install_by_hand(bench, image("2.0"))
    assert bench.reset().boot.version == "1.0"
    with pytest.raises(BootError, match="secure boot"):
        Bench(identity=strict(), first=image("1.0"))


def test_rule_1_another_makers_signature_does_not_count() -> None:
    bench = Bench(identity=strict(), first=OLD)
    foreign = secure_boot.sign(image("2.0"), secure_boot.maker_key(b"someone else"))
    assert code(bench.install(foreign)) is ErrorCode.IMAGE_OR_CHIP


def test_rule_2_a_forged_signature_does_not_verify() -> None:
    info = parse_image(NEW)
    trusted = secure_boot.key_digest(KEY.public_key())
    assert secure_boot.verify(NEW, info.image_length, trusted)
    foreign = secure_boot.sign(image("2.0"), secure_boot.maker_key(b"someone else"))
    start = len(NEW) - 4096
    block = bytearray(NEW[start : start + 1196])
    block[101:165] = foreign[start + 101 : start + 165]
    forged = NEW[:start] + bytes(block) + struct.pack("<I", zlib.crc32(block)) + NEW[start + 1200 :]
    assert find_signatures(forged, info.image_length)[0].key_digest == trusted
    assert not secure_boot.verify(forged, info.image_length, trusted)
    with pytest.raises(PipelineError):
        secure_boot.verify(NEW[:100] + bytes([NEW[100] ^ 1]) + NEW[101:], info.image_length, trusted)


@pytest.mark.parametrize("scheme", ["ecdsa256", "rsa3072"])
def test_what_espsecure_signs_boots(scheme: str, tmp_path: Path) -> None:
    key, raw, signed = tmp_path / "key.pem", tmp_path / "app.bin", tmp_path / "signed.bin"
    raw.write_bytes(build_app("esp32s3", "porch", "1.0", payload_size=16 * 1024))
    espsecure("generate-signing-key", "--version", "2", "--scheme", scheme, str(key))
    espsecure("sign-data", "--version", "2", "--keyfile", str(key), "--output", str(signed), str(raw))
    data = signed.read_bytes()
    (found,) = find_signatures(data, parse_image(data).image_length)
    assert Bench(identity=strict(found.key_digest), first=data).application.boot.version == "1.0"


def test_espsecure_accepts_what_is_signed_here(tmp_path: Path) -> None:
    key, signed = tmp_path / "key.pem", tmp_path / "signed.bin"
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    key.write_bytes(KEY.public_key().public_bytes(pem, form))
    signed.write_bytes(NEW)
    espsecure("verify-signature", "--version", "2", "--keyfile", str(key), str(signed))
    signed.write_bytes(secure_boot.sign(image("2.0"), secure_boot.maker_key(b"other")))
    with pytest.raises(subprocess.CalledProcessError):
        espsecure("verify-signature", "--version", "2", "--keyfile", str(key), str(signed))
