# SPDX-License-Identifier: Apache-2.0
"""Release statements: the owner's offline signature over what may ever run on a kind of chip. Pure.

Rules (tests name them):

1. A release is a statement of content type ``application/vnd.flashjob.release+cbor``, at most 768 bytes.
2. It names application, version, chip id, accepted chip revisions [min, max] (major * 100 + minor; 65535 = no limit),
   secure_version, sequence, one or more measurements and the image size in bytes. Nothing else.
3. min does not exceed max; no two measurements have the same algorithm.

It is minted by `firmware_pipeline.signing.release` when an artifact is pushed, travels as a layer and inside the
install grant, and is checked by the gateway at permit and by the device at install.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Self, TypeAlias

from pydantic import Field, model_validator

from attestation import statement
from attestation.errors import Code
from attestation.keys import PublicKey
from attestation.statement import Digest, DigestField, Statement, Strict, Uint, Uint32

CONTENT_TYPE: Final = "application/vnd.flashjob.release+cbor"
MAX_RELEASE_BYTES: Final = 768
ANY_REVISION: Final = 65535

_Revision = Annotated[int, Field(ge=0, le=ANY_REVISION)]
LABELS: Final = {
    1: "name",
    2: "version",
    3: "chip_id",
    4: "revisions",
    5: "secure_version",
    6: "sequence",
    7: "measurements",
    8: "image_size",
}


class Release(Strict):
    """What the owner released."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    version: Annotated[str, Field(min_length=1, max_length=64)]
    chip_id: Annotated[int, Field(ge=0, le=0xFFFF)]
    revisions: Annotated[list[_Revision], Field(min_length=2, max_length=2)]
    secure_version: Uint32
    sequence: Uint
    measurements: Annotated[list[DigestField], Field(min_length=1, max_length=4)]
    image_size: Annotated[int, Field(gt=0, le=2**32 - 1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.revisions[0] > self.revisions[1]:
            raise ValueError(f"revisions {self.revisions} are no range")
        if len({m.alg for m in self.measurements}) != len(self.measurements):
            raise ValueError("two measurements have the same algorithm")
        return self

    def accepts_revision(self, revision: int) -> bool:
        """Whether a chip of this revision (major * 100 + minor) may run it."""
        return self.revisions[0] <= revision <= self.revisions[1]

    def contains(self, measurement: Digest) -> bool:
        """Whether exactly this measurement was released."""
        return measurement in self.measurements


SignedRelease: TypeAlias = Statement[Release]


def parse(data: bytes) -> SignedRelease:
    """Check the shape of a release statement (rules 1 to 3), not yet its signature.

    Raises:
        Reject: ``size``, ``cbor.*``, ``cose.*`` or ``release.structure``.
    """
    message, kid, labels = statement.parse(data, CONTENT_TYPE, limit=MAX_RELEASE_BYTES, code=Code.RELEASE_STRUCTURE)
    return Statement(statement.build(Release, LABELS, labels, Code.RELEASE_STRUCTURE), kid, message)


def check(signed: SignedRelease, keys: Mapping[bytes, PublicKey]) -> Release:
    """Check key and signature of a parsed release statement and return its content.

    Raises:
        Reject: ``statement.key``, ``cose.keyalg`` or ``sig.*``.
    """
    return statement.check_signature(signed, keys)


def verify(data: bytes, keys: Mapping[bytes, PublicKey]) -> Release:
    """`parse` and `check` in one: what the gateway does at permit.

    Raises:
        Reject: see there.
    """
    return check(parse(data), keys)
