# SPDX-License-Identifier: Apache-2.0
"""BuildPlans <-> an OCI index, one manifest per chip, raw layers. Pure.

    index     artifactType application/vnd.flashjob.firmware.index.v1
      child   artifactType application/vnd.flashjob.firmware.v1, platform os = runtime, architecture, variant = chip
        config    application/vnd.flashjob.firmware.config.v1+json     what to write where; the measurements
        layers    application/vnd.flashjob.firmware.<role>.v1+bin      in flash order, the very bytes of the files
                  application/vnd.flashjob.firmware.release.v1+cose    the release statement, if there is one

The same plans give the same bytes: canonical JSON, no times, no host names. Annotations are for people; the signed
config decides, and what they repeat of it must agree.

Rules for what is read:
    1. The index is an OCI index with our artifactType; a chip's entries are those whose variant is its target name. Of
       several the one is taken whose features (`os.features`) fit the device best (`features`); a tie is refused.
    2. No two entries with the same variant and the same features.
    3. The chip's manifest has our artifactType and config type, and exactly the descriptor's size.
    4. Config and chip table agree on the chip, and the index's entry says what follows from the config: platform with
       features, and our annotations.
    5. Every image of the config is one layer with its role's type, its digest, size and offset, in the same order;
       there is no other layer but at most one release statement.
    6. Titles are `<chip>/<file name>`, no two alike: they become file names.

Source: OCI image specification 1.1; artifacts as manifests with artifactType.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from firmware_pipeline import config as config_
from firmware_pipeline.config import CONFIG_MEDIA_TYPE, MAX_CONFIG_SIZE, FirmwareConfig, ImageEntry
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import by_target, normalise_target
from firmware_pipeline.features import best, normalise_features
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Index,
    Manifest,
    Platform,
    malformed,
    parse_document,
    sha256_digest,
    to_json,
)
from firmware_pipeline.plan import BuildPlan, PlannedFile, Role
from firmware_pipeline.store import Blob

VENDOR_TREE: Final = "application/vnd.flashjob.firmware"
INDEX_ARTIFACT_TYPE: Final = f"{VENDOR_TREE}.index.v1"
CHIP_ARTIFACT_TYPE: Final = f"{VENDOR_TREE}.v1"
RELEASE_TYPE: Final = f"{VENDOR_TREE}.release.v1+cose"
PREFIX: Final = "dev.flashjob."
OFFSET: Final = PREFIX + "offset"
TITLE: Final = "org.opencontainers.image.title"
MAX_RELEASE_BYTES: Final = 768
_TITLE: Final = re.compile(r"^[a-z0-9]{1,32}/[A-Za-z0-9_][A-Za-z0-9._+-]{0,160}\Z")
_RUNTIMES: Final = {"espidf": "espidf", "arduino": "espidf", "platformio": "espidf", "zephyr": "zephyr"}
_FILESYSTEMS: Final = frozenset({Role.SPIFFS, Role.LITTLEFS, Role.FATFS})


@dataclass(frozen=True, slots=True)
class PackedChip:
    """One chip's firmware, ready to be stored.

    Attributes:
        target: the chip.
        config: the signed config.
        manifest: the manifest's bytes.
        descriptor: the manifest's entry in the index.
        blobs: (title, content) of everything the manifest names, config first.
    """

    target: str
    config: FirmwareConfig
    manifest: bytes
    descriptor: Descriptor
    blobs: tuple[tuple[str, Blob], ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One image to be written and the blob that holds it."""

    image: ImageEntry
    descriptor: Descriptor
    title: str


@dataclass(frozen=True, slots=True)
class ChipManifest:
    """A chip's manifest, checked by itself; its config is still to be fetched."""

    digest: str
    manifest: Manifest
    release: Descriptor | None


@dataclass(frozen=True, slots=True)
class ChipArtifact:
    """One chip's firmware as it was read: digests pinned, config checked, no image fetched yet.

    Attributes:
        target: the chip.
        manifest_digest, config_digest: OCI digests; a FlashTask pins them.
        config: what to write where, and the measurements.
        layers: in flash order.
        release_statement: COSE_Sign1 bytes, or None; fits the config, its signature is the gateway's to judge.
        release_digest: OCI digest of the statement.
    """

    target: str
    manifest_digest: str
    config: FirmwareConfig
    config_digest: str
    layers: tuple[Layer, ...]
    release_statement: bytes | None = None
    release_digest: str | None = None

    @property
    def app(self) -> Layer:
        """The application's layer."""
        return next(layer for layer in self.layers if layer.image.role is Role.APP)


