# SPDX-License-Identifier: Apache-2.0
"""Builds that an honest tool would never push, as an attacker or a broken machine would: well formed, signed, and wrong."""

from pathlib import Path

from firmware_pipeline.esp import builder
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.plan import BuildPlan, MeasurementEntry
from flashjob.virtual import secure_boot


def with_image_of(plan: BuildPlan, other: BuildPlan) -> BuildPlan:
    """`plan` in every word, but its application image, and what is measured of it, are those of another chip."""
    data = other.app_file.data
    files = tuple(f.model_copy(update={"data": data}) if f is plan.app_file else f for f in plan.files)
    measured = tuple(MeasurementEntry.of(m) for m in measure(data))
    return plan.model_copy(update={"files": files, "measurements": measured})


def too_large(folder: Path, chip: str, version: str, maker: bytes, slot_size: int) -> BuildPlan:
    """A right image that is some sectors larger than the slots of a default partition table."""
    image = builder.build_app(chip, "porch-sensor", version, payload_size=slot_size + 0x4000)
    file = folder / f"{chip}-too-large.bin"
    file.write_bytes(secure_boot.sign(image, secure_boot.maker_key(maker)))
    return load_files([f"0x20000={file}"], chip=chip)


def spoil(blob: Path) -> None:
    """Flip one bit in the middle of a stored blob; its name still promises the old content."""
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)
