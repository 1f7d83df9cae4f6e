# SPDX-License-Identifier: Apache-2.0
"""Every parser of firmware_pipeline that meets foreign bytes, with true inputs to mutate: for property tests and fuzzing."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from cryptography.hazmat.primitives.asymmetric import ed25519

from firmware_pipeline import artifact, config
from firmware_pipeline.credentials import parse_docker_config
from firmware_pipeline.esp.appdesc import parse_app_descriptor
from firmware_pipeline.esp.builder import build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.mcuboot import build_mcuboot, parse_mcuboot
from firmware_pipeline.esp.otadata import OtaRecord, SlotState, blank_otadata, parse_otadata, write_record
from firmware_pipeline.esp.partitions import build_table, parse_table
from firmware_pipeline.esp.signature import find_signatures
from firmware_pipeline.inputs.merged import split
from firmware_pipeline.inputs.reconcile import Claims, Overrides, RawFile, reconcile
from firmware_pipeline.oci import Index, Manifest, parse_document
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.signing.release import mint_release, read_sequence

CHIP = "esp32c3"


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser: `parse` takes any bytes and either returns or raises PipelineError. `seeds` are accepted by it."""

    name: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


@cache
def plan() -> BuildPlan:
    """A small true build."""
    files = [
        RawFile(by_target(CHIP).bootloader_offset, "bootloader.bin", build_bootloader(CHIP, payload_size=4096)),
        RawFile(0x8000, "table.bin", build_table(default_partitions())),
        RawFile(0xD000, "otadata.bin", blank_otadata()),
        RawFile(0x20000, "app.bin", _app()),
    ]
    return reconcile(files, Claims(source="the parsers' test"), Overrides())


def _app() -> bytes:
    return build_app(CHIP, "porch-sensor", "2.1.0", payload_size=16 * 1024, pad_to_page=False)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _signatures(raw: bytes) -> object:
    """As if the image ended with the first sector."""
    return find_signatures(raw, min(len(raw), 4096))


def _release(raw: bytes) -> object:
    return read_sequence(raw, config.from_plan(plan()))


@cache
def firmware_parsers() -> tuple[Parser, ...]:
    """All of them."""
    from flashjob.virtual import secure_boot  # signs like espsecure

    packed = artifact.pack_chip(plan())
    index = artifact.pack_index([plan()], [packed])
    release = mint_release(packed.config, 7, ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
    record = OtaRecord(1, SlotState.VALID, bytes(20)).to_bytes()
    otadata = write_record(blank_otadata(), 0, record)
    small_app, table = _app(), build_table(default_partitions())
    signed = secure_boot.sign(bytes(4096), secure_boot.maker_key(b"\1" * 32))
    merged = (
        build_bootloader(CHIP, payload_size=4096).ljust(0x8000, b"\xff") + table.ljust(0x18000, b"\xff") + small_app
    )
    mcuboot = build_mcuboot(by_target(CHIP), bytes(2048), (1, 2, 3, 4), security_counter=1)
    docker = json.dumps({"auths": {"registry.example": {"auth": "dXNlcjpwYXNz"}}, "credHelpers": {"a.example": "x"}})
    return (
        Parser("image", parse_image, (small_app, build_bootloader(CHIP, payload_size=4096))),
        Parser("app-descriptor", parse_app_descriptor, (small_app[:512],)),
        Parser("mcuboot", parse_mcuboot, (mcuboot,)),
        Parser("partition-table", partial(parse_table, table_offset=0x8000, flash_size=4 << 20), (table,)),
        Parser("otadata", parse_otadata, (blank_otadata(), otadata)),
        Parser("signature-block", _signatures, (signed,)),
        Parser("merged-image", split, (merged,)),
        Parser("config", config.loads, (config.dumps(packed.config),)),
        Parser("manifest", partial(artifact.read_manifest, digest="sha256:0"), (packed.manifest,)),
        Parser("index", partial(artifact.read_index, digest="sha256:0"), (index,)),
        Parser("oci-manifest", lambda raw: parse_document(Manifest, raw, "it"), (packed.manifest,)),
        Parser("oci-index", lambda raw: parse_document(Index, raw, "it"), (index,)),
        Parser("release", _release, (release,)),
        Parser("reference", lambda raw: parse_reference(_text(raw)), (b"registry.example:5000/team/porch:2.1.0",)),
        Parser("docker-config", lambda raw: parse_docker_config(raw, "the file"), (docker.encode(),)),
    )
