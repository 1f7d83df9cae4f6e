# SPDX-License-Identifier: Apache-2.0
"""The signed config of one chip's firmware: what flashing, planning and attestation may rely on.

It is the config blob of the chip's OCI manifest (`application/vnd.flashjob.firmware.config.v1+json`): canonical JSON
(sorted keys, no spaces, UTF-8), so that the same build has the same digest. Once its digest is pinned and its signature
verified, its content decides; the layers are checked against it.

Rules of `loads`, all ConfigMalformed:
 1. At most 256 KiB of UTF-8 JSON; no key twice in one object, no fractions; the schema exactly, unknown keys refused.
 2. The chip's target and id are those of one chip of the table.
 3. Exactly one image has role app, and it is required; offsets are unique.
 4. Measurements: at least one, no (scheme, alg) twice.
 5. An image that names a partition names one of the config's; with partitions stands their table's SHA-256.
 6. Features are of the known vocabulary, sorted, none twice.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import by_id
from firmware_pipeline.esp.partitions import MAX_ROWS
from firmware_pipeline.plan import (
    AppInfo,
    BuildInfo,
    BuildPlan,
    Features,
    FlashSettings,
    HexSha256,
    MeasurementEntry,
    Model,
    Offset,
    PartitionEntry,
    Revision,
    Role,
    SecureBoot,
    Size,
)

CONFIG_MEDIA_TYPE = "application/vnd.flashjob.firmware.config.v1+json"
MAX_CONFIG_SIZE = 256 * 1024


class ChipRequirement(Model):
    """The chip this firmware runs on; revisions are major * 100 + minor, max_rev None = no maximum."""

    target: Annotated[str, StringConstraints(max_length=32)]
    chip_id: Annotated[int, Field(ge=0, le=0xFFFF)]
    min_rev: Revision = 0
    max_rev: Revision | None = None


class ImageEntry(Model):
    """One layer: where it goes (flash offset, bytes), how long it is (bytes), and its OCI digest."""

    role: Role
    offset: Offset
    size: Size
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    partition: Annotated[str, StringConstraints(min_length=1, max_length=16)] | None = None
    encrypt: bool = False
    required: bool = True

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.size


class FirmwareConfig(Model):
    """The whole config; see the module's rules."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    chip: ChipRequirement
    flash: FlashSettings
    images: Annotated[tuple[ImageEntry, ...], Field(min_length=1, max_length=MAX_ROWS)]
    app: AppInfo
    measurements: Annotated[tuple[MeasurementEntry, ...], Field(min_length=1, max_length=8)]
    partitions: Annotated[tuple[PartitionEntry, ...], Field(max_length=MAX_ROWS)] = ()
    partition_table_sha256: HexSha256 | None = None
    partition_table_offset: Offset | None = None
    secure_boot: SecureBoot | None = None
    features: Features = ()
    build: BuildInfo

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            known = by_id(self.chip.chip_id)
        except PipelineError as error:
            raise ValueError(error.message) from error
        if known.target != self.chip.target:
            raise ValueError(f"chip id {known.chip_id} is {known.target}, not {self.chip.target}")
        apps = [image for image in self.images if image.role is Role.APP]
        if len(apps) != 1 or not apps[0].required:
            raise ValueError(f"exactly one required image of role app is needed, found {len(apps)}")
        if len({image.offset for image in self.images}) != len(self.images):
            raise ValueError("two images have the same offset")
        if len({(m.scheme, m.alg) for m in self.measurements}) != len(self.measurements):
            raise ValueError("two measurements have the same scheme and alg")
        names = {row.name for row in self.partitions}
        unknown = [i.partition for i in self.images if i.partition is not None and i.partition not in names]
        if unknown:
            raise ValueError(f"an image names partition {unknown[0]!r}, which the partitions do not hold")
        if list(self.features) != sorted(set(self.features)):
            raise ValueError("the features are not sorted, or one comes twice")
        if bool(self.partitions) != (self.partition_table_sha256 is not None):
            raise ValueError("partitions and partitionTableSha256 belong together")
        return self

    @property
    def app_image(self) -> ImageEntry:
        """The application's layer."""
        return next(image for image in self.images if image.role is Role.APP)

    def measurement(self, alg: Literal[-16, -44], scheme: str = "esp-image") -> bytes | None:
        """The measured value with this COSE hash algorithm, or None."""
        return next((bytes.fromhex(m.value) for m in self.measurements if (m.scheme, m.alg) == (scheme, alg)), None)


def from_plan(plan: BuildPlan) -> FirmwareConfig:
    """The config of a checked build."""
    return FirmwareConfig(
        chip=ChipRequirement(
            target=plan.target, chip_id=plan.chip_id, min_rev=plan.min_rev, max_rev=plan.max_rev
        ),
        flash=plan.flash,
        images=tuple(
            ImageEntry(
                role=file.role, offset=file.offset, size=file.size, digest=file.digest,
                partition=file.partition, encrypt=file.encrypt, required=file.required,
            )
            for file in plan.files
        ),
        app=plan.app,
        measurements=plan.measurements,
        partitions=plan.partitions,
        partition_table_sha256=plan.partition_table_sha256,
        partition_table_offset=plan.partition_table_offset,
        secure_boot=plan.secure_boot,
        features=plan.features,
        build=plan.build,
    )  # fmt: skip


def dumps(config: FirmwareConfig) -> bytes:
    """Canonical JSON; `loads` is its inverse. Absent optional values are left out."""
    body = config.model_dump(mode="json", exclude_none=True)
    if not config.features:
        del body["features"]
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _no_float(text: str) -> object:
    raise ValueError(f"{text[:40]} is not an integer; the schema holds no other numbers")


def loads(data: bytes) -> FirmwareConfig:
    """Read a config strictly (rules 1 to 6).

    Raises:
        PipelineError: ConfigMalformed.
    """
    try:
        if len(data) > MAX_CONFIG_SIZE:
            raise ValueError(f"{len(data)} bytes exceed the maximum of {MAX_CONFIG_SIZE}")
        # Two things that pydantic lets pass: the last of two equal keys wins, and 1.0 equals 1.
        json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float)
        return FirmwareConfig.model_validate_json(data, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the config"
        raise _malformed(f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)[:200]) from error


def _malformed(detail: str) -> PipelineError:
    return PipelineError(
        Reason.ConfigMalformed,
        f"The firmware config is not valid ({detail}), so nothing in the artifact can be relied on.",
        "Push the firmware again with firmware-pipeline; configs are not written by hand.",
    )
