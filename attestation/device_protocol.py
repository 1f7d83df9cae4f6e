# SPDX-License-Identifier: Apache-2.0
"""What a device speaks: messages, error codes, and the interface of a client. Pure; transports live beside it.

Rules (docs/device-protocol.md is the full form; tests name them):

1. Everything is strict CBOR with integer labels. In `info` unknown labels are ignored, in requests they are refused.
2. A request (image aside) has at most 1,024 bytes, a reply at most 4,096, over a serial line 3,456.
3. `info` proves nothing: it is only ever a reason to refuse. Evidence and signatures prove.
4. A device that refuses answers {-1: title, 1: code, ?17: next offset}; the code is the contract.
5. One request at a time; a device that says "slow down" (17) is asked again after a second, at most three times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import IntEnum, IntFlag
from typing import Annotated, Any, Final, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from attestation.cbor import Value, dumps, strict_loads
from attestation.errors import Reject
from attestation.grants import Verb
from attestation.statement import Bytes16, Bytes32, Digest, DigestField, Ueid, Uint, Uint32
from attestation.succession import Kind

VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 1024
MAX_REPLY_BYTES: Final = 4096
NONCE_SIZE: Final = 32
DEVICE_NONCE_SIZE: Final = 16

CONNECT_SECONDS: Final = 3.0
INFO_SECONDS: Final = 3.0
ATTEST_SECONDS: Final = 5.0
FLOOR_BYTES_PER_SECOND: Final = 8 * 1024
"""Slowest image transfer that is waited for."""

_SLOW_DOWN_SECONDS: Final = 1.0
_SLOW_DOWN_TRIES: Final = 3


class ErrorCode(IntEnum):
    """Why a device refuses. The numbers are the contract."""

    MALFORMED = 1
    TOO_LARGE = 2
    SIGNATURE = 3
    UNKNOWN_KEY = 4
    OTHER_DEVICE = 5
    NONCE = 6
    FENCE = 7
    BUSY = 8
    STATE = 9
    OFFSET = 10
    DIGEST = 11
    IMAGE_OR_CHIP = 12
    SECURE_VERSION = 13
    SEQUENCE = 14
    SLOT = 15
    BASE = 16
    SLOW_DOWN = 17
    FLASH_IO = 18


HTTP_STATUS: Final = {
    ErrorCode.MALFORMED: 400,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.SIGNATURE: 403,
    ErrorCode.UNKNOWN_KEY: 403,
    ErrorCode.OTHER_DEVICE: 403,
    ErrorCode.NONCE: 403,
    ErrorCode.FENCE: 409,
    ErrorCode.BUSY: 409,
    ErrorCode.STATE: 409,
    ErrorCode.OFFSET: 409,
    ErrorCode.DIGEST: 422,
    ErrorCode.IMAGE_OR_CHIP: 422,
    ErrorCode.SECURE_VERSION: 422,
    ErrorCode.SEQUENCE: 422,
    ErrorCode.SLOT: 422,
    ErrorCode.BASE: 422,
    ErrorCode.SLOW_DOWN: 429,
    ErrorCode.FLASH_IO: 500,
}
"""HTTP status that goes with each code; clients decide by the code."""


class Flag(IntFlag):
    """Bits of `info` 14 and, the security ones, of the certified eFuse bits (-71004)."""

    SECURE_BOOT = 1 << 0
    FLASH_ENCRYPTION = 1 << 1
    ENCRYPTION_RELEASE = 1 << 2
    JTAG_OFF = 1 << 3
    ROLLBACK = 1 << 4
    ANTI_ROLLBACK = 1 << 5
    DELTA = 1 << 6
    DOWNLOAD_LOCKED = 1 << 7


SECURITY_EFUSES: Final = (
    Flag.SECURE_BOOT | Flag.FLASH_ENCRYPTION | Flag.ENCRYPTION_RELEASE | Flag.JTAG_OFF | Flag.DOWNLOAD_LOCKED
)
"""The bits of `Flag` that the bootloader certifies."""


class Request(IntEnum):
    """First element of a serial request."""

    INFO = 0
    ATTEST = 1
    NONCE = 2
    GRANT = 3
    OWNER = 4


class DeviceError(Exception):
    """A device refused, or could not be talked to.

    `reason` is stable: ``Refused`` (then `code` says why, and `next_offset` where an upload goes on), ``Unreachable``,
    ``Timeout``, ``ConnectionLost``, ``BadReply``, ``PortBusy``.
    """

    def __init__(
        self, reason: str, message: str, *, code: ErrorCode | None = None, next_offset: int | None = None
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.code = code
        self.next_offset = next_offset


def _flags(value: object) -> object:
    return Flag(value) if type(value) is int and value >= 0 else value


_Text = Annotated[str, Field(max_length=64)]


class Info(BaseModel):
    """What a device says about itself, unproven (rule 3)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    versions: Annotated[list[Uint], Field(min_length=1, max_length=16)]
    ueid: Ueid
    chip_id: Annotated[int, Field(ge=0, le=0xFFFF)]
    chip_revision: Annotated[int, Field(ge=0, le=0xFFFF)]
    """major * 100 + minor."""
    flash_size: Uint32
    """Bytes."""
    running_slot: Annotated[int, Field(ge=0, le=0xFF)]
    """Partition subtype: 0x10 + n for ota_n, 0 factory, 0x20 test."""
    slot_state: Uint32
    """State of the OTA record: 0 NEW 1 PENDING_VERIFY 2 VALID 3 INVALID 4 ABORTED 0xFFFFFFFF UNDEFINED."""
    target_slot_size: Uint32
    """Bytes of the slot that an install would write."""
    measurement: DigestField
    name: _Text
    version: _Text
    secure_version: Uint32
    efuse_secure_version: Uint32
    flags: Annotated[Flag, BeforeValidator(_flags)]
    partition_table: Bytes32
    """SHA-256 of the partition table."""
    bootseed: Annotated[bytes, Field(min_length=8, max_length=64)]
    next_offset: Uint32 | None = None
    """Bytes received of the image, while one is being received."""
    active_grant: Bytes16 | None = None
    confirm_seconds_left: Uint32 | None = None
    """Seconds until the device rolls back by itself, while an installation is unconfirmed."""


