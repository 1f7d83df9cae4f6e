# SPDX-License-Identifier: Apache-2.0
"""What every verb of ``attest`` shares: exit codes, input, output, and how an error looks."""

import json
import os
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from attestation import keys
from attestation.device_protocol import DeviceError
from attestation.directory import TrustDirectory, parse_policy
from attestation.errors import Code, Reject
from attestation.files import FILE_LIMIT
from attestation.keys import PublicKey
from attestation.policy import AttestationPolicySpec, Measurement


class Exit(IntEnum):
    """Exit codes; the contract with scripts."""

    PROVEN = 0
    """Proven, or done."""
    REJECTED = 1
    """Rejected, not allowed, or different."""
    USAGE = 2
    """Wrong usage."""
    UNPROVEN = 3
    """Accepted, but below the root of trust that the policy demands."""
    TRUST = 4
    """The trust directory, a policy, a key or a record's store cannot be used."""
    UNREACHABLE = 5
    """The device cannot be reached, or gives no answer that can be read."""


_TRUST_CODES: Final = frozenset(
    {
        Code.STORE_INVALID, Code.STORE_UNAVAILABLE, Code.POLICY_INVALID, Code.POLICY_MISSING,
        Code.RECORD_STRUCTURE, Code.RECORD_SIGNATURE, Code.RECORD_HASH, Code.RECORD_VERDICT,
    }
)  # fmt: skip

_NEXT: Final = {
    Exit.REJECTED: "docs/reasons.md says what the code means; attest explain shows what evidence says",
    Exit.USAGE: "attest COMMAND --help",
    Exit.TRUST: "correct what the message names; attest enroll fills a trust directory, attest policy check reads a policy",
    Exit.UNREACHABLE: "see that the device runs and that its address is right, then ask again",
}
_UNBOUND: Final = 10_000

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Trust = Annotated[Path | None, typer.Option(help="Trust directory.", show_default="user data directory")]
By = Annotated[str, typer.Option(help="Who decides this: a person's name.")]
Why = Annotated[str, typer.Option(help="Why, in a sentence.")]

P = ParamSpec("P")
R = TypeVar("R")


def default_trust() -> Path:
    """``$XDG_DATA_HOME/flashjob/trust``, or under ``~/.local/share``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "flashjob" / "trust"


def verb(command: Callable[P, R]) -> Callable[P, R]:
    """A verb whose rejects and device errors become one line on standard error and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except Reject as reject:
            fail(str(reject), Exit.TRUST if reject.code in _TRUST_CODES else Exit.REJECTED)
        except DeviceError as error:
            fail(f"{error}", Exit.UNREACHABLE)

    return run


def fail(message: str, code: Exit) -> NoReturn:
    """Say why on standard error, a code first, and what to do next; then end."""
    reason, colon, rest = message.partition(": ")
    console(stderr=True, soft_wrap=True).print(Text.assemble((reason, "bold red"), colon, rest))
    say(f"Next: {_NEXT[code]}")
    raise typer.Exit(code)


def say(message: str) -> None:
    """One line on standard error, for people; standard output is for results."""
    console(stderr=True, soft_wrap=True).print(Text(message))


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Where people read. In a pipe or a file every line stays whole, and columns are as wide as they need to be."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False, width=None if stream.isatty() else _UNBOUND)


def print_json(content: object) -> None:
    """One JSON object on standard output; coloured on a terminal."""
    out = console()
    if out.is_terminal:
        out.print_json(json.dumps(content))
    else:
        typer.echo(json.dumps(content, sort_keys=True))


def open_trust(trust: Path | None, *, create: bool = False) -> TrustDirectory:
    """The trust directory that was named, or the user's own. Raises Reject."""
    root = trust or default_trust()
    return TrustDirectory.create(root) if create else TrustDirectory(root)


def now() -> int:
    """Unix seconds: the only place where the verbs look at a clock."""
    return int(time.time())


def read_input(name: str, limit: int = FILE_LIMIT) -> bytes:
    """A file, or standard input for ``-``; one byte more than `limit` is enough for its reader to refuse it."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(limit + 1)
        with Path(name).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}") from error


def policy_from(name: str) -> AttestationPolicySpec:
    """A policy from a file or standard input. Raises Reject."""
    return parse_policy(read_input(name), "standard input" if name == "-" else Path(name).name)


def from_hex(value: str, option: str) -> bytes:
    """Bytes of an option in hex."""
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is not hex: {value}") from error


def measurement(value: str, option: str) -> Measurement:
    """``sha256:HEX``, ``sha384:HEX`` or ``sha512:HEX`` of an option."""
    name, _, digest = value.partition(":")
    try:
        found = Measurement.of_hash(bytes.fromhex(digest))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {value}: {error}") from error
    if found.full != value.lower():
        raise typer.BadParameter(f"{option} {value}: {name} does not fit {len(digest) // 2} bytes")
    return found


def public_key(text: str, option: str) -> PublicKey:
    """A public key: a file with PEM or COSE_Key, or a COSE_Key in hex."""
    path = Path(text)
    try:
        raw = path.read_bytes() if path.is_file() else bytes.fromhex(text)
        return keys.from_pem(raw) if raw.startswith(b"-----BEGIN") else keys.from_cose(raw)
    except (ValueError, OSError, Reject) as error:
        raise typer.BadParameter(f"{option} is neither a key file nor a COSE_Key in hex: {error}") from error


def private_key(path: Path, option: str) -> keys.PrivateKey:
    """A private key file, PEM."""
    try:
        return keys.private_from_pem(path.read_bytes())
    except (OSError, Reject) as error:
        raise typer.BadParameter(f"{option} {path}: {error}") from error


def device_id(store: TrustDirectory, text: str, waiting: list[str] | None = None) -> bytes:
    """A device's id from its beginning, at least 8 digits; of the enrolled devices, or of those that wait for approval.

    Raises:
        BadParameter: it does not name exactly one.
    """
    if len(text) < 8:
        raise typer.BadParameter(f"{text!r:.80} is too short, 8 digits at least")
    known = [one.hex() for one in store.ids()] if waiting is None else waiting
    found = [one for one in known if one.startswith(text.lower())]
    if len(found) != 1:
        which = "is enrolled" if waiting is None else "waits for approval"
        many = f"{len(found)} device ids begin with {text!r:.80}: give more digits"
        raise typer.BadParameter(many if found else f"no device {which} whose id begins with {text!r:.80}")
    return bytes.fromhex(found[0])


def iso(at: int) -> str:
    """Unix seconds for people, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def json_or(as_json: bool, content: Any, show: Callable[[], None]) -> None:
    """JSON where asked for, else what people read."""
    if as_json:
        print_json(content)
    else:
        show()
