# SPDX-License-Identifier: Apache-2.0
"""What registries do wrong: one behaviour each, named for it, as a script for `HostileRegistry`."""

import gzip
from collections.abc import Callable
from typing import Any, Final

from tests.unit.firmware.hostile_registry import digest_of

Script = Callable[[Any], bool]
"""Gets the request's handler; answers it and returns True, or returns False."""

DATA: Final = bytes(range(256)) * 1200
OTHER: Final = bytes(reversed(DATA))
BLOBS, MANIFESTS, UPLOADS, TOKEN = "/blobs/sha256:", "/manifests/", "/uploads/", "/token"
HALF: Final = len(DATA) // 2


def answers(
    part: str, status: int = 200, body: bytes = b"", method: str | None = None, **headers: str | None
) -> Script:
    """Every request whose path holds `part` gets this. Header names with `_` for `-`; None leaves a default out."""

    def script(handler: Any) -> bool:
        if part not in handler.path or handler.command != (method or "GET"):
            return False
        named = {
            name.replace("_", "-"): value.replace("{digest}", digest_of(DATA))
            for name, value in headers.items()
            if value
        }
        handler._send(status, body, {"Content-Type": "application/octet-stream"} | named)
        handler.close_connection = "Content-Length" in named
        return True

    return script


def says(part: str, raw: bytes) -> Script:
    """These very bytes are the answer, status line and all; then the connection ends."""

    def script(handler: Any) -> bool:
        if part not in handler.path:
            return False
        handler.wfile.write(raw)
        handler.close_connection = True
        return True

    return script


def then(*scripts: Script) -> Script:
    """One after the other, for one answer each; the last for ever."""
    left = list(scripts)

    def script(handler: Any) -> bool:
        done = left[0](handler)
        if done and len(left) > 1:
            left.pop(0)
        return done

    return script


def silent(part: str) -> Script:
    def script(handler: Any) -> bool:
        if part not in handler.path:
            return False
        handler.registry.released.wait()
        handler.close_connection = True
        return True

    return script


def endless(part: str, status: int = 200, **headers: str) -> Script:
    def script(handler: Any) -> bool:
        if part not in handler.path:
            return False
        handler.send_response(status)
        for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        try:
            while not handler.registry.released.is_set():
                handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        except OSError:
            handler.close_connection = True
        return True

    return script


def part_of(data: bytes, *, start: int | None = None, status: int = 206, content_range: str | None = None) -> Script:
    """The blob from byte `start` on (None: the wanted one), and what is said about it."""

    def script(handler: Any) -> bool:
        if BLOBS not in handler.path or handler.command != "GET":
            return False
        first = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        begin = first if start is None else start
        said = (content_range or "bytes {first}-{last}/{size}").format(first=first, last=len(DATA) - 1, size=len(DATA))
        handler._send(status, data[begin:], {"Content-Range": said})
        return True

    return script


def cut(at: int = HALF) -> Script:
    """The connection ends when `at` bytes of the blob were sent, however often it is asked."""

    def script(handler: Any) -> bool:
        if BLOBS not in handler.path or handler.command != "GET":
            return False
        handler._send(200, DATA[:at], {"Content-Length": str(len(DATA))})
        handler.close_connection = True
        return True

    return script


def challenge(value: str | None) -> Script:
    """401 for ever, with this WWW-Authenticate."""

    def script(handler: Any) -> bool:
        if handler.path.startswith(TOKEN):
            return False
        said = value.replace("{url}", handler.registry.url) if value else None
        handler._error(401, "UNAUTHORIZED", {"WWW-Authenticate": said} if said else {})
        return True

    return script


def both(*scripts: Script) -> Script:
    """The first that answers."""
    return lambda handler: any(script(handler) for script in scripts)


BEARER: Final = challenge('Bearer realm="{url}/token",service="test"')
_OK: Final = b"HTTP/1.1 200 OK\r\n"

