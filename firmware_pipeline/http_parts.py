# SPDX-License-Identifier: Apache-2.0
"""Pieces of HTTP requests and answers that the registry adapter is made of."""

import hashlib
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import requests

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.store import Blob, Progress, digest_mismatch


class Authorization(requests.auth.AuthBase):
    """Exactly this Authorization header, or none: never one from ~/.netrc or the URL."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        if self._value:
            request.headers["Authorization"] = self._value
        return request


class Body:
    """A request body of known length that can be sent again from its start. The last bytes are sent only if all of them
    have the blob's digest and size: what changed on the disk is never stored anywhere.
    """

    def __init__(self, blob: Blob, progress: Progress | None) -> None:
        self._blob, self._progress = blob, progress

    def __len__(self) -> int:
        return self._blob.size

    def __iter__(self) -> Iterator[bytes]:
        done, hashed = 0, hashlib.sha256()
        for chunk in self._blob.chunks():
            hashed.update(chunk)
            if (after := done + len(chunk)) >= self._blob.size:
                self._check(after, hashed.hexdigest())
            yield chunk
            done = after
            if self._progress:
                self._progress(done, self._blob.size)
        self._check(done, hashed.hexdigest())

    def _check(self, size: int, sha256: str) -> None:
        if size != self._blob.size:
            raise PipelineError(
                Reason.SizeMismatch,
                f"The content {self._blob.digest} has {self._blob.size} bytes, but {size} were read of it: it changed.",
                "Nothing was stored. Push again when nothing writes to its file.",
            )
        if (actual := f"sha256:{sha256}") != self._blob.digest:
            raise digest_mismatch(self._blob.digest, actual)


def content_length(response: requests.Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None


def continues_at(response: requests.Response, received: int) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status_code == 206 and content_range.startswith(f"bytes {received}-")


def with_digest(url: str, digest: str) -> str:
    """The upload URL with `digest` added; what the registry put into the query stays."""
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("digest", digest)])
    return urlunsplit(parts._replace(query=query))


def innermost_cause(error: BaseException) -> str:
    """The innermost cause's words, without URLs or headers."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__} {error}"[:200].strip()