# ---- writing ---------------------------------------------------------------------------------------------


def layer_type(role: Role) -> str:
    """The media type of a layer with this role."""
    return f"{VENDOR_TREE}.{'filesystem.' if role in _FILESYSTEMS else ''}{role.value}.v1+bin"


def pack_chip(plan: BuildPlan, release_statement: bytes | None = None) -> PackedChip:
    """Turn one chip's build into manifest and blobs.

    Args:
        plan: a checked build.
        release_statement: COSE_Sign1 that travels with it.
    """
    chip = by_target(plan.target)
    config = config_.from_plan(plan)
    config_blob = Blob.of(config_.dumps(config))
    files = sorted(plan.files, key=lambda file: file.offset)
    blobs = [(f"{chip.target}/config.json", config_blob)]
    layers = []
    for file, title in zip(files, _titles(plan, files), strict=True):
        blobs.append((title, Blob(file.data, file.digest, file.size)))
        note = _annotations(file, title)
        layers.append(
            Descriptor(media_type=layer_type(file.role), digest=file.digest, size=file.size, annotations=note)
        )
    if release_statement is not None:
        title, blob = f"{_folder(plan)}release.cose", Blob.of(release_statement)
        blobs.append((title, blob))
        layers.append(
            Descriptor(media_type=RELEASE_TYPE, digest=blob.digest, size=blob.size, annotations={TITLE: title})
        )
    manifest = to_json(
        Manifest(
            schema_version=2,
            artifact_type=CHIP_ARTIFACT_TYPE,
            config=Descriptor(media_type=CONFIG_MEDIA_TYPE, digest=config_blob.digest, size=config_blob.size),
            layers=layers,
            annotations=_describe(plan),
        )
    )
    return PackedChip(chip.target, config, manifest, chip_entry(config, manifest), tuple(blobs))


def chip_entry(config: FirmwareConfig, manifest: bytes) -> Descriptor:
    """How an index names a chip's manifest: platform, and what a reader wants to know before it fetches more.

    Args:
        config: the manifest's config.
        manifest: the manifest's bytes.
    """
    framework, chip = config.build.framework, by_target(config.chip.target)
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=sha256_digest(manifest),
        size=len(manifest),
        platform=Platform(
            os=_RUNTIMES.get(framework, "none"),
            architecture=chip.architecture,
            variant=chip.target,
            os_features=list(config.features),
        ),
        annotations={
            PREFIX + "min-chip-rev": str(config.chip.min_rev),
            PREFIX + "secure-version": str(config.app.secure_version),
            PREFIX + "flash-size": config.flash.size,
        },
    )


def pack_index(
    plans: Sequence[BuildPlan], chips: Sequence[PackedChip], annotations: Mapping[str, str] | None = None
) -> bytes:
    """The index over one release's chips, in a stable order.

    Args:
        plans: the builds, for title and version.
        chips: the packed builds.
        annotations: the user's own; may replace the usual ones, but not use our prefix.

    Raises:
        PipelineError: InputMissing without builds; InputDisagrees when a chip comes twice or names or versions differ.
    """
    if not chips:
        raise PipelineError(Reason.InputMissing, "There is no build to push.", "Name at least one build folder.")
    places = Counter((chip.target, *chip.config.features) for chip in chips)
    if twice := sorted(" ".join(place) for place, count in places.items() if count > 1):
        raise _disagrees(f"two builds are for the same chip ({', '.join(twice)})")
    for what, values in (
        ("application names", {plan.app.project_name for plan in plans}),
        ("application versions", {plan.app.version for plan in plans}),
    ):
        if len(values) > 1:
            raise _disagrees(f"their {what} differ ({', '.join(sorted(values))})")
    own = [key for key in annotations or {} if key.startswith(PREFIX)]
    if own:
        raise _disagrees(f"the annotation {own[0]} uses the reserved prefix {PREFIX}")
    return to_json(
        Index(
            schema_version=2,
            artifact_type=INDEX_ARTIFACT_TYPE,
            manifests=[chip.descriptor for chip in sorted(chips, key=_place)],
            annotations={**_describe(plans[0]), **(annotations or {})},
        )
    )


