# SPDX-License-Identifier: Apache-2.0
"""References: where an artifact is. Pure.

Two forms:
    HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]     a registry. The host is always written out: there is no default registry.
    oci:DIRECTORY[:TAG][@DIGEST]              an OCI image layout directory. `layout_or_registry` also takes a plain
                                              path when the caller says that it is a layout.
"""

import re
from dataclasses import dataclass, replace
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import check_digest

LAYOUT_PREFIX: Final = "oci:"
_HOST = re.compile(
    r"^(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)"
    r"(?::[0-9]{1,5})?\Z"
)
_REPOSITORY = re.compile(r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """One artifact's place.

    Attributes:
        host: registry host with optional port; empty for a layout.
        path: repository, or the layout's directory.
        tag: or None.
        digest: or None. When both are given the digest decides.
    """

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def is_layout(self) -> bool:
        return not self.host

    @property
    def repository(self) -> str:
        """`HOST/REPOSITORY` or `oci:DIRECTORY`, without tag and digest."""
        return f"{LAYOUT_PREFIX}{self.path}" if self.is_layout else f"{self.host}/{self.path}"

    @property
    def selector(self) -> str | None:
        """What to ask for: the digest if there is one, else the tag."""
        return self.digest or self.tag

    def at(self, digest: str) -> "Reference":
        """The same place, pinned to `digest` and without a tag."""
        return replace(self, tag=None, digest=check_digest(digest))

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Parse a reference.

    Raises:
        PipelineError: ReferenceMalformed.
    """
    if text.startswith(LAYOUT_PREFIX):
        return layout_reference(text.removeprefix(LAYOUT_PREFIX))
    rest, digest = _split_digest(text)
    host, slash, path = rest.partition("/")
    looks_like_host = "." in host or ":" in host or host == "localhost"
    if not slash or not looks_like_host or not _HOST.match(host):
        raise _bad(text, "it does not begin with a registry host")
    path, tag = _split_tag(path, text)
    if len(path) > 255 or not _REPOSITORY.match(path):
        raise _bad(text, f"{path!r} is not a repository name (lower-case letters, digits, '.', '_', '-', '/')")
    return Reference(host.lower(), path, tag, digest)


def layout_reference(text: str) -> Reference:
    """Parse `DIRECTORY[:TAG][@DIGEST]`, the part behind `oci:`.

    Raises:
        PipelineError: ReferenceMalformed.
    """
    head, _, last = text.rpartition("@")
    path, digest = (head, check_digest(last)) if last.startswith("sha256:") else (text, None)
    path, tag = _split_tag(path, text)
    if not path or "\0" in path:
        raise _bad(text, "the layout's directory is missing")
    return Reference("", path, tag, digest)


def check_tag(tag: str) -> str:
    """Return `tag` if it is a well-formed tag.

    Raises:
        PipelineError: ReferenceMalformed.
    """
    if not _TAG.match(tag):
        raise _bad(tag, "a tag has 1 to 128 letters, digits, '_', '.', '-' and begins with none of '.', '-'")
    return tag


def _split_digest(text: str) -> tuple[str, str | None]:
    rest, at, digest = text.partition("@")
    return rest, check_digest(digest) if at else None


def _split_tag(path: str, whole: str) -> tuple[str, str | None]:
    head, colon, tag = path.rpartition(":")
    if not colon or "/" in tag:
        return path, None
    if not _TAG.match(tag):
        raise _bad(whole, f"{tag!r} is not a tag")
    return head, tag


def _bad(text: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.ReferenceMalformed,
        f"{text[:200]!r} is not a reference: {problem}.",
        "Write HOST[:PORT]/REPOSITORY:TAG (or @sha256:...), or oci:DIRECTORY for an OCI layout.",
    )
