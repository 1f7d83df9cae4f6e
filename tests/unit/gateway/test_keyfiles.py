# SPDX-License-Identifier: Apache-2.0
"""The gateway's keys as Secrets mount them, by the rules of keyfiles.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from flashjob.errors import FlashJobError
from flashjob.gateway.keyfiles import load_keys
from flashjob.wire.reasons import Reason

KEY = ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A grant key and a ring of two, as a kubelet lays a Secret out: data behind a link that is swapped as a whole."""
    (tmp_path / "grant.key").write_bytes(pem(KEY))
    data = tmp_path / "nonce" / "..2026_01_02"
    data.mkdir(parents=True)
    (data / "3").write_bytes(b"a" * 32)
    (data / "12").write_bytes(b"b" * 40)
    (tmp_path / "nonce" / "..data").symlink_to("..2026_01_02")
    for name in ("3", "12"):
        (tmp_path / "nonce" / name).symlink_to(f"..data/{name}")
    return tmp_path


def load(mount: Path) -> FlashJobError:
    with pytest.raises(FlashJobError) as caught:
        load_keys(mount / "grant.key", mount / "nonce")
    assert caught.value.reason == Reason.KEY_UNREADABLE
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize("key", [KEY, ed25519.Ed25519PrivateKey.generate()])
def test_1_grant_keys_are_p_256_or_ed25519(mount: Path, key: ec.EllipticCurvePrivateKey) -> None:
    (mount / "grant.key").write_bytes(pem(key))
    keys = load_keys(mount / "grant.key", mount / "nonce")
    assert keys.grant.public_key() == key.public_key()


def test_2_the_highest_number_is_current_and_others_are_honoured(mount: Path) -> None:
    (mount / "nonce" / "README").write_text("not a key")
    ring = load_keys(mount / "grant.key", mount / "nonce").ring
    assert (ring.current, ring.keys) == (12, {3: b"a" * 32, 12: b"b" * 40})


def test_2_a_key_that_comes_next_is_honoured_before_it_makes_nonces(mount: Path) -> None:
    (mount / "nonce" / "13.next").write_bytes(b"c" * 32)
    ring = load_keys(mount / "grant.key", mount / "nonce").ring
    assert (ring.current, ring.keys[13]) == (12, b"c" * 32)
    (mount / "nonce" / "13.next").rename(mount / "nonce" / "13")
    assert load_keys(mount / "grant.key", mount / "nonce").ring.current == 13


PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
LOCKED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        PUBLIC,
        LOCKED,
        pem(KEY)[:90],
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP384R1())),
    ],
    ids=["empty", "text", "public", "locked", "cut", "rsa", "p384"],
)
def test_1_anything_else_is_no_grant_key(mount: Path, content: bytes) -> None:
    (mount / "grant.key").write_bytes(content)
    error = load(mount)
    assert error.message.startswith(str(mount / "grant.key"))
    assert "-----" not in error.message


def test_1_a_grant_key_that_is_not_there(mount: Path) -> None:
    (mount / "grant.key").unlink()
    assert "grant.key" in load(mount).message


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda nonce: (nonce / "13").write_bytes(b"short"), "at least 32 bytes"),
        (lambda nonce: (nonce / "256").write_bytes(b"a" * 32), "0 to 255"),
        (lambda nonce: (nonce / "13").mkdir(), "13"),
        (lambda nonce: (nonce / "012").write_bytes(b"a" * 32), "012 has leading zeros: 12 is meant"),
        (lambda nonce: (nonce / "12.next").write_bytes(b"a" * 32), "key 12 stands there twice"),
        (lambda nonce: [(nonce / "12").rename(nonce / "12.next"), (nonce / "3").unlink()], "no nonce key"),
        (lambda nonce: [(nonce / name).unlink() for name in ("3", "12")], "no nonce key"),
    ],
)
def test_2_a_ring_that_cannot_be_used(mount: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(mount / "nonce")
    error = load(mount)
    assert error.message.startswith(str(mount / "nonce"))
    assert said in error.message


def test_2_a_directory_that_is_not_there(mount: Path) -> None:
    (mount / "nonce").rename(mount / "elsewhere")
    assert "nonce" in load(mount).message