def _describe(plan: BuildPlan) -> dict[str, str]:
    values = {
        "title": plan.app.project_name,
        "version": plan.app.version,
        "source": plan.build.source,
        "revision": plan.build.revision,
    }
    return {f"org.opencontainers.image.{key}": value for key, value in values.items() if value}


def _place(chip: PackedChip) -> tuple[str, ...]:
    return chip.target, *chip.config.features


def _folder(plan: BuildPlan) -> str:
    """What titles begin with: the chip, and the features where the build has some."""
    marks = "+".join(feature.replace(">=", "-") for feature in plan.features)
    return f"{plan.target}/{marks}{'-' if marks else ''}"


def _titles(plan: BuildPlan, files: Sequence[PlannedFile]) -> list[str]:
    """`<chip>/<file>`: unique over the whole index, so that generic tools can pull all chips into one folder."""
    names = [file.name for file in files]
    folder = _folder(plan)
    return [
        f"{folder}{file.name if names.count(file.name) == 1 else f'{file.offset:#x}-{file.name}'}" for file in files
    ]


def _annotations(file: PlannedFile, title: str) -> dict[str, str]:
    values = {TITLE: title, OFFSET: f"{file.offset:#x}"}
    if file.partition:
        values[PREFIX + "partition"] = file.partition
    return values


def _disagrees(problem: str) -> PipelineError:
    return PipelineError(
        Reason.InputDisagrees,
        f"These builds cannot be one artifact: {problem}.",
        "Push builds of one release together, one per chip; push others under a tag of their own.",
    )


# ---- reading ---------------------------------------------------------------------------------------------


def read_index(raw: bytes, digest: str) -> Index:
    """Rules 1 and 2.

    Raises:
        PipelineError: ArtifactMalformed.
    """
    what = f"The index {digest}"
    index = parse_document(Index, raw, what)
    if index.media_type != INDEX_TYPE or index.artifact_type != INDEX_ARTIFACT_TYPE:
        raise malformed(what, f"it is {index.artifact_type or index.media_type}, not {INDEX_ARTIFACT_TYPE}")
    places = [(p.variant, *sorted(p.os_features)) for p in _platforms(index)]
    if len(set(places)) != len(places):
        raise malformed(what, "it holds two entries for the same chip and features")
    return index


def chips(index: Index) -> list[str]:
    """The chips an index has firmware for."""
    return sorted({platform.variant for platform in _platforms(index) if platform.variant})


def _platforms(index: Index) -> list[Platform]:
    return [entry.platform for entry in index.manifests if entry.platform and entry.platform.variant]


def find_chip(index: Index, chip: str, facts: HardwareFacts | None = None) -> Descriptor:
    """The entry for a device: of its chip (in any spelling), with the most specific features that it has.

    Args:
        facts: what is known of the device; None = its chip alone. The only entry of a chip is then taken whatever its
            features, since they are checked against the device before anything is written.

    Raises:
        PipelineError: PlatformMissing, PlatformAmbiguous.
    """
    target = normalise_target(chip)
    entries = [entry for entry in index.manifests if entry.platform and entry.platform.variant == target]
    if facts is None and len(entries) == 1:
        return entries[0]
    features = [entry.platform.os_features if entry.platform else [] for entry in entries]
    offered = "; ".join(" and ".join(each) or "no features" for each in features)
    for each in features:
        normalise_features(each)
    fitting = best(features, facts or HardwareFacts())
    if len(fitting) == 1:
        return entries[fitting[0]]
    if fitting:
        raise PipelineError(
            Reason.PlatformAmbiguous,
            f"{len(fitting)} builds for {target} fit the device equally well (they demand: {offered}).",
            "Push a build that demands what both demand, or leave one of them out.",
        )
    if entries:
        raise PipelineError(
            Reason.PlatformMissing,
            f"The artifact holds builds for {target}, but the device is not known to have what they demand: {offered}.",
            f"Say what the device has (--platform-feature, or its recorded hardware), or push a build for {target} without "
            "these features.",
        )
    raise PipelineError(
        Reason.PlatformMissing,
        f"The artifact holds nothing for {target}; it holds: {', '.join(chips(index)) or 'no chip at all'}.",
        f"Build for {target}, and push all chips of the release together.",
    )


