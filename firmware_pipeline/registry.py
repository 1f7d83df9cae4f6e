# SPDX-License-Identifier: Apache-2.0
"""One repository of an OCI registry: the hardened oras adapter, and the only module that imports oras.

oras-py names things: its `Container` makes the URLs of the distribution API. Its `Registry`, which trusts whatever the
other side sends, is not used at all: requests, checks, retries and logins are here. Where requests and credentials may
go is decided by `http_rules`, logins by `token_auth`.

Sources: OCI distribution specification 1.1.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.cookiejar import DefaultCookiePolicy
from secrets import SystemRandom
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import oras.container
import requests
import requests.adapters
import urllib3.exceptions

from firmware_pipeline import http_rules, referrers
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.http_parts import (
    Authorization,
    Body,
    content_length,
    continues_at,
    innermost_cause,
    with_digest,
)
from firmware_pipeline.http_rules import ClientOptions, origin
from firmware_pipeline.oci import (
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    check_digest,
    sha256_digest,
)
from firmware_pipeline.reference import Reference, check_tag
from firmware_pipeline.store import (
    CHUNK_BYTES,
    Blob,
    BlobReceiver,
    Progress,
    RawManifest,
    Receiving,
    digest_mismatch,
    too_large,
)
from firmware_pipeline.token_auth import Authorizer

ACCEPT: Final = ", ".join(MANIFEST_TYPES)
MAX_ERROR_BYTES: Final = 8192
MAX_TOKEN_BYTES: Final = 65536
KEPT_BYTES: Final = 65536
KEPT_MANIFESTS: Final = 64
_BUSY: Final = (429, 500, 502, 503, 504)
_NO_REFERRERS_API: Final = (400, 404, 405, 501)
_NEXT_STEPS: Final = {
    405: "This registry takes no such request; a mirror or a cache is read-only: push to its origin.",
    409: "The tag may be protected from changes there: push under another tag.",
    412: "The tag may be protected from changes there: push under another tag.",
}
T = TypeVar("T")


class Transient(PipelineError):
    """A failure that may go away by itself; `retry_after` (seconds) if the registry named a time."""

    def __init__(self, reason: Reason, message: str, next_step: str, retry_after: float | None = None) -> None:
        super().__init__(reason, message, next_step)
        self.retry_after = retry_after


class RegistryStore(Receiving):
    """An `ArtifactStore` in a registry. Synchronous; safe to use from several threads.

    Args:
        reference: names host and repository; tag and digest are not used.
        options: credentials, trust, limits.
        push: ask for push rights with the first token.
        sleep: waits for some seconds between tries.
    """

    def __init__(
        self,
        reference: Reference,
        options: ClientOptions,
        *,
        push: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._verify = str(options.ca_file) if options.ca_file else True
        self.session = requests.Session()
        pool = requests.adapters.HTTPAdapter(pool_maxsize=16)
        self.session.mount("https://", pool)
        self.session.mount("http://", pool)
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # a cookie knows no port: none is kept
        self.session.headers.update({"User-Agent": "flashjob", "Accept-Encoding": "identity"})
        self._options, self._limits, self._sleep = options, options.limits, sleep
        self._container = oras.container.Container(f"{reference.host}/{reference.path}", registry=reference.host)
        namespace, _, self._container.repository = reference.path.rpartition("/")
        self._container.registry, self._container.namespace = reference.host, namespace or None
        self._name, self._path = reference.repository, reference.path
        self._scheme = "http" if options.plain_http else "https"
        self._base = f"{self._scheme}://{reference.host}"
        self._actions = "pull,push" if push else "pull"
        self._authorizer = Authorizer(self._base, reference.path, options, self._fetch_token)
        self._kept: dict[str, RawManifest] = {}
        self._stored: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    # ---- reading ---------------------------------------------------------------------------------------

    def get_manifest(self, selector: str, *, max_bytes: int = MAX_MANIFEST_BYTES) -> RawManifest:
        """See ArtifactStore. The bytes are those that were sent, never re-encoded. What a digest names never changes,
        so small ones are kept."""
        if (kept := self._kept.get(selector)) is not None and len(kept.raw) <= max_bytes:
            return kept
        by_digest = selector.startswith("sha256:")
        (check_digest if by_digest else check_tag)(selector)
        url = self._url(self._container.manifest_url(selector))

        def fetch() -> RawManifest:
            with self._once("GET", url, headers={"Accept": ACCEPT}) as response:
                self._expect(response, f"manifest {selector}")
                media_type = response.headers.get("Content-Type", "").split(";")[0].strip()
                if media_type not in MANIFEST_TYPES:
                    raise PipelineError(
                        Reason.MediaTypeUnsupported,
                        f"{self._name} answered {selector} with the type {media_type[:100]!r}, not a manifest.",
                        "Check that the host is an OCI registry and that no login page stands in between.",
                    )
                raw = self._read_all(response, max_bytes)
                announced = response.headers.get("Docker-Content-Digest", "")
            actual = sha256_digest(raw)
            expected = selector if by_digest else announced
            if expected.startswith("sha256:") and actual != expected:
                raise digest_mismatch(expected, actual)
            return RawManifest(raw, media_type, actual)

        found = self._patiently(fetch)
        if len(found.raw) <= KEPT_BYTES and len(self._kept) < KEPT_MANIFESTS:
            self._kept[found.digest] = found
        return found

    def resolve(self, tag: str) -> str:
        return self.get_manifest(tag).digest

    def has_blob(self, digest: str, size: int) -> bool:
        def ask() -> bool:
            with self._once("HEAD", self._url(self._container.get_blob_url(check_digest(digest)))) as response:
                if response.status_code == 404:
                    return False
                self._expect(response, f"blob {digest}")
                return content_length(response) in (None, size)

        return self._patiently(ask)

    def blob_size(self, digest: str) -> int:
        """Bytes of a blob, as the registry says.

        Raises:
            PipelineError: ReferenceNotFound; RegistryProtocol when it does not say; as every request.
        """

        def ask() -> int:
            with self._once("HEAD", self._url(self._container.get_blob_url(check_digest(digest)))) as response:
                self._expect(response, f"blob {digest}")
                if (size := content_length(response)) is None:
                    raise PipelineError(
                        Reason.RegistryProtocol,
                        f"{self._name} does not say how large the blob {digest} is.",
                        "Check that the host is an OCI registry and what stands in between.",
                    )
                return size

        return self._patiently(ask)

    def receive_blob(self, descriptor: Descriptor, receiver: BlobReceiver) -> None:
        """See ArtifactStore. Streams; after an interruption go on where it broke off (Range)."""
        url = self._url(self._container.get_blob_url(descriptor.digest))

        def fetch() -> None:
            headers = {"Range": f"bytes={receiver.received}-"} if receiver.received else {}
            with self._once("GET", url, headers=headers) as response:
                if receiver.received and not continues_at(response, receiver.received):
                    receiver.restart()
                    if response.status_code == 416:
                        raise self._broken("it lost its place in the download")
                self._expect(response, f"blob {descriptor.digest}")
                announced = content_length(response)
                if announced is not None and (end := receiver.received + announced) != descriptor.size:
                    raise receiver.wrong_size("longer" if end > descriptor.size else "shorter")
                for chunk in self._body(response):
                    receiver.write(chunk)
            receiver.finish()

        self._patiently(fetch)

    # ---- writing ---------------------------------------------------------------------------------------

    def put_blob(self, blob: Blob, progress: Progress | None = None) -> None:
        if blob.digest in self._stored or self.has_blob(blob.digest, blob.size):
            self._stored.add(blob.digest)
            if progress:
                progress(blob.size, blob.size)
            return

        def upload() -> None:
            with self._once("POST", self._url(self._container.upload_blob_url()), body=b"") as response:
                self._expect(response, "upload")
                location = response.headers.get("Location", "")
            target = with_digest(http_rules.check_upload(location, self._base, self._options), blob.digest)
            body = Body(blob, progress) if blob.size else b""
            headers = {"Content-Type": "application/octet-stream"}
            with self._once("PUT", target, headers=headers, body=body) as response:
                if response.status_code == 404:
                    raise self._broken("it forgot the upload while it ran")
                self._expect(response, f"upload of {blob.digest}")
                self._expect_digest(response, blob.digest)

        self._patiently(upload)
        self._stored.add(blob.digest)

    def mount_blob(self, descriptor: Descriptor, source: object) -> bool:
        """See `copying.Mounting`. Asked only of the registry that holds both repositories, with what we may do here."""
        if not isinstance(source, RegistryStore) or source._base != self._base or source._name == self._name:
            return False
        query = urlencode({"mount": descriptor.digest, "from": source._path})

        def ask() -> bool:
            with self._once("POST", f"{self._url(self._container.upload_blob_url())}?{query}", body=b"") as response:
                self._discard(response)
                if response.status_code == 201:
                    self._expect_digest(response, descriptor.digest)
            return response.status_code == 201

        try:
            return self._patiently(ask)
        except PipelineError as error:
            if error.reason in (Reason.RegistryForbidden, Reason.RegistryUnauthorized):
                return False  # not from there: then it is sent, and says itself what is wrong
            raise

    def put_manifest(self, raw: bytes, media_type: str, *, tag: str | None = None) -> str:
        digest = sha256_digest(raw)
        url = self._url(self._container.manifest_url(check_tag(tag) if tag else digest))

        def put() -> bool:
            with self._once("PUT", url, headers={"Content-Type": media_type}, body=raw) as response:
                self._expect(response, f"manifest {tag or digest}")
                self._expect_digest(response, digest)
                return "OCI-Subject" in response.headers

        listed = self._patiently(put)
        if not listed and (entry := referrers.describe(raw, media_type)) is not None:
            referrers.add_to_fallback_tag(self, *entry)
        return digest

    # ---- referrers -------------------------------------------------------------------------------------

    def referrers(self, digest: str) -> list[Descriptor]:
        """See ArtifactStore: the registry's referrers API, or where it knows nothing the fallback tag."""
        url = self._url(f"{self._container.registry}/v2/{self._container.api_prefix}/referrers/{check_digest(digest)}")
        found: list[Descriptor] = []
        for _ in range(referrers.MAX_PAGES):
            page = self._patiently(functools.partial(self._referrers_page, url, digest))
            if page is None:
                break
            found = referrers.at_most([*found, *referrers.parse_list(page[0], digest)], digest)
            if (following := referrers.next_page(page[1])) is None:
                break
            url = self._next_url(url, following)
        else:
            raise referrers.too_many(f"More than {referrers.MAX_PAGES} pages of manifests", digest)
        return found or referrers.read_fallback_tag(self, digest)

    def _referrers_page(self, url: str, digest: str) -> tuple[bytes, str] | None:
        """(list, Link header), or None where there is no such API."""
        with self._once("GET", url, headers={"Accept": MANIFEST_TYPES[0]}) as response:
            if response.status_code in _NO_REFERRERS_API:
                self._discard(response)
                return None
            self._expect(response, f"referrers of {digest}")
            return self._read_all(response, MAX_MANIFEST_BYTES), response.headers.get("Link", "")

    def _next_url(self, url: str, following: str) -> str:
        """Where the next page is: on this registry, or nowhere."""
        target = urljoin(url, following)
        if origin(target) != origin(self._base):
            raise PipelineError(
                Reason.RedirectRefused,
                f"{self._name} says that its list of referrers goes on at {target[:200]}, which is another host.",
                "Check the registry's external URL; credentials are never sent elsewhere.",
            )
        return target

    # ---- one request -----------------------------------------------------------------------------------

    def _url(self, address: str) -> str:
        return f"{self._scheme}://{address}"

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Run, and run again after a Transient failure, within the limits."""
        waited, attempt = 0.0, 1
        while True:
            try:
                return operation()
            except Transient as error:
                pause = error.retry_after
                if pause is None:
                    pause = self._limits.first_pause_seconds * 2 ** (attempt - 1) * SystemRandom().uniform(0.5, 1)
                if attempt >= self._limits.attempts or waited + pause > self._limits.wait_seconds:
                    raise
            self._sleep(pause)
            waited += pause
            attempt += 1

    def _once(
        self, method: str, url: str, *, headers: dict[str, str] | None = None, body: Any = None
    ) -> requests.Response:
        """One request, logged in where the registry asks for it. 401, 403, 429 and 5xx are raised."""
        ours = origin(url) == origin(self._base)
        used = self._authorizer.header(self._actions) if ours else None
        response = self._follow(method, url, headers, body, used)
        if response.status_code == 401 and ours and origin(response.url) == origin(self._base):
            challenge = response.headers.get("WWW-Authenticate", "")
            self._discard(response)
            used = self._authorizer.answer(challenge, self._actions, used)
            response = self._follow(method, url, headers, body, used)
        if response.status_code in (401, 403, *_BUSY):
            with response:
                raise self._failure(response, f"{method} {urlsplit(url).path}")
        return response

    def _follow(
        self, method: str, url: str, headers: dict[str, str] | None, body: Any, authorization: str | None
    ) -> requests.Response:
        for hops in range(http_rules.MAX_REDIRECTS + 2):
            ours = origin(url) == origin(self._base)
            response = self._send(method, url, headers, body, authorization if ours else None)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = http_rules.check_redirect(method, url, location, hops, self._options)
        raise AssertionError("check_redirect ends every chain")

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None,
        body: Any,
        authorization: str | None,
        params: dict[str, str] | None = None,
    ) -> requests.Response:
        host = origin(url)[1]
        try:
            return self.session.request(
                method,
                url,
                params=params,
                data=body,
                headers=headers,
                auth=Authorization(authorization),
                stream=True,
                allow_redirects=False,
                verify=self._verify,
                timeout=(self._limits.connect_seconds, self._limits.read_seconds),
            )
        except requests.exceptions.SSLError as error:
            raise PipelineError(
                Reason.RegistryUnreachable,
                f"No trustworthy TLS connection to {host}: {innermost_cause(error)}.",
                "Name the certificate authority (--ca-file); a registry without TLS needs --plain-http.",
            ) from error
        except requests.exceptions.Timeout as error:
            raise self._slow() from error
        except (requests.exceptions.ConnectionError, urllib3.exceptions.HTTPError) as error:
            raise self._broken(innermost_cause(error)) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            raise PipelineError(
                Reason.RegistryProtocol,
                f"No valid request to {host} can be made: {innermost_cause(error)}.",
                "Check the reference and the registry's external URL.",
            ) from error

    def _fetch_token(self, method: str, realm: str, values: dict[str, str], authorization: str | None) -> bytes:
        asked: dict[str, Any] = {"params": values} if method == "GET" else {}
        body = None if method == "GET" else urlencode(values)
        headers = {} if method == "GET" else {"Content-Type": "application/x-www-form-urlencoded"}
        with self._send(method, realm, headers, body, authorization, **asked) as response:
            if response.status_code in _BUSY:
                raise self._failure(response, "token request")
            if response.status_code != 200:
                detail = self._detail(response)
                raise self._authorizer.refused(
                    f"the token service {origin(realm)[1]} answered {response.status_code}{detail}"
                )
            return self._read_all(response, MAX_TOKEN_BYTES)

    # ---- bodies and answers ----------------------------------------------------------------------------

    def _body(self, response: requests.Response) -> Iterator[bytes]:
        """The body in pieces as they come; gives up on a body that only trickles."""
        started, received = time.monotonic(), 0
        with self._reading():
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
                received += len(chunk)
                elapsed = time.monotonic() - started
                if elapsed > self._limits.read_seconds and received < elapsed * self._limits.floor_bytes_per_second:
                    raise self._slow()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except urllib3.exceptions.TimeoutError as error:
            raise self._slow() from error
        except urllib3.exceptions.HTTPError as error:
            raise self._broken(innermost_cause(error)) from error

    def _read_all(self, response: requests.Response, limit: int) -> bytes:
        body = bytearray()
        for chunk in self._body(response):
            body += chunk
            if len(body) > limit:
                raise too_large(f"The answer of {self._name}", len(body), limit)
        return bytes(body)

    def _discard(self, response: requests.Response) -> None:
        """Read a small body to its end, so that the connection can be used again."""
        with response, contextlib.suppress(PipelineError):
            self._read_all(response, MAX_ERROR_BYTES)

    def _expect(self, response: requests.Response, what: str) -> None:
        """Any 2xx will do: registries differ in which."""
        if not 200 <= response.status_code < 300:
            raise self._failure(response, what)

    def _expect_digest(self, response: requests.Response, digest: str) -> None:
        stored = response.headers.get("Docker-Content-Digest", digest)
        if stored.startswith("sha256:") and stored != digest:
            raise digest_mismatch(digest, stored)

    def _failure(self, response: requests.Response, what: str) -> PipelineError:
        status, detail = response.status_code, self._detail(response)
        said = f"{self._name}: {what}: the registry answered {status}{detail}."
        if status == 401:
            return self._authorizer.refused(f"it answered 401 to the login{detail}")
        if status == 403:
            step = "Ask for the right to " + ("push to" if "push" in self._actions else "pull from") + " it."
            return PipelineError(Reason.RegistryForbidden, said, step)
        if status == 404:
            step = "Check repository, tag and digest; `firmware-pipeline push` prints the reference."
            return PipelineError(Reason.ReferenceNotFound, said, step)
        pause = http_rules.retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
        if status == 429 or (status == 503 and pause is not None):
            asks = f" It asks to wait {pause:.0f} s." if pause is not None else ""
            return Transient(Reason.RegistryBusy, said + asks, "Try again later.", pause)
        if status in _BUSY:
            return Transient(Reason.RegistryUnreachable, said, "Try again; the registry's log says what is wrong.")
        if status == 413:
            step = "Raise the limit for request bodies in the registry or in the proxy before it."
            return PipelineError(Reason.TooLarge, said, step)
        step = _NEXT_STEPS.get(status, "Check that the host is an OCI registry.")
        return PipelineError(Reason.RegistryProtocol, said, step)

    def _detail(self, response: requests.Response) -> str:
        """The registry's own words, cut and cleaned for a terminal."""
        try:
            errors = json.loads(self._read_all(response, MAX_ERROR_BYTES))["errors"]
            words = f"{errors[0].get('code', '')} {errors[0].get('message', '')}".strip()
        except (PipelineError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return ""
        return f" ({''.join(c for c in words[:200] if c.isprintable())})" if words else ""

    def _slow(self) -> Transient:
        return Transient(
            Reason.RegistryTimeout,
            f"{self._name}: the registry did not answer, or sent too little, within {self._limits.read_seconds:g} s.",
            "Check the network and the registry, then try again.",
        )

    def _broken(self, cause: str) -> Transient:
        return Transient(
            Reason.RegistryUnreachable,
            f"{self._name}: no connection, or it broke: {cause}.",
            "Check the host name, the network and that the registry runs, then try again.",
        )
