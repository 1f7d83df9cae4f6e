# SPDX-License-Identifier: Apache-2.0
"""`firmware-pipeline`: build folders in, signed OCI artifacts out, and back.

Exit codes: see `exit_codes`. Results go to standard output, everything else to standard error. Progress bars appear on a terminal only.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from firmware_pipeline import api
from firmware_pipeline.artifact import ChipArtifact, chips
from firmware_pipeline.config import dumps
from firmware_pipeline.credentials import Credential, load_credentials
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.exit_codes import exit_code
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.inputs.reconcile import Overrides
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.reference import Reference, layout_reference
from firmware_pipeline.signing.keys import (
    SignerKey,
    TrustedKey,
    load_signer,
    load_trusted_key,
    private_pem,
    public_pem,
)
from firmware_pipeline.signing.release import load_release_key, read_sequence
from firmware_pipeline.signing.verify import gather
from firmware_pipeline.store import atomic_file, storage_failed

P = ParamSpec("P")
app = typer.Typer(
    name="firmware-pipeline",
    help="Firmware as signed OCI artifacts: pack, push, inspect, verify, pull.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_err = functools.partial(typer.echo, err=True)

Inputs = Annotated[
    list[str],
    typer.Argument(help="Build folders, or OFFSET=FILE, or CHIP:OFFSET=FILE when several chips are given so."),
]
Ref = Annotated[str, typer.Argument(help="HOST/REPOSITORY:TAG (or @sha256:...), or the directory of an OCI layout.")]
Chip = Annotated[str | None, typer.Option("--chip", help="Chip of the OFFSET=FILE arguments (default: read from it).")]
From = Annotated[str | None, typer.Option("--from", help="Kind of the build folders (default: detected).")]
AppName = Annotated[str | None, typer.Option("--name", help="Application name, where the image has none.")]
AppVersion = Annotated[str | None, typer.Option("--app-version", help="Application version, where the image has none.")]
Source = Annotated[str | None, typer.Option(help="URL of the sources.")]
Revision = Annotated[str | None, typer.Option(help="Revision of the sources.")]
Sign = Annotated[Path | None, typer.Option("--sign", help="PEM private key that signs the artifact.")]
ReleaseKeyFile = Annotated[Path | None, typer.Option("--release-key", help="The owner's release key (PEM).")]
Sequence = Annotated[int | None, typer.Option(help="Release number; must grow with every release.", min=0)]
Annotation = Annotated[list[str] | None, typer.Option("--annotation", help="KEY=VALUE for the index; repeatable.")]
DigestFile = Annotated[Path | None, typer.Option(help="Write the index digest into this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Speak http instead of https.")]
CaFile = Annotated[Path | None, typer.Option(help="PEM certificates to trust instead of the system's.")]
TrustHost = Annotated[
    list[str] | None, typer.Option(help="Further host of the registry's owner, e.g. its token service; repeatable.")
]
Username = Annotated[str | None, typer.Option(help="User name; needs --password-stdin.")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
AuthFile = Annotated[Path | None, typer.Option("--registry-config", help="Credentials file (config.json).")]
Keys = Annotated[list[Path] | None, typer.Option("--key", help="PEM public key that is trusted; repeatable.")]
Threshold = Annotated[int, typer.Option(help="How many distinct trusted keys must have signed.", min=1)]


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose refusals end as one clear message and the documented exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except PipelineError as error:
            _err(f"error: {error.reason.value}: {error.message}")
            _err(f"next:  {error.next_step}")
            raise typer.Exit(exit_code(error.reason)) from None

    return app.command(function.__name__)(run)


@app.callback(invoke_without_command=True)
def _root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        typer.echo(installed_version("flashjob"))
        raise typer.Exit


@_command
def push(
    inputs: Inputs,
    reference: Ref,
    chip: Chip = None,
    kind: From = None,
    name: AppName = None,
    app_version: AppVersion = None,
    source: Source = None,
    revision: Revision = None,
    also_tag: Annotated[list[str] | None, typer.Option(help="Further tag; repeatable.")] = None,
    annotation: Annotation = None,
    sign: Sign = None,
    release_key: ReleaseKeyFile = None,
    sequence: Sequence = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
    plain_http: PlainHttp = False,
    ca_file: CaFile = None,
    trust_host: TrustHost = None,
    username: Username = None,
    password_stdin: PasswordStdin = False,
    registry_config: AuthFile = None,
) -> None:
    """Push one release for one or several chips; sign it; set the tag last. Prints REF@sha256:..."""
    where = api.locate(reference)
    options = _options(where, plain_http, ca_file, trust_host, username, password_stdin, registry_config)
    plans = load_builds(inputs, chip=chip, kind=kind, overrides=Overrides(name, app_version, source, revision))
    _store(plans, where, options, also_tag, annotation, sign, release_key, sequence, digest_file, as_json)


@_command
def pack(
    inputs: Inputs,
    output: Annotated[Path, typer.Option("--output", "-o", help="The OCI layout directory.")],
    tag: Annotated[str, typer.Option(help="Tag inside the layout.")] = "latest",
    chip: Chip = None,
    kind: From = None,
    name: AppName = None,
    app_version: AppVersion = None,
    source: Source = None,
    revision: Revision = None,
    annotation: Annotation = None,
    sign: Sign = None,
    release_key: ReleaseKeyFile = None,
    sequence: Sequence = None,
    digest_file: DigestFile = None,
    as_json: AsJson = False,
) -> None:
    """Like push, into an OCI layout directory: no registry needed."""
    where = layout_reference(f"{output}:{tag}")
    plans = load_builds(inputs, chip=chip, kind=kind, overrides=Overrides(name, app_version, source, revision))
    _store(plans, where, ClientOptions(), None, annotation, sign, release_key, sequence, digest_file, as_json)


@_command
def inspect(
    reference: Ref,
    as_json: AsJson = False,
    plain_http: PlainHttp = False,
    ca_file: CaFile = None,
    trust_host: TrustHost = None,
    username: Username = None,
    password_stdin: PasswordStdin = False,
    registry_config: AuthFile = None,
) -> None:
    """Show what an artifact holds. Digests are checked, signatures only counted: `verify` judges them."""
    where = api.locate(reference)
    store = api.open_store(
        where, _options(where, plain_http, ca_file, trust_host, username, password_stdin, registry_config)
    )
    digest = api.resolve(store, where)
    index = api.open_index(store, digest)
    found = [api.open_chip(store, digest, chip) for chip in chips(index)]
    report = {
        "reference": str(where.at(digest)),
        "digest": digest,
        "annotations": index.annotations,
        "signatures": len(gather(store, digest)),
        "chips": [_describe(chip) for chip in found],
    }
    if as_json:
        typer.echo(json.dumps(report, sort_keys=True))
        return
    typer.echo(f"{report['reference']}\n  signatures: {report['signatures']} (not judged)")
    for chip in found:
        app_ = chip.config.app
        sequence = read_sequence(chip.release_statement, chip.config) if chip.release_statement else "none"
        typer.echo(f"  {chip.target}: {app_.project_name} {app_.version}, release sequence {sequence}")
        for layer in chip.layers:
            size = f"{layer.image.size:>9}"
            typer.echo(f"    {layer.image.offset:#010x} {size} {layer.image.role.value:<16} {layer.descriptor.digest}")
        for entry in chip.config.measurements:
            typer.echo(f"    measurement {entry.scheme} {entry.alg}: {entry.value}")


@_command
def verify(
    reference: Ref,
    key: Keys = None,
    threshold: Threshold = 1,
    layers: Annotated[bool, typer.Option("--layers", help="Fetch and check every image too.")] = False,
    as_json: AsJson = False,
    plain_http: PlainHttp = False,
    ca_file: CaFile = None,
    trust_host: TrustHost = None,
    username: Username = None,
    password_stdin: PasswordStdin = False,
    registry_config: AuthFile = None,
) -> None:
    """Check signatures, index, every chip's manifest, config and release statement. Prints the pinned reference."""
    trusted = _trusted(key)
    where = api.locate(reference)
    store = api.open_store(
        where, _options(where, plain_http, ca_file, trust_host, username, password_stdin, registry_config)
    )
    digest = api.resolve(store, where)
    verified = api.verify(store, digest, trusted, threshold)
    found = [api.open_chip(store, digest, chip) for chip in chips(verified.index)]
    for chip in found if layers else []:
        for layer in chip.layers:
            api.read_layer(store, layer)
    pinned = str(where.at(digest))
    if as_json:
        report = {
            "reference": pinned,
            "digest": digest,
            "signers": verified.signers,
            "chips": [c.target for c in found],
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    _err(f"Signed by {', '.join(verified.signers)}; chips: {', '.join(c.target for c in found)}.")
    typer.echo(pinned)


@_command
def pull(
    reference: Ref,
    chip: Annotated[str, typer.Option("--chip", help="The chip.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the files.")],
    key: Keys = None,
    threshold: Threshold = 1,
    unverified: Annotated[bool, typer.Option("--unverified", help="Do not ask who signed it.")] = False,
    as_json: AsJson = False,
    plain_http: PlainHttp = False,
    ca_file: CaFile = None,
    trust_host: TrustHost = None,
    username: Username = None,
    password_stdin: PasswordStdin = False,
    registry_config: AuthFile = None,
) -> None:
    """Fetch one chip's files, config and release statement, each checked."""
    if unverified and key:
        raise typer.BadParameter("--unverified and --key exclude each other")
    trusted = [] if unverified else _trusted(key)
    where = api.locate(reference)
    store = api.open_store(
        where, _options(where, plain_http, ca_file, trust_host, username, password_stdin, registry_config)
    )
    digest = api.resolve(store, where)
    if not unverified:
        api.verify(store, digest, trusted, threshold)
    found = api.open_chip(store, digest, chip)
    with _progress() as update:
        for layer in found.layers:
            api.fetch_layer(store, layer, output / layer.title, functools.partial(update, layer.title))
    folder = output / found.target
    extra = {"config.json": dumps(found.config)}
    if found.release_statement:
        extra["release.cose"] = found.release_statement
    for file_name, data in extra.items():
        with atomic_file(folder / file_name) as sink:
            sink.write(data)
    pinned = str(where.at(digest))
    typer.echo(json.dumps({"reference": pinned, "digest": digest, **_describe(found)}) if as_json else pinned)


@_command
def keygen(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key (private, mode 0600) and NAME.pub.")],
    kind: Annotated[str, typer.Option("--type", help="p256, p384 or ed25519; release keys: p256 or ed25519.")] = "p256",
) -> None:
    """Make a key pair, for signing artifacts or for releases. Existing files are never replaced."""
    makers: dict[str, Callable[[], SignerKey]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    if kind not in makers:
        raise typer.BadParameter(f"--type is one of {', '.join(makers)}")
    key = makers[kind]()
    private, public = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise storage_failed(path, FileExistsError(0, "it exists, and keys are never replaced"))
    for path, pem, mode in ((private, private_pem(key), 0o600), (public, public_pem(key.public_key()), 0o644)):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as stream:
                stream.write(pem)
        except OSError as error:
            raise storage_failed(path, error) from error
    _err(f"Keep {private} secret. Devices and policies trust {public}.")
    typer.echo(str(public))


# ---- shared ----------------------------------------------------------------------------------------------


def _store(
    plans: list[BuildPlan],
    where: Reference,
    options: ClientOptions,
    also_tags: list[str] | None,
    annotations: list[str] | None,
    sign: Path | None,
    release_key: Path | None,
    sequence: int | None,
    digest_file: Path | None,
    as_json: bool,
) -> None:
    if (release_key is None) != (sequence is None):
        raise typer.BadParameter("--release-key and --sequence belong together")
    pairs = [item.partition("=") for item in annotations or []]
    if bad := [key for key, equals, _ in pairs if not key or not equals]:
        raise typer.BadParameter(f"--annotation needs KEY=VALUE, not {bad[0]!r}")
    signer = load_signer(_read(sign), str(sign)) if sign else None
    release = None
    if release_key is not None and sequence is not None:
        release = api.Release(load_release_key(_read(release_key), str(release_key)), sequence)
    for plan in plans:
        for warning in plan.warnings:
            _err(f"warning: {plan.target}: {warning}")
    if signer is None:
        _err("warning: not signed (--sign): no FlashJob will accept it.")
    if release is None:
        _err("warning: no release statement (--release-key, --sequence): devices will not install it.")
    with _progress() as update:
        pushed = api.push(
            plans,
            where,
            signer=signer,
            release=release,
            options=options,
            also_tags=also_tags or (),
            annotations={key: value for key, _, value in pairs},
            progress=update,
        )
    if digest_file:
        with atomic_file(digest_file) as sink:
            sink.write(pushed.index_digest.encode() + b"\n")
    if as_json:
        report = {
            "reference": str(pushed.reference),
            "digest": pushed.index_digest,
            "tags": pushed.tags,
            "signed": pushed.signed,
            "size": pushed.size,
            "chips": [
                {
                    "chip": c.target,
                    "manifest": c.manifest_digest,
                    "config": c.config_digest,
                    "release": c.release_digest,
                }
                for c in pushed.chips
            ],
        }
        typer.echo(json.dumps(report, sort_keys=True))
        return
    _err(f"{len(pushed.chips)} chips, {pushed.size} bytes, tags: {', '.join(pushed.tags) or 'none'}")
    typer.echo(str(pushed.reference))


def _options(
    where: Reference,
    plain_http: bool,
    ca_file: Path | None,
    trust_host: list[str] | None,
    username: str | None,
    password_stdin: bool,
    registry_config: Path | None,
) -> ClientOptions:
    if (username is None) == password_stdin:
        raise typer.BadParameter("--username and --password-stdin belong together")
    explicit = {}
    if username is not None:
        explicit[where.host] = Credential(username, sys.stdin.readline().rstrip("\r\n"))
    if ca_file:
        _read(ca_file)
    home = Path.home() if os.environ.get("HOME") else None
    return ClientOptions(
        credentials=load_credentials(os.environ, home=home, file=registry_config, explicit=explicit),
        plain_http=plain_http,
        ca_file=ca_file,
        trusted_hosts=frozenset(host.lower() for host in trust_host or ()),
    )


def _trusted(paths: list[Path] | None) -> list[TrustedKey]:
    if not paths:
        raise typer.BadParameter("name the trusted public keys: --key FILE")
    return [load_trusted_key(_read(path), path.name) for path in paths]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(1024 * 1024)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror or error}") from None


def _describe(chip: ChipArtifact) -> dict[str, Any]:
    statement = chip.release_statement
    return {
        "chip": chip.target,
        "manifest": chip.manifest_digest,
        "config": json.loads(dumps(chip.config)),
        "configDigest": chip.config_digest,
        "layers": [{"title": layer.title, "digest": layer.descriptor.digest} for layer in chip.layers],
        "releaseDigest": chip.release_digest,
        "releaseSequence": read_sequence(statement, chip.config) if statement else None,
    }


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def update(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done)

        yield update


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