def read_manifest(raw: bytes, digest: str) -> ChipManifest:
    """Rule 3, but for the size; at most one release statement.

    Raises:
        PipelineError: ArtifactMalformed, TooLarge.
    """
    what = f"The manifest {digest}"
    manifest = parse_document(Manifest, raw, what)
    if manifest.media_type != MANIFEST_TYPE or manifest.artifact_type != CHIP_ARTIFACT_TYPE:
        raise malformed(what, f"it is {manifest.artifact_type or manifest.media_type}, not {CHIP_ARTIFACT_TYPE}")
    if manifest.config.media_type != CONFIG_MEDIA_TYPE:
        raise malformed(what, f"its config is {manifest.config.media_type}, not {CONFIG_MEDIA_TYPE}")
    releases = [layer for layer in manifest.layers if layer.media_type == RELEASE_TYPE]
    if len(releases) > 1:
        raise malformed(what, "it holds two release statements")
    release = releases[0] if releases else None
    if manifest.config.size > MAX_CONFIG_SIZE or (release and release.size > MAX_RELEASE_BYTES):
        raise PipelineError(
            Reason.TooLarge,
            f"{what} names a config or release statement that is larger than any real one.",
            "Do not use this artifact; push the firmware again.",
        )
    return ChipManifest(digest, manifest, release)


def read_chip(found: ChipManifest, config_bytes: bytes, chip: str, release_statement: bytes | None) -> ChipArtifact:
    """Rules 4 to 6.

    Args:
        found: the checked manifest.
        config_bytes: its config, already checked against its digest.
        chip: the chip asked for; the config must be for this one.
        release_statement: the release layer, already checked against its digest.

    Raises:
        PipelineError: ArtifactMalformed, ConfigMalformed, WrongChip, UnknownChip.
    """
    what = f"The manifest {found.digest}"
    target = by_target(chip).target
    config = config_.loads(config_bytes)
    if config.chip.target != target:
        raise PipelineError(
            Reason.WrongChip,
            f"{what} was asked for as firmware for {target}, but its config says {config.chip.target}.",
            "Do not use this artifact: its index and its content contradict each other. Push the firmware again.",
        )
    descriptors = [layer for layer in found.manifest.layers if layer.media_type != RELEASE_TYPE]
    images = sorted(config.images, key=lambda image: image.offset)
    if len(descriptors) != len(images):
        raise malformed(what, f"its config names {len(images)} images, but it has {len(descriptors)} image layers")
    layers: list[Layer] = []
    for image, layer in zip(images, descriptors, strict=True):
        where = f"the {image.role.value} image at {image.offset:#x}"
        if layer.media_type != layer_type(image.role):
            raise malformed(what, f"{where} is a layer of type {layer.media_type}")
        if (layer.digest, layer.size) != (image.digest, image.size):
            raise malformed(what, f"{where} has another digest or size in the config than as a layer")
        if layer.annotations.get(OFFSET) != f"{image.offset:#x}":
            raise malformed(what, f"{where} has the annotation {OFFSET}={layer.annotations.get(OFFSET)!r}")
        title = layer.annotations.get(TITLE, "")
        if not _TITLE.match(title) or not title.startswith(f"{target}/") or title in {known.title for known in layers}:
            raise malformed(what, f"{where} has the title {title[:100]!r}; needed is a unique {target}/<file name>")
        layers.append(Layer(image, layer, title))
    return ChipArtifact(
        target=target,
        manifest_digest=found.digest,
        config=config,
        config_digest=found.manifest.config.digest,
        layers=tuple(layers),
        release_statement=release_statement,
        release_digest=found.release.digest if found.release else None,
    )


def check_entry(entry: Descriptor, config: FirmwareConfig) -> None:
    """Rule 4: whether the index's entry says of a manifest what its config says.

    Raises:
        PipelineError: ArtifactMalformed.
    """
    expected = chip_entry(config, b"")
    said = {key: value for key, value in entry.annotations.items() if key.startswith(PREFIX)}
    for what, found, wanted in (
        ("platform", entry.platform, expected.platform),
        ("annotations", said, {key: expected.annotations[key] for key in said if key in expected.annotations}),
    ):
        if found != wanted:
            raise malformed(f"The manifest {entry.digest}", f"its index names another {what} for it than its config")


def payload_sha256(layer: Layer) -> bytes:
    """The layer's digest as 32 bytes: the payload hash of an install grant. Not a measurement."""
    return bytes.fromhex(layer.descriptor.digest.removeprefix("sha256:"))
