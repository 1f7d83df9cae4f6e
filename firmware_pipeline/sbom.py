# SPDX-License-Identifier: Apache-2.0
"""Which SBOM a file is: the shape is checked, the content is the build's own word.

    SPDX 2.2, 2.3       JSON with spdxVersion, SPDXID, name, documentNamespace, creationInfo and packages
    SPDX 3.0            JSON-LD with its @context and a @graph that holds an SpdxDocument
    CycloneDX 1.4-1.6   JSON with bomFormat, specVersion and components (or the one component it is about)

An empty file is refused by name: a generator that is told to be quiet may write one and end with 0.

Sources: SPDX specification 2.3 and 3.0.1; CycloneDX 1.6 (ECMA-424).
"""

from pathlib import PurePath
from typing import Final

from firmware_pipeline.attachments import Document
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import JsonObject, strict_json
from firmware_pipeline.signing.statements import CYCLONEDX_PREDICATE, SPDX_PREDICATE

SPDX_TYPE: Final = "application/spdx+json"
CYCLONEDX_TYPE: Final = "application/vnd.cyclonedx+json"
MAX_SBOM_BYTES: Final = 5 * 1024 * 1024
_SPDX_2: Final = ("SPDX-2.2", "SPDX-2.3")
_SPDX_2_TEXTS: Final = ("SPDXID", "name", "documentNamespace", "dataLicense")
_SPDX_3: Final = tuple(f"https://spdx.org/rdf/3.0.{minor}/spdx-context.jsonld" for minor in (0, 1))
_CYCLONEDX: Final = ("1.4", "1.5", "1.6")


def read_sbom(raw: bytes, path: PurePath) -> Document:
    """Recognise an SBOM.

    Args:
        raw: content of the file.
        path: names it.

    Raises:
        PipelineError: SbomMalformed.
    """
    if not raw.strip():
        raise _malformed(path, "it is empty; the generator failed, or was told to be quiet")
    if len(raw) > MAX_SBOM_BYTES:
        raise _malformed(path, f"it has {len(raw)} bytes, {MAX_SBOM_BYTES} are allowed")
    try:
        document = strict_json(raw, "the SBOM")
    except PipelineError as error:
        raise _malformed(path, f"only JSON forms are read ({error.message})") from error
    if "spdxVersion" in document:
        problem, media_type, predicate = _spdx_2(document), SPDX_TYPE, SPDX_PREDICATE
    elif "@graph" in document or "@context" in document:
        problem, media_type, predicate = _spdx_3(document), SPDX_TYPE, SPDX_PREDICATE
    elif "bomFormat" in document:
        problem, media_type, predicate = _cyclonedx(document), CYCLONEDX_TYPE, CYCLONEDX_PREDICATE
    else:
        raise _malformed(path, "it is neither SPDX nor CycloneDX")
    if problem:
        raise _malformed(path, problem)
    return Document(media_type, path.name, raw, predicate, document)


def _spdx_2(document: JsonObject) -> str | None:
    if document["spdxVersion"] not in _SPDX_2:
        return f"its version is {document['spdxVersion']!r:.40}; {' and '.join(_SPDX_2)} are read"
    for key in _SPDX_2_TEXTS:
        if not isinstance(document.get(key), str) or not document[key]:
            return f"SPDX without {key}"
    if document["SPDXID"] != "SPDXRef-DOCUMENT":
        return "its SPDXID is not SPDXRef-DOCUMENT"
    creation = document.get("creationInfo")
    if not isinstance(creation, dict) or not creation.get("created") or not creation.get("creators"):
        return "SPDX without creationInfo.created and creationInfo.creators"
    return _filled(document, "packages")


def _spdx_3(document: JsonObject) -> str | None:
    context = document.get("@context")
    if context not in _SPDX_3 and not (isinstance(context, list) and any(item in _SPDX_3 for item in context)):
        return "its @context is not that of SPDX 3.0"
    if problem := _filled(document, "@graph"):
        return problem
    types = {element.get("type") for element in document["@graph"] if isinstance(element.get("type"), str)}
    return None if "SpdxDocument" in types else "its @graph holds no SpdxDocument"


def _cyclonedx(document: JsonObject) -> str | None:
    if document["bomFormat"] != "CycloneDX":
        return f"its bomFormat is {document['bomFormat']!r:.40}"
    if document.get("specVersion") not in _CYCLONEDX:
        return f"its specVersion is {document.get('specVersion')!r:.40}; {', '.join(_CYCLONEDX)} are read"
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("component"), dict) and "components" not in document:
        return None
    return _filled(document, "components")


def _filled(document: JsonObject, key: str) -> str | None:
    """A list of at least one object."""
    value = document.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return f"its {key} is not a list of objects, or is empty"
    return None


def _malformed(path: PurePath, problem: str) -> PipelineError:
    return PipelineError(
        Reason.SbomMalformed,
        f"{path} cannot be attached as SBOM: {problem}.",
        "Let the build write SPDX 2.2, 2.3 or 3.0, or CycloneDX 1.4 to 1.6, as JSON (esp-idf-sbom create, west spdx).",
    )
