# SPDX-License-Identifier: Apache-2.0
"""Release what was packed before: mint the statements where the owner's key is, away from the build and the registry.

A statement is a layer of its chip's manifest, so a released artifact has another digest than the one it was made of;
images and configs are the same blobs. Signatures come after the release, since they are about the new digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from firmware_pipeline import artifact
from firmware_pipeline.attaching import identity_of, read_config
from firmware_pipeline.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, to_json
from firmware_pipeline.opening import open_index
from firmware_pipeline.pushing import Release
from firmware_pipeline.signing.keys import Signer
from firmware_pipeline.signing.release import mint_release
from firmware_pipeline.signing.sign import sign_all
from firmware_pipeline.store import ArtifactStore, Blob


@dataclass(frozen=True, slots=True)
class Released:
    """A released artifact: the new index, and which chips it is for."""

    digest: str
    chips: tuple[str, ...]


def release(
    store: ArtifactStore, digest: str, statement: Release, signer: Signer | None, tags: Sequence[str]
) -> Released:
    """Give every chip of an artifact a release statement, in place of one that it may have; sign; then set the tags.

    Args:
        store: where it is; a layout directory, or a registry.
        digest: of the index. It stays as it is.
        statement: the owner's key and the sequence.
        signer: signs the new index and its manifests; None leaves that to `sign`.
        tags: what is to name the new index.

    Raises:
        PipelineError: ReleaseInvalid, ArtifactMalformed, ConfigMalformed; as the store.
    """
    index = open_index(store, digest)
    entries, chips, configs = [], [], []
    for entry in index.manifests:
        if entry.platform is None or not entry.platform.variant:
            entries.append(entry)
            continue
        config = read_config(store, entry)
        blob = Blob.of(mint_release(config, statement.sequence, statement.key))
        raw = _with_release(store.get_manifest(entry.digest).raw, entry.digest, blob)
        store.put_blob(blob)
        new = store.put_manifest(raw, MANIFEST_TYPE)
        entries.append(entry.model_copy(update={"digest": new, "size": len(raw)}))
        chips.append(config.chip.target)
        configs.append(config)
    raw = to_json(index.model_copy(update={"manifests": entries}))
    top = Descriptor(media_type=INDEX_TYPE, digest=store.put_manifest(raw, INDEX_TYPE), size=len(raw))
    if signer is not None:
        sign_all(store, [*entries, top], signer, identity_of(store, configs))
    for tag in tags:
        store.put_manifest(raw, INDEX_TYPE, tag=tag)
    return Released(top.digest, tuple(sorted(set(chips))))


def _with_release(raw: bytes, digest: str, statement: Blob) -> bytes:
    """The manifest's bytes with this statement as its last layer, under the title that `push` would give it."""
    manifest = artifact.read_manifest(raw, digest).manifest
    images = [layer for layer in manifest.layers if layer.media_type != artifact.RELEASE_TYPE]
    folder = images[0].annotations[artifact.TITLE].rpartition("/")[0] if images else ""
    layer = Descriptor(
        media_type=artifact.RELEASE_TYPE,
        digest=statement.digest,
        size=statement.size,
        annotations={artifact.TITLE: f"{folder}/release.cose"},
    )
    return to_json(manifest.model_copy(update={"layers": [*images, layer]}))
