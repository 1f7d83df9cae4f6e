# SPDX-License-Identifier: Apache-2.0
"""Show what an artifact holds. Digests are checked; signatures are listed as they present themselves, not judged.

`Inspection` as JSON (camelCase, absent optional values left out) is an interface: fields are added, never renamed.
"""

from collections.abc import Iterator
from typing import Any

from firmware_pipeline.artifact import ChipArtifact
from firmware_pipeline.comparison import Change, compare
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.oci import MANIFEST_TYPE, Manifest, parse_document, strict_json
from firmware_pipeline.opening import DEFAULT_OPTIONS, open_chips, open_index, open_store, read_layer, resolve
from firmware_pipeline.plan import MeasurementEntry, Model, Role
from firmware_pipeline.reference import Reference, parse_reference
from firmware_pipeline.referrers import unusable_is_left
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.release import read_sequence
from firmware_pipeline.signing.statements import SIGN_PREDICATE
from firmware_pipeline.store import ArtifactStore


class SignatureReport(Model):
    """A signature that nobody has judged. `key` is what it says of its key (base64 of the public key's SHA-256)."""

    format: str
    judged: bool = False
    key: str | None = None
    digest: str


class ReferrerReport(Model):
    """Something attached to an index or manifest."""

    digest: str
    artifact_type: str
    size: int
    annotations: dict[str, str]


class ImageReport(Model):
    """One layer: what it is, where it goes (bytes), its OCI digest, and what a bootloader measures of it."""

    role: Role
    title: str
    offset: int
    size: int
    digest: str
    partition: str | None = None
    encrypt: bool
    required: bool
    measurements: tuple[MeasurementEntry, ...] = ()


class ReleaseReport(Model):
    """The release statement; its signature is the gateway's and the device's to judge."""

    digest: str
    sequence: int


class ChipReport(Model):
    """One chip's firmware."""

    chip: str
    chip_id: int
    project_name: str
    version: str
    secure_version: int
    min_revision: int
    max_revision: int | None = None
    platform: dict[str, Any]
    manifest: str
    config_digest: str
    config: FirmwareConfig
    images: tuple[ImageReport, ...]
    layers: tuple[dict[str, str], ...]
    release: ReleaseReport | None = None
    release_digest: str | None = None
    release_sequence: int | None = None
    signatures: tuple[SignatureReport, ...] = ()
    referrers: tuple[ReferrerReport, ...] = ()


