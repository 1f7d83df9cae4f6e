# SPDX-License-Identifier: Apache-2.0
"""A virtual device on the bench, with its owner's keys: the shortest way to say what happens to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import grants, release, statement
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import DEVICE_NONCE_SIZE, ErrorCode, Info, Request, nonce_request, parse_info
from attestation.grants import CancelGrant, ConfirmGrant, Grant, InstallGrant, RevertGrant, Verb
from attestation.keys import PrivateKey
from attestation.release import Release
from attestation.statement import Digest
from firmware_pipeline.esp import partitions
from firmware_pipeline.esp.builder import build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.image import parse_image
from flashjob.virtual.adversaries import Behaviour
from flashjob.virtual.application import Application
from flashjob.virtual.bootloader import HANDOVER_SIZE, BootResult, boot, measure_bytes
from flashjob.virtual.flash import Flash
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.profile import DeviceIdentity, Owner, make_identity
from flashjob.virtual.replies import Reply


def key(number: int) -> PrivateKey:
    """A P-256 key that is the same in every run."""
    return ec.derive_private_key(number + 1000, ec.SECP256R1())


GRANT_KEY, RELEASE_KEY, FOREIGN_KEY = key(1), key(2), key(3)
NONCE = bytes(range(32))


@cache
def image(version: str = "1.0", *, chip: str = "esp32s3", name: str = "porch", secure_version: int = 0) -> bytes:
    """A small application image of that version."""
    return build_app(chip, name, version, secure_version=secure_version, payload_size=16 * 1024, pad_to_page=False)


@cache
def bootloader(chip: str) -> bytes:
    return build_bootloader(chip)


@dataclass
class Bench:
    """One device. `reset` starts it anew; `application` is what runs."""

    identity: DeviceIdentity = field(default_factory=lambda: make_identity("bench", "esp32s3", secret=b"test"))
    behaviour: Behaviour = field(default_factory=Behaviour)
    takes_image: bool = True
    first: bytes | None = None
    owner: Owner = field(default_factory=lambda: Owner([GRANT_KEY.public_key()], [RELEASE_KEY.public_key()]))
    now: float = 1000.0
    drawn: int = 0

    def __post_init__(self) -> None:
        hardware = self.identity.hardware
        self.flash = Flash(hardware.flash_size)
        self.table = default_partitions(table_offset=hardware.table_offset, flash_size=hardware.flash_size)
        self.flash.load(hardware.chip.bootloader_offset, bootloader(hardware.chip.target))
        self.flash.load(hardware.table_offset, partitions.build_table(self.table))
        self.flash.load(self.slot(0).offset, self.first or image(chip=hardware.chip.target))
        self.nvs = Nvs()
        self.area = bytearray(HANDOVER_SIZE)
        self.application = self.reset()

    def random(self, size: int) -> bytes:
        self.drawn += 1
        return hashlib.shake_256(self.drawn.to_bytes(4, "big")).digest(size)

    def boot(self) -> BootResult:
        return boot(
            self.flash,
            self.identity,
            nvs=self.nvs,
            area=self.area,
            random=self.random,
            behaviour=self.behaviour,
        )

    def reset(self) -> Application:
        self.application = Application(
            self.boot(),
            flash=self.flash,
            hardware=self.identity.hardware,
            owner=self.owner,
            nvs=self.nvs,
            clock=lambda: self.now,
            random=self.random,
            behaviour=self.behaviour,
            takes_image=self.takes_image,
        )
        return self.application

    def slot(self, index: int) -> partitions.Partition:
        return self.table.ota_slots[index]

    # --- what the other side says -------------------------------------------------------------------------------

    def info(self) -> Info:
        reply = self.application.handle(Request.INFO, b"")
        assert reply.body is not None
        return parse_info(reply.body)

    def nonce(self, verb: Verb) -> bytes:
        reply = self.application.handle(Request.NONCE, nonce_request(verb))
        assert reply.body is not None
        fields = strict_loads(reply.body)
        assert isinstance(fields, dict)
        value = fields[1]
        assert isinstance(value, bytes)
        assert len(value) == DEVICE_NONCE_SIZE
        return value

    def attest(self, nonce: bytes = NONCE) -> Reply:
        self.now += 2
        return self.application.handle(Request.ATTEST, dumps({1: nonce}))

    def evidence(self, nonce: bytes = NONCE) -> bytes:
        reply = self.attest(nonce)
        assert reply.status == 200
        assert reply.body is not None
        return reply.body

    def measurement(self, data: bytes) -> Digest:
        return measure_bytes(data, parse_image(data), self.identity.hardware.hash_alg)

    def release(self, data: bytes, *, sign: PrivateKey = RELEASE_KEY, **changes: Any) -> bytes:
        """A release statement for an image; `changes` replace fields."""
        info = parse_image(data)
        values: dict[str, Any] = {
            "name": info.app.project_name if info.app else "?",
            "version": info.app.version if info.app else "?",
            "chip_id": info.chip.chip_id,
            "revisions": [0, 65535],
            "secure_version": info.app.secure_version if info.app else 0,
            "sequence": 1,
            "measurements": [self.measurement(data)],
            "image_size": len(data),
        }
        content = Release.model_validate(values | changes)
        return statement.write(content, release.LABELS, release.CONTENT_TYPE, sign)

    def install_grant(
        self,
        data: bytes,
        *,
        grant_id: bytes = b"g" * 16,
        fence: int = 1,
        statement: bytes | None = None,
        **changes: Any,
    ) -> InstallGrant:
        values: dict[str, Any] = {
            "ueid": self.application.ueid,
            "device_nonce": changes.pop("device_nonce", None) or self.nonce(Verb.INSTALL),
            "grant_id": grant_id,
            "fence": fence,
            "result": self.measurement(data),
            "payload_sha256": hashlib.sha256(data).digest(),
            "payload_size": len(data),
            "release": statement if statement is not None else self.release(data),
            "confirm_seconds": 120,
        }
        return InstallGrant.model_validate(values | changes)

    def running_grant(
        self, kind: type[ConfirmGrant] | type[RevertGrant] | type[CancelGrant], **changes: Any
    ) -> ConfirmGrant | RevertGrant | CancelGrant:
        """A confirm, revert or cancel grant for what runs."""
        verb = {ConfirmGrant: Verb.CONFIRM, RevertGrant: Verb.REVERT, CancelGrant: Verb.CANCEL}[kind]
        values: dict[str, Any] = {
            "ueid": self.application.ueid,
            "device_nonce": changes.pop("device_nonce", None) or self.nonce(verb),
            "grant_id": self.application.boot.boot_id if any(self.application.boot.boot_id) else b"x" * 16,
            "fence": self.nvs.fence,
            "result": self.application.boot.measurement,
        }
        if kind is ConfirmGrant:
            values["second_nonce"] = b"2" * 32
        return kind.model_validate(values | changes)

    def send(self, grant: Grant, *, sign: PrivateKey = GRANT_KEY) -> Reply:
        return self.send_bytes(grants.mint(grant, sign))

    def send_bytes(self, data: bytes) -> Reply:
        return self.application.handle(Request.GRANT, data)

    def upload(self, data: bytes, offset: int = 0, chunk: int = 5000) -> Reply:
        rest = data[offset:]
        return self.application.receive_image(offset, [rest[at : at + chunk] for at in range(0, len(rest), chunk)])

    def install(self, data: bytes, *, grant_id: bytes = b"g" * 16, fence: int = 1, **changes: Any) -> Reply:
        """Install grant and upload; the device then waits for its reset."""
        granted = self.send(self.install_grant(data, grant_id=grant_id, fence=fence, **changes))
        assert granted.status == 200, granted
        return self.upload(data)


def code(reply: Reply) -> ErrorCode:
    """The error code of a refusal."""
    assert reply.status != 200, "the device accepted"
    assert reply.body is not None
    fields = strict_loads(reply.body)
    assert isinstance(fields, dict)
    return ErrorCode(fields[1])  # type: ignore[arg-type]
