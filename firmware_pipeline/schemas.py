# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas (2020-12) of what `push` writes: index, chip manifest, config. Generated, for tools that check artifacts.

    python -m firmware_pipeline.schemas DIRECTORY

The models here are what our own documents look like, closed: nothing undescribed may be in them. Readers
(`artifact.read_index`, `read_manifest`) follow the OCI specification instead and ignore what they do not know.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from firmware_pipeline.artifact import CHIP_ARTIFACT_TYPE, INDEX_ARTIFACT_TYPE, RELEASE_TYPE, layer_type
from firmware_pipeline.config import CONFIG_MEDIA_TYPE, MAX_CONFIG_SIZE, FirmwareConfig
from firmware_pipeline.esp.chips import CHIPS
from firmware_pipeline.oci import DIGEST_PATTERN
from firmware_pipeline.plan import MAX_FILE_SIZE, Features, Role

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def _enum(values: Iterable[str]) -> dict[str, JsonValue]:
    found: list[JsonValue] = [*sorted(values)]
    return {"enum": found}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


_Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
_Number = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]
_Annotations = dict[str, str]


class _LayerAnnotations(_Closed):
    title: str = Field(
        alias="org.opencontainers.image.title",
        pattern=r"^[a-z0-9]{1,32}/[A-Za-z0-9_][A-Za-z0-9._+-]{0,160}$",
        description="Chip and file name, unique in the whole index.",
    )
    offset: str | None = Field(
        alias="dev.flashjob.offset", default=None, pattern=r"^0x[0-9a-f]{1,8}$", description="Flash offset in bytes."
    )
    partition: str | None = Field(
        alias="dev.flashjob.partition", default=None, max_length=16, description="The partition that it fills."
    )


class _Layer(_Closed):
    media_type: str = Field(alias="mediaType", json_schema_extra=_enum([*map(layer_type, Role), RELEASE_TYPE]))
    digest: _Digest
    size: int = Field(ge=1, le=MAX_FILE_SIZE, description="Bytes.")
    annotations: _LayerAnnotations


class _ConfigDescriptor(_Closed):
    media_type: Literal["application/vnd.flashjob.firmware.config.v1+json"] = Field(alias="mediaType")
    digest: _Digest
    size: int = Field(ge=2, le=MAX_CONFIG_SIZE, description="Bytes.")


class _Manifest(_Closed):
    """One chip's firmware; layers in flash order, then the release statement if there is one."""

    schema_version: Literal[2] = Field(alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(alias="mediaType")
    artifact_type: Literal["application/vnd.flashjob.firmware.v1"] = Field(alias="artifactType")
    config: _ConfigDescriptor
    layers: Annotated[list[_Layer], Field(min_length=1, max_length=256)]
    annotations: _Annotations = {}


class _Platform(_Closed):
    os: Literal["espidf", "zephyr", "none"]
    architecture: Literal["xtensa", "riscv32"]
    variant: str = Field(json_schema_extra=_enum(chip.target for chip in CHIPS))
    os_features: Features = Field(alias="os.features", default=())


class _EntryAnnotations(_Closed):
    min_chip_rev: _Number = Field(alias="dev.flashjob.min-chip-rev", description="Major * 100 + minor.")
    secure_version: _Number = Field(alias="dev.flashjob.secure-version")
    flash_size: str = Field(alias="dev.flashjob.flash-size", pattern=r"^[0-9]{1,3}MB$")


class _Entry(_Closed):
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(alias="mediaType")
    digest: _Digest
    size: int = Field(ge=1, description="Bytes.")
    platform: _Platform
    annotations: _EntryAnnotations


class _Index(_Closed):
    """One release: a manifest per chip, and per set of features where a chip has several builds."""

    schema_version: Literal[2] = Field(alias="schemaVersion")
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = Field(alias="mediaType")
    artifact_type: Literal["application/vnd.flashjob.firmware.index.v1"] = Field(alias="artifactType")
    manifests: Annotated[list[_Entry], Field(min_length=1, max_length=1024)]
    annotations: _Annotations = {}


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON Schema."""
    models: tuple[tuple[str, str, type[BaseModel]], ...] = (
        ("index", INDEX_ARTIFACT_TYPE, _Index),
        ("manifest", CHIP_ARTIFACT_TYPE, _Manifest),
        ("config", CONFIG_MEDIA_TYPE, FirmwareConfig),
    )
    return {
        f"{name}.v1.json": {
            "$schema": DIALECT,
            "$id": f"urn:flashjob:schema:{name}:v1",
            **_without_titles(model.model_json_schema(by_alias=True)),
            "title": media_type,
        }
        for name, media_type, model in models
    }


def _without_titles(value: Any) -> Any:
    """Pydantic titles every field after its name: noise."""
    if isinstance(value, dict):
        return {k: _without_titles(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    return [_without_titles(item) for item in value] if isinstance(value, list) else value


def write(directory: Path) -> list[Path]:
    """Write all schemas into a directory that exists; returns the files."""
    files = []
    for name, schema in schemas().items():
        files.append(directory / name)
        files[-1].write_text(json.dumps(schema, indent=2) + "\n")
    return files


if __name__ == "__main__":
    write(Path(sys.argv[1]))