DOWNLOADS: Final[dict[str, tuple[Script, str]]] = {
    "another blob of the same size": (answers(BLOBS, body=OTHER), "DigestMismatch"),
    "one bit flipped": (answers(BLOBS, body=DATA[:-1] + b"\x00"), "DigestMismatch"),
    "one byte short": (answers(BLOBS, body=DATA[:-1]), "SizeMismatch"),
    "one byte long": (answers(BLOBS, body=DATA + b"!"), "SizeMismatch"),
    "endless": (endless(BLOBS), "SizeMismatch"),
    "nothing at all with 204": (says(BLOBS, b"HTTP/1.1 204 No Content\r\n\r\n"), "SizeMismatch"),
    "empty": (answers(BLOBS), "SizeMismatch"),
    "silent after the request": (silent(BLOBS), "RegistryTimeout"),
    "breaks off every time": (cut(), "RegistryUnreachable"),
    "breaks off before the first byte": (cut(0), "RegistryUnreachable"),
    "announces more than it sends": (
        answers(BLOBS, body=DATA, Content_Length=str(len(DATA) + 1)), "SizeMismatch",
    ),
    "announces a petabyte": (answers(BLOBS, body=DATA, Content_Length=str(10**15)), "SizeMismatch"),
    "compressed although asked not to": (
        answers(BLOBS, body=gzip.compress(DATA), Content_Encoding="gzip"), "SizeMismatch",
    ),
    "a bomb that calls itself compressed": (
        answers(BLOBS, body=gzip.compress(bytes(50_000_000), 1)[: len(DATA)], Content_Encoding="gzip"), "SizeMismatch",
    ),
    "resumes with another blob": (then(cut(), part_of(OTHER)), "DigestMismatch"),
    "resumes at another place and says so": (
        then(cut(), part_of(DATA, start=9, content_range="bytes 9-{last}/{size}")), "SizeMismatch",
    ),
    "resumes at another place and denies it": (then(cut(), part_of(DATA, start=HALF + 1)), "SizeMismatch"),
    "sends a part nobody asked for": (part_of(DATA, start=HALF), "SizeMismatch"),
    "has never heard of the range": (
        then(cut(), answers(BLOBS, 416, Content_Range=f"bytes */{len(DATA)}")), "RegistryUnreachable",
    ),
    "redirects to itself": (answers(BLOBS, 307, Location="./{digest}"), "RedirectRefused"),
    "redirects to nowhere": (answers(BLOBS, 307), "RedirectRefused"),
    "redirects to a file": (answers(BLOBS, 307, Location="file:///etc/passwd"), "RegistryProtocol"),
    "redirects to an address that is none": (answers(BLOBS, 307, Location="http://[::1"), "RegistryProtocol"),
    "thousands of headers": (
        says(BLOBS, _OK + b"X-Bomb: boom\r\n" * 5000 + b"\r\n"), "RegistryUnreachable",
    ),
    "one header without end": (says(BLOBS, _OK + b"X-Bomb: " + b"a" * 200_000 + b"\r\n\r\n"), "RegistryUnreachable"),
    "no HTTP": (says(BLOBS, b"SSH-2.0-OpenSSH_9.2\r\n"), "RegistryUnreachable"),
    "hangs up": (says(BLOBS, b""), "RegistryUnreachable"),
    "chunks that are none": (
        says(BLOBS, _OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nboom\r\n"), "RegistryUnreachable",
    ),
    "does not know it": (answers(BLOBS, 404), "ReferenceNotFound"),
    "forbids it": (answers(BLOBS, 403), "RegistryForbidden"),
    "is withheld for legal reasons": (answers(BLOBS, 451), "RegistryProtocol"),
    "too busy for an hour": (answers(BLOBS, 429, Retry_After="3600"), "RegistryBusy"),
    "busy until the year 9999": (
        answers(BLOBS, 503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"), "RegistryBusy",
    ),
    "busy for a time that is none": (answers(BLOBS, 429, Retry_After="soon"), "RegistryBusy"),
    "broken inside": (answers(BLOBS, 500, body=b"<html>"), "RegistryUnreachable"),
    "an error that never ends": (endless(BLOBS, 400), "RegistryProtocol"),
}  # fmt: skip

MANIFEST_ANSWERS: Final[dict[str, tuple[Script, str]]] = {
    "a login page": (answers(MANIFESTS, body=b"<html>", Content_Type="text/html"), "MediaTypeUnsupported"),
    "of no type": (says(MANIFESTS, _OK + b"Content-Length: 2\r\n\r\n{}"), "MediaTypeUnsupported"),
    "a Docker schema 1": (
        answers(MANIFESTS, body=b"{}", Content_Type="application/vnd.docker.distribution.manifest.v1+json"),
        "MediaTypeUnsupported",
    ),
    "under a digest that is another's": (
        answers(
            MANIFESTS, body=b"{}", Content_Type="application/vnd.oci.image.index.v1+json", Docker_Content_Digest="{digest}"
        ),
        "DigestMismatch",
    ),
    "without end": (
        endless(MANIFESTS, Content_Type="application/vnd.oci.image.index.v1+json"), "TooLarge",
    ),
    "moved to another name": (answers(MANIFESTS, 301, Location="/v2/team/porch/manifests/1"), "RedirectRefused"),
    "not there": (answers(MANIFESTS, 404), "ReferenceNotFound"),
}  # fmt: skip

LOGINS: Final[dict[str, tuple[Script, str]]] = {
    "401 without a word": (challenge(None), "RegistryUnauthorized"),
    "a login we do not speak": (challenge("Negotiate"), "RegistryUnauthorized"),
    "Basic for ever": (challenge('Basic realm="here"'), "RegistryUnauthorized"),
    "tokens that are never good": (BEARER, "RegistryUnauthorized"),
    "a realm without address": (challenge('Bearer realm="over there"'), "RegistryProtocol"),
    "no realm": (challenge('Bearer service="test"'), "RegistryProtocol"),
    "a realm that is a file": (challenge('Bearer realm="file:///etc/passwd"'), "RegistryProtocol"),
    "a realm on another host": (challenge('Bearer realm="https://tokens.invalid/"'), "ForeignRealm"),
    "a token service that redirects": (
        both(BEARER, answers(TOKEN, 307, Location="/elsewhere")), "RegistryUnauthorized",
    ),
    "a token service that shows a page": (both(BEARER, answers(TOKEN, body=b"<html>")), "RegistryProtocol"),
    "a list instead of a token": (both(BEARER, answers(TOKEN, body=b"[1]")), "RegistryProtocol"),
    "a token with a line break": (both(BEARER, answers(TOKEN, body=b'{"token":"a\\r\\nb"}')), "RegistryProtocol"),
    "a token without end": (both(BEARER, endless(TOKEN)), "TooLarge"),
    "a token service that is silent": (both(BEARER, silent(TOKEN)), "RegistryTimeout"),
    "a token service that is down": (both(BEARER, answers(TOKEN, 502)), "RegistryUnreachable"),
    "a token service that is busy": (both(BEARER, answers(TOKEN, 429, Retry_After="999")), "RegistryBusy"),
}  # fmt: skip

PUSHES: Final[dict[str, tuple[Script, str]]] = {
    "takes no uploads": (answers(UPLOADS, 405, method="POST"), "RegistryProtocol"),
    "does not say where to": (answers(UPLOADS, 202, method="POST"), "RegistryProtocol"),
    "wants it on another host": (
        answers(UPLOADS, 202, method="POST", Location="https://storage.invalid/upload"), "ForeignUpload",
    ),
    "wants it in a file": (answers(UPLOADS, 202, method="POST", Location="file:///tmp/x"), "RegistryProtocol"),
    "redirects the upload": (answers(UPLOADS, 307, method="PUT", Location="/elsewhere"), "RedirectRefused"),
    "forgets the upload": (answers(UPLOADS, 404, method="PUT"), "RegistryUnreachable"),
    "finds it too large": (answers(UPLOADS, 413, method="PUT"), "TooLarge"),
    "found another digest": (answers(UPLOADS, 400, method="PUT"), "RegistryProtocol"),
    "stored something else": (
        answers(UPLOADS, 201, method="PUT", Docker_Content_Digest="sha256:" + "0" * 64), "DigestMismatch",
    ),
    "does not take the manifest": (answers(MANIFESTS, 400, method="PUT"), "RegistryProtocol"),
    "protects the tag": (answers("/manifests/2.0", 409, method="PUT"), "RegistryProtocol"),
    "takes nothing that is typed so": (answers(MANIFESTS, 415, method="PUT"), "RegistryProtocol"),
    "is full": (answers(UPLOADS, 507, method="PUT"), "RegistryProtocol"),
    "is silent after the upload": (silent("digest=sha256"), "RegistryTimeout"),
    "lets us read only": (answers(UPLOADS, 403, method="POST"), "RegistryForbidden"),
}  # fmt: skip
