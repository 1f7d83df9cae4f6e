# SPDX-License-Identifier: Apache-2.0
"""Which credentials belong to which repository.

Sources, first match wins:
    1. given explicitly (flags, standard input), good for the one registry host they were given for;
    2. a file named explicitly;
    3. the file named by $REGISTRY_AUTH_FILE;
    4. $DOCKER_CONFIG/config.json (in pods: a mounted kubernetes.io/dockerconfigjson Secret);
    5. $XDG_RUNTIME_DIR/containers/auth.json;
    6. ~/.docker/config.json.

Within a file: the helper that `credHelpers` names for the host; else the longest prefix of HOST/NAMESPACE/REPOSITORY in
`auths`; else the helper of `credsStore`. An entry of `auths` is `auth` (base64 of user:password), `username` + `password`,
`identitytoken` or `registrytoken`. Helper programs are run only where a home directory was given (for a person, never in
a pod), and only if the file that names them belongs to this user and nobody else may write it.
"""

import base64
import functools
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from firmware_pipeline.credential_helpers import TOKEN_USER, ask_helper
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


AskHelper = Callable[[str, str], tuple[str, str] | None]
"""ask(helper's name, host) -> (user name, secret) or None."""


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """What one configuration file says.

    Attributes:
        auths: HOST[/PATH] -> credential.
        helpers: host -> name of its credential helper.
        store: name of the helper for all other hosts, or empty.
        may_ask: whether the helpers it names may be run.
    """

    auths: Mapping[str, Credential] = field(default_factory=dict)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    may_ask: bool = False


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials this process may use.

    Attributes:
        explicit: host -> credential given by hand.
        files: parsed configuration files, in order of precedence.
        ask: runs a credential helper; None where none may be run.
    """

    explicit: Mapping[str, Credential] = field(default_factory=dict)
    files: Sequence[CredentialFile] = ()
    ask: AskHelper | None = field(default=None, compare=False)

    def find(self, host: str, repository: str) -> Credential | None:
        """The credential for HOST/REPOSITORY, or None: anonymous.

        Raises:
            PipelineError: CredentialsMalformed when a credential helper fails.
        """
        if (given := self.explicit.get(host)) is not None:
            return given
        parts = repository.split("/")
        names = [f"{host}/{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)] + [host]
        for file in self.files:
            entry = next((file.auths[name] for name in names if name in file.auths), None)
            helper = file.helpers.get(host) or ("" if entry else file.store)
            if helper and self.ask and file.may_ask:
                entry = _from_helper(self.ask(helper, host)) or entry
            if entry:
                return entry
        return None

    def hint(self, host: str) -> str:
        """A sentence for the user when no credential was found although a helper program might have had one."""
        named = [file for file in self.files if file.store or host in file.helpers]
        if any(not (self.ask and file.may_ask) for file in named):
            return (
                " The configuration names a credential helper. It is not run: that needs a user's own configuration "
                "file, which nobody else may write."
            )
        return " The credential helper knows no login for this host." if named else ""


def _from_helper(answer: tuple[str, str] | None) -> Credential | None:
    if answer is None:
        return None
    user, secret = answer
    return Credential(identity_token=secret) if user == TOKEN_USER else Credential(user, secret)


def parse_docker_config(raw: bytes, where: str, *, may_ask: bool = False) -> CredentialFile:
    """Parse the content of a docker `config.json` or containers `auth.json`.

    Args:
        raw: the file's bytes.
        where: names the source in messages; values are never shown.
        may_ask: see CredentialFile.

    Raises:
        PipelineError: CredentialsMalformed.
    """
    try:
        document = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise _malformed(where, "it is not JSON") from None
    if not isinstance(document, dict):
        raise _malformed(where, "it is not a JSON object")
    auths = document.get("auths") or {}
    helpers, store = document.get("credHelpers") or {}, document.get("credsStore") or ""
    if not isinstance(auths, dict) or not isinstance(helpers, dict):
        raise _malformed(where, "`auths` and `credHelpers` must be objects")
    if not all(isinstance(name, str) for name in (store, *helpers.values())):
        raise _malformed(where, "`credsStore` and the values of `credHelpers` must be names")
    found = {}
    for key, entry in auths.items():
        if not isinstance(entry, dict):
            raise _malformed(where, f"the entry for {key!r} is not an object")
        if (credential := _credential(entry, key, where)) is not None:
            found[_normalise(key)] = credential
    return CredentialFile(found, {_normalise(key): name for key, name in helpers.items()}, store, may_ask)


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
        except ValueError:  # not ASCII, not base64, or not UTF-8
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
        home: home directory of the person who asks; None leaves out source 6 and all credential helpers.
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
    files: list[CredentialFile] = []
    for path_ in named + usual:
        try:
            with path_.open("rb") as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
                status = os.fstat(stream.fileno())
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if path_ in named:
                raise storage_failed(path_, error) from error
            continue
        except OSError as error:
            raise storage_failed(path_, error) from error
        if len(raw) > MAX_FILE_BYTES:
            raise _malformed(str(path_), f"it is larger than {MAX_FILE_BYTES} bytes")
        own = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        files.append(parse_docker_config(raw, str(path_), may_ask=own and home is not None))
    ask = functools.cache(functools.partial(ask_helper, environment=environment))
    return Credentials(explicit or {}, tuple(files), ask if home else None)


def _malformed(where: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.CredentialsMalformed,
        f"The registry credentials in {where} cannot be used: {problem}.",
        "Log in again with your container tool, or pass --username and --password-stdin.",
    )
