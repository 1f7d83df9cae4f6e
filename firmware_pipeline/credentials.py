# SPDX-License-Identifier: Apache-2.0
"""Which credentials belong to which repository.

Sources, first match wins:
    1. given explicitly (flags, standard input), good for the one registry host they were given for;
    2. a file named explicitly;
    3. the file named by $REGISTRY_AUTH_FILE;
    4. $DOCKER_CONFIG/config.json (in pods: a mounted kubernetes.io/dockerconfigjson Secret);
    5. $XDG_RUNTIME_DIR/containers/auth.json;
    6. ~/.docker/config.json.

Within a file the longest prefix of HOST/NAMESPACE/REPOSITORY wins. An entry is `auth` (base64 of user:password),
`username` + `password`, `identitytoken` or `registrytoken`. Credential helper programs are not run.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.store import storage_failed

MAX_FILE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Credential:
    """A way to log in. Secrets never show in repr().

    Attributes:
        username, password: for Basic and as login at a token service.
        identity_token: OAuth2 refresh token for the token service.
        registry_token: Bearer token for the registry itself.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials this process may use.

    Attributes:
        explicit: host -> credential given by hand.
        files: parsed `auths` tables, in order of precedence.
        helpers: hosts for which a file names a credential helper program ("*" for all), for error messages.
    """

    explicit: Mapping[str, Credential] = field(default_factory=dict)
    files: Sequence[Mapping[str, Credential]] = ()
    helpers: frozenset[str] = frozenset()

    def find(self, host: str, repository: str) -> Credential | None:
        """The credential for HOST/REPOSITORY, or None: anonymous."""
        if (given := self.explicit.get(host)) is not None:
            return given
        parts = repository.split("/")
        names = [f"{host}/{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)] + [host]
        for table in self.files:
            for name in names:
                if name in table:
                    return table[name]
        return None

    def hint(self, host: str) -> str:
        """A sentence for the user when no credential was found although a helper program would have had one."""
        if host in self.helpers or "*" in self.helpers:
            return " The configuration names a credential helper, which is not supported: use --password-stdin."
        return ""


def parse_docker_config(raw: bytes, where: str) -> tuple[dict[str, Credential], frozenset[str]]:
    """Parse the content of a docker `config.json` or containers `auth.json`.

    Args:
        raw: the file's bytes.
        where: names the source in messages; values are never shown.

    Returns:
        (key -> credential, hosts with a credential helper).

    Raises:
        PipelineError: CredentialsMalformed.
    """
    try:
        document = json.loads(raw.decode())
    except ValueError:
        raise _malformed(where, "it is not JSON") from None
    if not isinstance(document, dict):
        raise _malformed(where, "it is not a JSON object")
    auths = document.get("auths") or {}
    helpers = document.get("credHelpers") or {}
    if not isinstance(auths, dict) or not isinstance(helpers, dict):
        raise _malformed(where, "`auths` and `credHelpers` must be objects")
    found = {}
    for key, entry in auths.items():
        if not isinstance(entry, dict):
            raise _malformed(where, f"the entry for {key!r} is not an object")
        if (credential := _credential(entry, key, where)) is not None:
            found[_normalise(key)] = credential
    names = {_normalise(key) for key in helpers} | ({"*"} if document.get("credsStore") else set())
    return found, frozenset(names)


def _credential(entry: dict[str, Any], key: str, where: str) -> Credential | None:
    def text(name: str) -> str:
        value = entry.get(name, "")
        if not isinstance(value, str):
            raise _malformed(where, f"`{name}` for {key!r} is not a text")
        return value

    username, password = text("username"), text("password")
    if encoded := text("auth"):
        try:
            username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise _malformed(where, f"`auth` for {key!r} is not base64 of user:password") from None
        if not colon:
            raise _malformed(where, f"`auth` for {key!r} holds no colon")
        password = password.rstrip("\0")
    credential = Credential(username, password, text("identitytoken"), text("registrytoken"))
    return None if credential == Credential() else credential


def _normalise(key: str) -> str:
    """`https://HOST/v1/` (old docker) and `HOST/` mean HOST; the host is compared in lower case."""
    for scheme in ("https://", "http://"):
        key = key.removeprefix(scheme)
    key = key.rstrip("/")
    for suffix in ("/v1", "/v2"):
        key = key.removesuffix(suffix)
    host, slash, path = key.partition("/")
    return host.lower() + slash + path


def load_credentials(
    environment: Mapping[str, str],
    *,
    home: Path | None = None,
    file: Path | None = None,
    explicit: Mapping[str, Credential] | None = None,
) -> Credentials:
    """Gather credentials in the documented order. The only function here that touches the file system.

    Args:
        environment: variables, normally `os.environ`.
        home: home directory, or None to leave out source 6.
        file: source 2.
        explicit: source 1, host -> credential.

    Raises:
        PipelineError: CredentialsMalformed; StorageFailed when a file that was named (2, 3) cannot be read.
    """
    named = [file] if file else []
    if path := environment.get("REGISTRY_AUTH_FILE"):
        named.append(Path(path))
    usual = []
    if folder := environment.get("DOCKER_CONFIG"):
        usual.append(Path(folder) / "config.json")
    if folder := environment.get("XDG_RUNTIME_DIR"):
        usual.append(Path(folder) / "containers" / "auth.json")
    if home:
        usual.append(home / ".docker" / "config.json")
    tables: list[Mapping[str, Credential]] = []
    helpers: frozenset[str] = frozenset()
    for path_ in named + usual:
        try:
            with path_.open("rb") as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if path_ in named:
                raise storage_failed(path_, error) from error
            continue
        except OSError as error:
            raise storage_failed(path_, error) from error
        if len(raw) > MAX_FILE_BYTES:
            raise _malformed(str(path_), f"it is larger than {MAX_FILE_BYTES} bytes")
        table, more = parse_docker_config(raw, str(path_))
        tables.append(table)
        helpers |= more
    return Credentials(explicit or {}, tuple(tables), helpers)


def _malformed(where: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.CredentialsMalformed,
        f"The registry credentials in {where} cannot be used: {problem}.",
        "Log in again with your container tool, or pass --username and --password-stdin.",
    )
