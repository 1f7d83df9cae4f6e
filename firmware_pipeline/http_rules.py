# SPDX-License-Identifier: Apache-2.0
"""Where requests, credentials and uploads may go, and how long to try. Pure: decides, sends nothing.

Rules:
    1. A credential or token goes to the registry's own origin (scheme, host, port) only.
    2. A token service (realm) gets the credential only on the registry's host or a host named as trusted, and over
       https; over http only if plain http was asked for.
    3. GET and HEAD follow at most 5 redirects; to another origin without any credential; never from https to http.
       Nothing else follows a redirect.
    4. An upload goes to the registry's own origin, or over https, without credentials, to a host named as trusted.
    5. Waiting is bounded in attempts and in total seconds; a longer Retry-After is an error, not a wait.

Sources: RFC 9110 sections 10.2.3, 11.6.1, 15.4; distribution specification 1.1; the distribution project's token protocol.
"""

import email.utils
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

from firmware_pipeline.credentials import Credentials
from firmware_pipeline.errors import PipelineError, Reason

MAX_REDIRECTS: Final = 5
DEFAULT_TOKEN_SECONDS: Final = 60
_PORTS: Final = {"https": 443, "http": 80}
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s+")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to try.

    Attributes:
        connect_seconds, read_seconds: for one connection, and for one silence of the other side.
        floor_bytes_per_second: a body slower than this, measured after `read_seconds`, is given up.
        attempts: tries of one operation.
        wait_seconds: all pauses of one operation together.
        first_pause_seconds: doubled from try to try, with jitter.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    floor_bytes_per_second: int = 1024
    attempts: int = 4
    wait_seconds: float = 30.0
    first_pause_seconds: float = 0.5


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to reach registries.

    Attributes:
        credentials: who we are, per repository.
        plain_http: speak http instead of https. Never a fallback.
        ca_file: PEM certificates to trust instead of the system's.
        trusted_hosts: further hosts (no port) of the registry's owner: token services, upload hosts.
        limits: how long to try.
    """

    credentials: Credentials = field(default_factory=Credentials)
    plain_http: bool = False
    ca_file: Path | None = None
    trusted_hosts: frozenset[str] = frozenset()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Challenge:
    """One WWW-Authenticate challenge."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """The first challenge in a WWW-Authenticate header, or None when there is none that can be read."""
    if not (match := _SCHEME.match(header)):
        return Challenge(header.strip().lower()) if header.strip() else None
    scheme, position = match[1].lower(), match.end()
    values: dict[str, str] = {}
    while parameter := _PARAMETER.match(header, position):
        quoted, plain = parameter[2], parameter[3]
        values.setdefault(parameter[1].lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        position = parameter.end()
    return Challenge(scheme, values.get("realm", ""), values.get("service", ""), values.get("scope", ""))


def token_scope(repository: str, actions: str, asked: str) -> str:
    """The scope to request: our repository, with our actions and those that the challenge asks for on it.

    Args:
        repository: the repository's name.
        actions: what we want to do: `pull` or `pull,push`.
        asked: the challenge's scope; other repositories in it are ignored.
    """
    wanted = set(actions.split(","))
    prefix = f"repository:{repository}:"
    for scope in asked.split():
        if scope.startswith(prefix):
            wanted |= {a for a in scope.removeprefix(prefix).split(",") if a in ("pull", "push")}
    return prefix + ",".join(sorted(wanted))


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of an absolute URL.

    Raises:
        PipelineError: RegistryProtocol when there is none.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        if scheme in _PORTS and host:
            return scheme, host, parts.port or _PORTS[scheme]
    except ValueError:
        pass
    raise PipelineError(
        Reason.RegistryProtocol,
        f"The registry named {url[:200]!r}, which is not an http or https address.",
        "Check that the reference's host is a registry.",
    )


def check_realm(realm: str, registry_url: str, options: ClientOptions) -> str:
    """Rule 2: return the realm if the credential may go there.

    Raises:
        PipelineError: ForeignRealm.
    """
    scheme, host, _ = origin(realm)
    if host != origin(registry_url)[1] and host not in options.trusted_hosts:
        raise PipelineError(
            Reason.ForeignRealm,
            f"The registry {origin(registry_url)[1]} sends logins to the token service {host}, another host. "
            "Nothing was sent there.",
            f"If {host} belongs to your registry, name it as trusted (--trust-host {host}).",
        )
    if scheme != "https" and not options.plain_http:
        raise PipelineError(
            Reason.ForeignRealm,
            f"The registry sends logins to {host} over plain http; everyone on the way could read them.",
            "Let the registry's token service speak https. For a local test registry use --plain-http.",
        )
    return realm


def check_redirect(method: str, current: str, location: str, hops: int, options: ClientOptions) -> str:
    """Rule 3: the absolute URL to go to next.

    Raises:
        PipelineError: RedirectRefused, RegistryProtocol.
    """
    target = urljoin(current, location)
    scheme = origin(target)[0]
    if method not in ("GET", "HEAD"):
        problem = f"it redirects a {method}"
    elif hops >= MAX_REDIRECTS:
        problem = f"it redirects more than {MAX_REDIRECTS} times"
    elif scheme == "http" and not (options.plain_http and current.startswith("http:")):
        problem = "it redirects from https to plain http"
    else:
        return target
    raise PipelineError(
        Reason.RedirectRefused,
        f"The registry {origin(current)[1]} cannot be used so: {problem} (to {origin(target)[1]}).",
        "Use the registry's final address in the reference.",
    )


def check_upload(location: str, registry_url: str, options: ClientOptions) -> str:
    """Rule 4: the absolute URL for an upload.

    Raises:
        PipelineError: ForeignUpload, RegistryProtocol.
    """
    if not location:
        raise PipelineError(
            Reason.RegistryProtocol,
            f"The registry {origin(registry_url)[1]} accepts an upload but does not say where (no Location).",
            "Check that the host is an OCI registry and what stands before it.",
        )
    target = urljoin(registry_url, location)
    scheme, host, _ = origin(target)
    if origin(target) == origin(registry_url) or (scheme == "https" and host in options.trusted_hosts):
        return target
    raise PipelineError(
        Reason.ForeignUpload,
        f"The registry {origin(registry_url)[1]} wants the upload sent to {scheme}://{host}, another origin. "
        "Nothing was sent there.",
        f"If {host} belongs to your registry, name it as trusted (--trust-host {host}); "
        "if only scheme or port differ, correct the registry's external URL.",
    )


def retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds to wait from a Retry-After header (seconds or a date), or None when it says nothing usable."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header.strip()[:9])
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