class Inspection(Model):
    """One artifact."""

    reference: str
    digest: str
    annotations: dict[str, str]
    signatures: tuple[SignatureReport, ...]
    referrers: tuple[ReferrerReport, ...]
    chips: tuple[ChipReport, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def inspect(
    reference: Reference | str, *, options: ClientOptions = DEFAULT_OPTIONS, store: ArtifactStore | None = None
) -> Inspection:
    """Everything that can be told about an artifact. Of the images only the bootloaders are fetched, to measure them:
    the signed config holds the application's measurements.

    Raises:
        PipelineError: as `resolve`, `open_index`, `open_chip`, `read_layer`.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    store = store or open_store(where, options)
    digest = resolve(store, where)
    index = open_index(store, digest)
    signatures, referrers = _attached(store, digest)
    found = []
    for entry, chip in open_chips(store, index):
        signed, attached = _attached(store, chip.manifest_digest)
        shown = entry.platform.model_dump(by_alias=True, exclude_none=True) if entry.platform else {}
        found.append(_report(store, chip, shown, signed, attached))
    return Inspection(
        reference=str(where.at(digest)),
        digest=digest,
        annotations=index.annotations,
        signatures=signatures,
        referrers=referrers,
        chips=tuple(found),
    )


def diff(old: Reference | str, new: Reference | str, *, options: ClientOptions = DEFAULT_OPTIONS) -> list[Change]:
    """What differs between two artifacts, signatures aside; empty when their firmware is the same.

    Raises:
        PipelineError: as `resolve`, `open_chip`.
    """
    sides: list[list[ChipArtifact]] = []
    for reference in (old, new):
        where = parse_reference(reference) if isinstance(reference, str) else reference
        store = open_store(where, options)
        digest = resolve(store, where)
        sides.append([chip for _, chip in open_chips(store, open_index(store, digest))])
    return compare(*sides)


def _report(
    store: ArtifactStore,
    chip: ChipArtifact,
    platform: dict[str, Any],
    signatures: tuple[SignatureReport, ...],
    referrers: tuple[ReferrerReport, ...],
) -> ChipReport:
    config, statement, images = chip.config, chip.release_statement, []
    for layer in chip.layers:
        image = layer.image
        measured: tuple[MeasurementEntry, ...] = ()
        if image.role is Role.APP:
            measured = config.measurements
        elif image.role is Role.BOOTLOADER:
            measured = tuple(MeasurementEntry.of(value) for value in measure(read_layer(store, layer)))
        images.append(ImageReport(title=layer.title, measurements=measured, **dict(image)))
    release = None
    if statement is not None and chip.release_digest is not None:
        release = ReleaseReport(digest=chip.release_digest, sequence=read_sequence(statement, config))
    return ChipReport(
        chip=chip.target,
        chip_id=config.chip.chip_id,
        project_name=config.app.project_name,
        version=config.app.version,
        secure_version=config.app.secure_version,
        min_revision=config.chip.min_rev,
        max_revision=config.chip.max_rev,
        platform=platform,
        manifest=chip.manifest_digest,
        config_digest=chip.config_digest,
        config=config,
        images=tuple(images),
        layers=tuple({"title": layer.title, "digest": layer.descriptor.digest} for layer in chip.layers),
        release=release,
        release_digest=chip.release_digest,
        release_sequence=release.sequence if release else None,
        signatures=signatures,
        referrers=referrers,
    )


def _attached(store: ArtifactStore, digest: str) -> tuple[tuple[SignatureReport, ...], tuple[ReferrerReport, ...]]:
    """Signatures and other referrers of a manifest; what cannot be read is left out: `verify` says more."""
    signatures, others = list(_simple(store, digest)), []
    for entry in store.referrers(digest):
        with unusable_is_left():
            found = store.get_manifest(entry.digest)
            if found.media_type != MANIFEST_TYPE:
                continue
            manifest = parse_document(Manifest, found.raw, f"The referrer {entry.digest}")
            if manifest.subject is None or manifest.subject.digest != digest:
                continue
            kind = manifest.artifact_type or manifest.config.media_type
            predicate = manifest.annotations.get(formats.PREDICATE_ANNOTATION, SIGN_PREDICATE)
            if kind == formats.BUNDLE_TYPE and predicate == SIGN_PREDICATE and manifest.layers:
                raw = store.read_blob(manifest.layers[0], max_bytes=formats.MAX_SIGNED_BYTES)
                signatures.append(SignatureReport(format="bundle", key=_hint(raw), digest=entry.digest))
            else:
                size = sum(layer.size for layer in manifest.layers)
                others.append(
                    ReferrerReport(digest=entry.digest, artifact_type=kind, size=size, annotations=manifest.annotations)
                )
    return tuple(signatures), tuple(others)


def _simple(store: ArtifactStore, digest: str) -> Iterator[SignatureReport]:
    with unusable_is_left():
        raw = store.get_manifest(formats.signature_tag(digest)).raw
        for layer in parse_document(Manifest, raw, f"The signatures of {digest}").layers:
            if layer.media_type == formats.SIMPLE_TYPE:
                yield SignatureReport(format="simple", digest=layer.digest)


def _hint(bundle: bytes) -> str | None:
    material = strict_json(bundle, "the bundle").get("verificationMaterial")
    key = material.get("publicKey") if isinstance(material, dict) else None
    hint = key.get("hint") if isinstance(key, dict) else None
    return hint[:128] if isinstance(hint, str) and hint.isascii() and hint.isprintable() else None