INFO_LABELS: Final = {
    1: "versions",
    2: "ueid",
    3: "chip_id",
    4: "chip_revision",
    5: "flash_size",
    6: "running_slot",
    7: "slot_state",
    8: "target_slot_size",
    9: "measurement",
    10: "name",
    11: "version",
    12: "secure_version",
    13: "efuse_secure_version",
    14: "flags",
    15: "partition_table",
    16: "bootseed",
    17: "next_offset",
    18: "active_grant",
    19: "confirm_seconds_left",
}


class DeviceNonce(NamedTuple):
    """A device's nonce for one grant: 16 bytes, good for `ttl_seconds` from now on the device's own clock."""

    value: bytes
    ttl_seconds: int


def parse_info(data: bytes) -> Info:
    """Read `info`. Raises DeviceError BadReply; unknown labels are ignored (rule 1)."""
    labels = _map(data, "info")
    try:
        return Info.model_validate({INFO_LABELS[k]: v for k, v in labels.items() if k in INFO_LABELS})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DeviceError("BadReply", f"info: {field}: {first['msg']}") from error


def encode_info(info: Info) -> bytes:
    """The bytes of an `info` reply; absent fields are left out."""
    values = info.model_dump(exclude_none=True)
    return dumps({label: values[name] for label, name in INFO_LABELS.items() if name in values})


def attest_request(nonce: bytes) -> bytes:
    """Body of an attest request. Raises ValueError unless the nonce has 32 bytes."""
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"an attestation nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    return dumps({1: nonce})


def nonce_request(verb: Verb) -> bytes:
    """Body of a nonce request."""
    return dumps({1: int(verb)})


