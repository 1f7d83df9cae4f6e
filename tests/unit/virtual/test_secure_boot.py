# SPDX-License-Identifier: Apache-2.0
"""Signed images: accepted by the vendor's own verifier and by ours; any changed byte is seen."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.signature import find_signatures
from flashjob.virtual import secure_boot


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 3072)


def test_vendor_tool_verifies_it(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    image = build_app("esp32s3", "porch", "1.0", payload_size=64 * 1024)
    file, pem = tmp_path / "app.bin", tmp_path / "key.pem"
    file.write_bytes(secure_boot.sign(image, key))
    pem.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    command = [
        sys.executable,
        "-m",
        "espsecure",
        "verify-signature",
        "--version",
        "2",
        "--keyfile",
        str(pem),
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verification successful" in done.stdout.lower()


def test_our_reader_finds_it_and_the_image_is_unchanged(key: rsa.RSAPrivateKey) -> None:
    image = build_app("esp32c3", "porch", "1.0", payload_size=64 * 1024)
    signed = secure_boot.sign(image, key)
    length = parse_image(signed).image_length
    (block,) = find_signatures(signed, length)
    assert block.key_digest == secure_boot.key_digest(key.public_key())
    assert signed[: len(image)] == image
    assert len(signed) % 4096 == 0
    with pytest.raises(PipelineError):
        find_signatures(bytes([signed[0] ^ 1]) + signed[1:], length)


def test_other_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="RSA-3072"):
        secure_boot.sign(b"x", rsa.generate_private_key(65537, 2048))
