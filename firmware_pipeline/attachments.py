# SPDX-License-Identifier: Apache-2.0
"""Attach documents to what is stored: as referrers, which every registry lists, and signed, so that they count.

How each kind is attached:
    SBOM        the file itself, for generic tools, and if there is a signer the same document in a signed in-toto
                statement; only the statement counts for a policy.
    provenance  a signed in-toto statement; without a signer the bare statement, which counts for nothing.
    other file  the file itself; a signer signs the manifest that holds it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import (
    EMPTY_JSON,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    JsonObject,
    Manifest,
    to_json,
)
from firmware_pipeline.signing.formats import BUNDLE_TYPE, PAYLOAD_TYPE
from firmware_pipeline.signing.keys import Signer
from firmware_pipeline.signing.sign import attest, sign_all
from firmware_pipeline.signing.statements import SLSA_PREDICATE, STATEMENT_V01, write_statement
from firmware_pipeline.store import ArtifactStore, Blob

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
TITLE: Final = "org.opencontainers.image.title"
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True, slots=True)
class Document:
    """Something to be attached.

    Attributes:
        media_type: of the file, and the type of the referrer.
        title: file name.
        data: content.
        predicate_type: kind of statement that it becomes when signed; None for other files.
        predicate: what that statement says.
    """

    media_type: str
    title: str
    data: bytes = field(repr=False)
    predicate_type: str | None = None
    predicate: JsonObject = field(default_factory=dict, repr=False)


def other_file(data: bytes, title: str, media_type: str) -> Document:
    """A file of any type.

    Raises:
        PipelineError: ReferenceMalformed for what is no media type; TooLarge.
    """
    if not _MEDIA_TYPE.fullmatch(media_type) or media_type == BUNDLE_TYPE:
        raise PipelineError(
            Reason.ReferenceMalformed,
            f"{media_type!r:.100} cannot be the type of an attached file.",
            "Name a media type, such as application/vnd.example.debug.v1.",
        )
    if len(data) > MAX_FILE_BYTES:
        raise PipelineError(
            Reason.TooLarge, f"{title} has {len(data)} bytes, {MAX_FILE_BYTES} are allowed.", "Attach a smaller file."
        )
    return Document(media_type, title, data)


def attach(
    store: ArtifactStore, subjects: Sequence[Descriptor], document: Document, signer: Signer | None, identity: str
) -> list[str]:
    """Attach one document to each subject. Attaching the same again changes nothing.

    Args:
        store: where the subjects are.
        subjects: manifests or indexes.
        document: what to attach.
        signer: signs it; None attaches it unsigned, and no policy counts it.
        identity: the repository's name, recorded in signatures.

    Returns:
        Digests of the attached manifests, statements last.

    Raises:
        PipelineError: SignerFailed, RegistryBusy, TooLarge; as the store.
    """
    made: list[Descriptor] = []
    if document.predicate_type != SLSA_PREDICATE or signer is None:
        made = [_refer(store, subject, document) for subject in subjects]
    digests = [entry.digest for entry in made]
    if signer is not None and document.predicate_type is not None:
        digests += attest(store, subjects, signer, identity, document.predicate_type, document.predicate)
    elif signer is not None:
        sign_all(store, made, signer, identity)
    return digests


def _refer(store: ArtifactStore, subject: Descriptor, document: Document) -> Descriptor:
    data, media_type = document.data, document.media_type
    if document.predicate_type == SLSA_PREDICATE:
        media_type = PAYLOAD_TYPE
        data = write_statement([subject.digest], SLSA_PREDICATE, document.predicate, version=STATEMENT_V01)
    layer, empty = Blob.of(data), Blob.of(EMPTY_JSON)
    store.put_blob(empty)
    store.put_blob(layer)
    raw = to_json(
        Manifest(
            schema_version=2,
            artifact_type=media_type,
            config=Descriptor(media_type=EMPTY_TYPE, digest=empty.digest, size=empty.size),
            layers=[
                Descriptor(
                    media_type=media_type, digest=layer.digest, size=layer.size, annotations={TITLE: document.title}
                )
            ],
            subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        )
    )
    return Descriptor(media_type=MANIFEST_TYPE, digest=store.put_manifest(raw, MANIFEST_TYPE), size=len(raw))