def parse_nonce(data: bytes) -> DeviceNonce:
    """Read the reply to a nonce request. Raises DeviceError BadReply."""
    labels = _map(data, "nonce")
    value, ttl = labels.get(1), labels.get(2)
    if not isinstance(value, bytes) or len(value) != DEVICE_NONCE_SIZE or type(ttl) is not int or ttl <= 0:
        raise DeviceError("BadReply", "nonce: expected {1: 16 bytes, 2: seconds}")
    return DeviceNonce(value, ttl)


class OwnerKeys(NamedTuple):
    """What a device holds of one kind of owner keys, after a succession: ids of 8 bytes, and the generation."""

    kind: Kind
    ids: tuple[bytes, ...]
    generation: int


def parse_owner_keys(data: bytes) -> OwnerKeys:
    """Read the reply to a succession. Raises DeviceError BadReply."""
    labels = _map(data, "owner")
    kind, ids, generation = labels.get(1), labels.get(2), labels.get(3)
    good = type(kind) is int and kind in tuple(Kind) and type(generation) is int and isinstance(ids, list)
    if not good or not all(isinstance(one, bytes) and len(one) == 8 for one in ids):  # type: ignore[union-attr]
        raise DeviceError("BadReply", "owner: expected {1: kind, 2: [key ids of 8 bytes], 3: generation}")
    return OwnerKeys(Kind(kind), tuple(ids), generation)  # type: ignore[arg-type]


def encode_owner_keys(held: OwnerKeys) -> bytes:
    """The bytes of that reply."""
    return dumps({1: int(held.kind), 2: list(held.ids), 3: held.generation})


def encode_error(code: ErrorCode, title: str, *, next_offset: int | None = None) -> bytes:
    """Body of a refusal (rule 4)."""
    body: dict[int, int | str] = {-1: title, 1: int(code)}
    if next_offset is not None:
        body[17] = next_offset
    return dumps(body)


def refused(data: bytes, *, status: int) -> DeviceError:
    """The error that a refusal's body stands for; a body that is none becomes BadReply."""
    try:
        labels = _map(data, "error")
        code = ErrorCode(labels.get(1))  # type: ignore[arg-type]
    except (DeviceError, ValueError):
        return DeviceError("BadReply", f"status {status} without a readable error code")
    title, offset = labels.get(-1), labels.get(17)
    return DeviceError(
        "Refused",
        f"the device refused with code {int(code)} ({code.name}): {str(title)[:120]}",
        code=code,
        next_offset=offset if type(offset) is int else None,
    )


def _map(data: bytes, what: str) -> dict[Any, Value]:
    try:
        value = strict_loads(data, MAX_REPLY_BYTES)
    except Reject as error:
        raise DeviceError("BadReply", f"{what}: {error}") from error
    if not isinstance(value, dict):
        raise DeviceError("BadReply", f"{what}: the reply is not a map")
    return value


class DeviceClient(Protocol):
    """One device, over whatever transport. Every method raises DeviceError and nothing else."""

    async def info(self) -> Info:
        """What the device says about itself."""
        ...

    async def attest(self, nonce: bytes) -> bytes:
        """Evidence over a 32-byte nonce, exactly as received."""
        ...

    async def nonce(self, verb: Verb) -> DeviceNonce:
        """A nonce for one grant of this verb; it voids the one before."""
        ...

    async def grant(self, grant: bytes) -> bytes:
        """Hand over a signed grant; the reply's body (evidence after a confirm, else a map)."""
        ...

    async def owner_key(self, succession: bytes) -> OwnerKeys:
        """Hand over a succession statement; what the device holds of that kind from now on."""
        ...

    async def close(self) -> None:
        """Give up the connection or port."""
        ...


T = TypeVar("T")


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again, a second later, while the device says "slow down" (rule 5)."""
    for _ in range(_SLOW_DOWN_TRIES):
        try:
            return await ask()
        except DeviceError as error:
            if error.code is not ErrorCode.SLOW_DOWN:
                raise
        await asyncio.sleep(_SLOW_DOWN_SECONDS)
    return await ask()


__all__ = ["DeviceClient", "DeviceError", "DeviceNonce", "Digest", "ErrorCode", "Flag", "Info", "Verb"]
