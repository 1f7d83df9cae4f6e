# SPDX-License-Identifier: Apache-2.0
"""BuildPlan: one build for one chip, read once and checked; every input reduces to it, every artifact is made of it.

A plan holds the bytes themselves: what was checked is what is pushed, even if a file changes in between.
"""

import hashlib
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from firmware_pipeline.esp.chips import FLASH_SIZES
from firmware_pipeline.esp.measurement import DIGEST_SIZE, Measurement
from firmware_pipeline.esp.partitions import Partition

MAX_FILE_SIZE = max(FLASH_SIZES.values())
"""No file is larger than the largest flash chip, in bytes."""

Offset = Annotated[int, Field(ge=0, lt=1 << 32)]
Size = Annotated[int, Field(gt=0, le=MAX_FILE_SIZE)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
Revision = Annotated[int, Field(ge=0, le=65535)]
HexSha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShortText = Annotated[str, StringConstraints(max_length=256)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
FEATURE_PATTERN = r"^(psram-octal|psram-quad|secure-boot-v2|(psram|flash)>=([1-9][0-9]{0,2}|10[01][0-9]|102[0-4])M)$"
"""Hardware that a build may demand beyond its chip; sizes in MiB. See `features`."""
Features = Annotated[tuple[Annotated[str, StringConstraints(pattern=FEATURE_PATTERN)], ...], Field(max_length=8)]


class Model(BaseModel):
    """Base of all models here: strict, frozen, unknown keys refused, camelCase in JSON."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Role(StrEnum):
    """What a file is for."""

    BOOTLOADER = "bootloader"
    PARTITION_TABLE = "partition-table"
    OTADATA = "otadata"
    APP = "app"
    NVS = "nvs"
    DATA = "data"
    SPIFFS = "spiffs"
    LITTLEFS = "littlefs"
    FATFS = "fatfs"


DATA_ROLES = frozenset({Role.NVS, Role.DATA, Role.SPIFFS, Role.LITTLEFS, Role.FATFS})
"""Images of data partitions."""


class FlashSettings(Model):
    """SPI flash settings of the image headers ("dio", "80m", "4MB")."""

    mode: Literal["qio", "qout", "dio", "dout", "fast_read", "slow_read"]
    freq: Annotated[str, StringConstraints(pattern=r"^[0-9]{2}m$")] | None = None
    size: Literal["1MB", "2MB", "4MB", "8MB", "16MB", "32MB", "64MB", "128MB"]

    @property
    def size_bytes(self) -> int:
        return FLASH_SIZES[self.size]


class AppInfo(Model):
    """The application's name and version (from its descriptor, or given by the user where that is empty)."""

    project_name: Name
    version: Name
    secure_version: U32
    idf_version: ShortText | None = None
    elf_sha256: HexSha256 | None = None


class MeasurementEntry(Model):
    """A measurement in JSON form: COSE algorithm id, value as lower-case hex."""

    scheme: Literal["esp-image", "mcuboot"]
    alg: Literal[-16, -44]
    value: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64}|[0-9a-f]{128})$")]

    @classmethod
    def of(cls, measurement: Measurement) -> "MeasurementEntry":
        return cls(scheme=measurement.scheme, alg=measurement.alg, value=measurement.value.hex())

    def model_post_init(self, _context: object) -> None:
        if len(self.value) != 2 * DIGEST_SIZE[self.alg]:
            raise ValueError(f"a measurement with alg {self.alg} has {DIGEST_SIZE[self.alg]} bytes")


class PartitionEntry(Model):
    """One row of a partition table; offset and size in bytes."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=16)]
    type: Annotated[int, Field(ge=0, le=0xFE)]
    subtype: Annotated[int, Field(ge=0, le=0xFE)]
    offset: Offset
    size: Annotated[int, Field(gt=0, lt=1 << 32)]
    flags: U32 = 0

    @classmethod
    def of(cls, row: Partition) -> "PartitionEntry":
        return cls(name=row.name, type=row.type, subtype=row.subtype, offset=row.offset, size=row.size, flags=row.flags)

    def to_partition(self) -> Partition:
        return Partition(self.name, self.type, self.subtype, self.offset, self.size, self.flags)


class SecureBoot(Model):
    """Secure Boot v2 signatures found behind the application image."""

    version: Literal[2] = 2
    key_digests: Annotated[tuple[HexSha256, ...], Field(min_length=1, max_length=3)]


class BuildInfo(Model):
    """Where the build came from: framework ("espidf"), its version, source URL, revision."""

    framework: Name
    framework_version: ShortText | None = None
    source: ShortText | None = None
    revision: ShortText | None = None


class PlannedFile(Model):
    """One file to be written at `offset` (bytes): the role, the bytes, the partition it fills (by name)."""

    role: Role
    offset: Offset
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$")]
    data: Annotated[bytes, Field(min_length=1, max_length=MAX_FILE_SIZE, repr=False)]
    partition: str | None = None
    encrypt: bool = False
    required: bool = True

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> str:
        """OCI digest of the file's bytes ("sha256:..."); not a measurement."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


class BuildPlan(Model):
    """A checked build for one chip.

    Attributes:
        target: chip ("esp32s3"); chip_id as in image headers.
        min_rev, max_rev: chip revisions (major * 100 + minor) the application accepts; None = no maximum.
        files: in flash order; exactly one has role app.
        measurements: of the application, with every algorithm.
        partitions: rows of the build's partition table; empty if the build has none.
        partition_table_offset: flash offset in bytes; None without table.
        secure_boot: what signed the application image; None = unsigned.
        features: hardware it demands beyond the chip, sorted ("psram>=8M"); see `features`.
        warnings: for people; none of them prevents a push.
    """

    target: Name
    chip_id: Annotated[int, Field(ge=0, le=0xFFFF)]
    min_rev: Revision
    max_rev: Revision | None = None
    flash: FlashSettings
    files: tuple[PlannedFile, ...]
    app: AppInfo
    measurements: tuple[MeasurementEntry, ...]
    partitions: tuple[PartitionEntry, ...] = ()
    partition_table_sha256: HexSha256 | None = None
    partition_table_offset: Offset | None = None
    secure_boot: SecureBoot | None = None
    build: BuildInfo
    features: Features = ()
    warnings: tuple[str, ...] = ()

    @property
    def app_file(self) -> PlannedFile:
        """The application."""
        return next(f for f in self.files if f.role is Role.APP)
