# SPDX-License-Identifier: Apache-2.0
"""The Authorization header for one repository: Basic, or Bearer tokens of a token service.

Tokens are kept per set of actions, dropped when they expire or the registry refuses them, and fetched once however
many threads ask.
"""

import base64
import functools
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from firmware_pipeline.credentials import Credential
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.http_rules import (
    DEFAULT_TOKEN_SECONDS,
    Challenge,
    ClientOptions,
    check_realm,
    parse_challenge,
    token_scope,
)

CLIENT_ID: Final = "flashjob"
FetchToken = Callable[[str, str, dict[str, str], str | None], bytes]
"""fetch(method, realm URL, parameters, Authorization header or None) -> body of a 200 answer."""


class Authorizer:
    """Answers the challenges of one repository's registry.

    Args:
        registry_url: origin of the registry.
        repository: the repository's name.
        fetch: how to ask a token service; must neither retry with nor redirect the credential.
    """

    def __init__(self, registry_url: str, repository: str, options: ClientOptions, fetch: FetchToken) -> None:
        self._registry_url, self._repository, self._options, self._fetch = registry_url, repository, options, fetch
        host = registry_url.split("://", 1)[1]
        self._host = host
        self._lock = threading.Lock()
        self._headers: dict[str, tuple[str, float]] = {}

    @functools.cached_property
    def _credential(self) -> Credential | None:
        """Looked up when it is first needed: a public registry never makes a credential helper run."""
        return self._options.credentials.find(self._host, self._repository)

    def header(self, actions: str) -> str | None:
        """The header to send for these actions, or None as long as the registry has not asked for one."""
        known = self._headers.get(actions)
        return known[0] if known and known[1] > time.monotonic() else None

    def answer(self, www_authenticate: str, actions: str, rejected: str | None) -> str:
        """The header that answers a 401.

        Args:
            www_authenticate: the registry's challenge.
            actions: `pull` or `pull,push`.
            rejected: the header that was just refused, None if none was sent.

        Raises:
            PipelineError: RegistryUnauthorized, ForeignRealm, RegistryProtocol.
        """
        challenge = parse_challenge(www_authenticate)
        if challenge is None or challenge.scheme not in ("basic", "bearer"):
            raise self.refused(f"it asks for a login that is not supported ({www_authenticate[:100]!r})")
        with self._lock:
            current = self.header(actions)
            if current and current != rejected:
                return current
            self._headers.pop(actions, None)
            if challenge.scheme == "basic":
                header, seconds = self._basic(rejected), float("inf")
            else:
                header, seconds = self._bearer(challenge, actions, rejected)
            self._headers[actions] = header, time.monotonic() + seconds
            return header

    def refused(self, problem: str) -> PipelineError:
        """The error for a login that does not work."""
        hint = self._options.credentials.hint(self._host)
        return PipelineError(
            Reason.RegistryUnauthorized,
            f"The registry {self._host} does not let us use {self._repository}: {problem}.{hint}",
            "Pass --username and --password-stdin, or give the pod or shell credentials for this host "
            "(DOCKER_CONFIG, imagePullSecrets); check that the repository exists.",
        )

    def _basic(self, rejected: str | None) -> str:
        credential = self._credential
        if credential is None or not credential.username:
            raise self.refused("it asks for a user name and password, and none is configured")
        header = _basic_header(credential)
        if header == rejected:
            raise self.refused("it refused the user name or password")
        return header

    def _bearer(self, challenge: Challenge, actions: str, rejected: str | None) -> tuple[str, float]:
        credential = self._credential or Credential()
        if credential.registry_token:
            header = f"Bearer {credential.registry_token}"
            if header == rejected:
                raise self.refused("it refused the registry token")
            return header, float("inf")
        realm = check_realm(challenge.realm, self._registry_url, self._options)
        query = {"scope": token_scope(self._repository, actions, challenge.scope)}
        if challenge.service:
            query["service"] = challenge.service
        if credential.identity_token:
            query |= {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": CLIENT_ID}
            body = self._fetch("POST", realm, query, None)
        else:
            body = self._fetch("GET", realm, query, _basic_header(credential) if credential.username else None)
        return _read_token(body)


def _basic_header(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _read_token(body: bytes) -> tuple[str, float]:
    try:
        answer: Any = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
        seconds = float(answer.get("expires_in") or DEFAULT_TOKEN_SECONDS)
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not seconds > 0:
            raise ValueError("no token")
    except (ValueError, AttributeError, TypeError):
        raise PipelineError(
            Reason.RegistryProtocol,
            "The registry's token service answered without a usable token.",
            "Check the registry's token service; its log says why.",
        ) from None
    return f"Bearer {token}", seconds * 0.9
