# SPDX-License-Identifier: Apache-2.0
"""How a verb runs: option groups become options, refusals become one clear message and the documented exit code."""

import contextlib
import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from firmware_pipeline.cli import usage
from firmware_pipeline.cli.options import GROUPS, Login
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.exit_codes import INTERRUPTED, exit_code

if TYPE_CHECKING:
    from firmware_pipeline.http_rules import ClientOptions
    from firmware_pipeline.reference import Reference
    from firmware_pipeline.signing.keys import Signer, TrustedKey

MAX_KEY_FILE_BYTES = 1024 * 1024
err = functools.partial(typer.echo, err=True)


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a verb.

    A parameter whose type is one of `options.GROUPS` becomes that group's options. A PipelineError ends with its
    message, the next step and `exit_code`; Ctrl-C with 130, SIGTERM with 143. None shows a traceback.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if kind in GROUPS}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        group = groups.get(parameter.name)
        parameters += _spread(group) if group else [parameter.replace(annotation=hints[parameter.name])]
    required = [p for p in parameters if p.default is p.empty]
    optional = [p for p in parameters if p.default is not p.empty]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        try:
            function(**given)
        except PipelineError as error:
            refuse(error, exit_code(error.reason))
        except (KeyboardInterrupt, SystemExit) as stop:  # the latter by SIGTERM alone
            err("interrupted: no tag was moved and no unfinished file was left")
            code = stop.code if isinstance(stop, SystemExit) else INTERRUPTED
            raise typer.Exit(int(code or INTERRUPTED)) from None

    ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in required + optional]
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    del run.__wrapped__  # inspect would look through it
    return run


def refuse(error: PipelineError, code: int) -> NoReturn:
    """End with the message, the next step and this exit code."""
    usage.tell(error.reason.value, error.message, error.next_step)
    raise typer.Exit(code) from None


def _spread(group: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def client_options(login: Login, where: "Reference") -> "ClientOptions":
    """Credentials, in the documented order, and trust for the registry that `where` names.

    Raises:
        PipelineError: CredentialsMalformed.
    """
    from firmware_pipeline.credentials import Credential, load_credentials
    from firmware_pipeline.http_rules import ClientOptions

    if (login.username is None) == login.password_stdin:
        raise typer.BadParameter("--username and --password-stdin belong together")
    explicit = {}
    if login.username is not None:
        explicit[where.host] = Credential(login.username, sys.stdin.readline().rstrip("\r\n"))
    if login.ca_file:
        read_file(login.ca_file)
    home = Path.home() if os.environ.get("HOME") else None
    return ClientOptions(
        credentials=load_credentials(os.environ, home=home, file=login.registry_config, explicit=explicit),
        plain_http=login.plain_http,
        ca_file=login.ca_file,
        trusted_hosts=frozenset(host.lower() for host in login.trust_host or ()),
    )


def trusted_keys(paths: Sequence[Path] | None) -> "list[TrustedKey]":
    """The keys of `--key`; there must be one.

    Raises:
        PipelineError: KeyMalformed.
    """
    from firmware_pipeline.signing.keys import load_trusted_key

    if not paths:
        raise typer.BadParameter("name the trusted public keys: --key FILE")
    return [load_trusted_key(read_file(path), path.name) for path in paths]


def load_signing_key(text: str | None) -> "Signer | None":
    """The signer of `--sign`, if it is given; the password of an encrypted key is in the environment.

    Raises:
        PipelineError: KeyMalformed, SignerFailed.
    """
    if text is None:
        return None
    from firmware_pipeline.signing.signers import open_signer

    if ":" not in text:
        read_file(Path(text))
    return open_signer(text, key_password())


def key_password() -> bytes | None:
    """The password of encrypted key files, from the environment."""
    from firmware_pipeline.signing.keys import PASSWORD_VARIABLE

    return os.environb.get(PASSWORD_VARIABLE.encode()) or None


def write_digest(path: Path | None, pinned: "Reference") -> None:
    """`--digest-file`.

    Raises:
        PipelineError: StorageFailed.
    """
    from firmware_pipeline.store import atomic_file

    if path is not None:
        with atomic_file(path) as sink:
            sink.write(f"{pinned.digest}\n".encode())


def tell_moved(moved: Mapping[str, str]) -> None:
    """Say what a tag named before: tags may move, but nobody should have to wonder."""
    for tag, digest in moved.items():
        err(f"moved: the tag {tag} named {digest} before.")


def read_file(path: Path) -> bytes:
    """A small file that an option names; one that cannot be read is wrong usage."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror or error}") from None


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE texts as a mapping; one that is not so, or a key given twice, is wrong usage."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{option} needs KEY=VALUE, not {text!r}")
        if key in found:
            raise typer.BadParameter(f"{option} names {key!r} twice")
        found[key] = value
    return found


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal, nothing elsewhere. Yields update(title, bytes done, bytes in total)."""
    if quiet or not sys.stderr.isatty():
        yield lambda _title, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done)

        yield update
