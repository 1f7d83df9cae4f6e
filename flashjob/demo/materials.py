# SPDX-License-Identifier: Apache-2.0
"""What the demo's people bring: the maker's devices, the owner's keys, the build's images, the judge's policies.

Two policies, and the difference between them is the point. `field` wants a root of trust of SignedBoot. `bench` names
SelfReported on purpose: it is for boards on a serial line, whose loader must be open to be written at all, so that what
they prove finds accidents, not attackers. The table at the end says which was which.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from firmware_pipeline.esp import builder
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET, build_table
from flashjob.virtual import secure_boot
from flashjob.virtual.profile import Tier

MAKER_SECRET: Final = "demo maker"
APP_A: Final = "porch-sensor"
APP_B: Final = "cellar-sensor"
FACTORY_VERSION: Final = "1.0.0"
APP_OFFSET: Final = 0x20000
_PAYLOAD_BYTES: Final = 300 * 1024


@dataclass(frozen=True, slots=True)
class DemoDevice:
    """One device of the demo."""

    name: str
    chip: str
    transport: str
    tier: Tier
    policy: str
    alg: str = "ES256"

    @property
    def spec(self) -> dict[str, Any]:
        """Its entry in a fleet's spec, application apart."""
        return {
            "name": self.name, "chip": self.chip, "transport": self.transport, "tier": self.tier, "alg": self.alg,
            "confirmSeconds": 60,
        }  # fmt: skip


_SERIAL: Final = (
    ("esp32s2", "bench", "ES256"),
    ("esp32s3", "bench", "EdDSA"),
    ("esp32c3", "bench", "ES256"),
    ("esp32", "field", "ES256"),
    ("esp32c3", "bench", "EdDSA"),
)
_NETWORK: Final = (("esp32s3", "ES256"), ("esp32c3", "EdDSA"), ("esp32s2", "ES256"))


def cast(count: int) -> tuple[DemoDevice, ...]:
    """The devices: five on serial lines for three on the network. At least four, so that every role is played."""
    devices = []
    for number in range(max(count, 4)):
        turn, place = divmod(number, 8)
        suffix = f"-{turn + 1}" if turn else ""
        if place in (0, 2, 5):
            chip, alg = _NETWORK[(0, 2, 5).index(place)]
            devices.append(DemoDevice(f"yard-{chip[5:]}{suffix}", chip, "network", "SignedBoot", "field", alg))
        else:
            chip, policy, alg = _SERIAL[(3, 6, 4, 1, 7).index(place)]
            name = "classic" if chip == "esp32" else f"porch-{chip[5:]}{'b' if place == 7 else ''}"
            devices.append(DemoDevice(f"{name}{suffix}", chip, "serial", "SelfReported", policy, alg))
    return tuple(devices)


@dataclass(frozen=True, slots=True)
class Materials:
    """Keys, images and policies below one directory (0700)."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Materials":
        """Draw the keys that are not there yet."""
        for folder in ("keys", "nonce", "images"):
            (root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        made = cls(root)
        for name in ("signer", "release", "grant", "listing"):
            path = root / "keys" / f"{name}.key"
            if not path.exists():
                key = ec.generate_private_key(ec.SECP256R1())
                _private(path, keys.private_to_pem(key))
                path.with_suffix(".pub").write_text(keys.to_pem(key.public_key()))
        return made

    def key(self, name: str) -> Path:
        """Private key file: signer, release, grant or listing."""
        return self.root / "keys" / f"{name}.key"

    def public(self, name: str) -> Path:
        """Public key file."""
        return self.root / "keys" / f"{name}.pub"

    def image(self, chip: str, name: str, version: str) -> Path:
        """An application image of the project's own builder, signed for secure boot by the maker's key."""
        path = self.root / "images" / f"{chip}-{name}-{version}.bin"
        if not path.exists():
            data = builder.build_app(chip, name, version, payload_size=_PAYLOAD_BYTES)
            path.write_bytes(secure_boot.sign(data, secure_boot.maker_key(MAKER_SECRET.encode())))
        return path

    def table(self) -> Path:
        """The partition table that the devices left the factory with."""
        path = self.root / "images" / "partition-table.bin"
        if not path.exists():
            path.write_bytes(build_table(builder.default_partitions()))
        return path

    def build(self, chip: str, image: Path) -> tuple[str, str]:
        """What a build of this image leaves, as `CHIP:OFFSET=FILE`: partition table and image."""
        return f"{chip}:{DEFAULT_TABLE_OFFSET:#x}={self.table()}", f"{chip}:{APP_OFFSET:#x}={image}"

    def real_image(self, image: Path, chip: str) -> Path:
        """A real application image, signed for secure boot by the maker's key as `image` does."""
        signed = self.root / "images" / f"{chip}-real.bin"
        if not signed.exists():
            signed.write_bytes(secure_boot.sign(image.read_bytes(), secure_boot.maker_key(MAKER_SECRET.encode())))
        return signed

    def policy(self, name: str, chips: Iterable[str]) -> dict[str, Any]:
        """The spec of an AttestationPolicy for these chips: see this module's docstring.

        It names the measurement of what the factory installed; all later ones become acceptable by being confirmed.
        """
        bootloaders = [
            {"alg": m.alg, "value": m.value.hex()}
            for chip in sorted(set(chips))
            for m in measure(builder.build_bootloader(chip))
        ]
        trusted = secure_boot.key_digest(secure_boot.maker_key(MAKER_SECRET.encode()).public_key())
        factory = [
            {"alg": m.alg, "value": m.value.hex()}
            for chip in sorted(set(chips))
            for m in measure(self.image(chip, APP_A, FACTORY_VERSION).read_bytes())
        ]
        signer = {"name": "ci", "publicKey": self.public("signer").read_text()}
        return {
            "bootloader": {"measurements": bootloaders},
            "application": {"measurements": factory},
            "authorityHashes": [hashlib.sha512(trusted).hexdigest(), hashlib.sha256(trusted).hexdigest()],
            "minRootOfTrust": "SelfReported" if name == "bench" else "SignedBoot",
            "requiredSigners": {"keys": [signer], "threshold": 1},
        }

    def fleet(
        self, devices: Iterable[DemoDevice], directory: Path, *, version: str = FACTORY_VERSION
    ) -> dict[str, Any]:
        """The spec of a fleet whose devices leave the factory with application A."""
        return {
            "directory": str(directory),
            "control": str(directory / "control"),
            "secret": MAKER_SECRET,
            "grantKeys": [self.public("grant").read_text()],
            "releaseKeys": [self.public("release").read_text()],
            "followStdin": True,
            "devices": [{**d.spec, "app": str(self.image(d.chip, APP_A, version))} for d in devices],
        }


def _private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def dump(path: Path, content: object) -> Path:
    """Write JSON (which is YAML, too) and return the path."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True))
    return path
