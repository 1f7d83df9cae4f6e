# SPDX-License-Identifier: Apache-2.0
"""``attest policy``: make a policy from an artifact, show, check and compare policies."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from attestation import policy_generate
from attestation.cli.common import (
    AsJson,
    Exit,
    console,
    from_hex,
    json_or,
    measurement,
    policy_from,
    print_json,
    read_input,
    say,
    verb,
)
from attestation.policy import AttestationPolicySpec, RequireMeasured, RootOfTrust, Signer, policy_hash

app = typer.Typer(no_args_is_help=True, help="Policies: make, show, check, compare.")

_REPORT_LIMIT = 8 * 1024 * 1024
PolicyFile = Annotated[str, typer.Argument(metavar="POLICY", help="Policy file, YAML or JSON; - reads stdin.")]


@app.command()
@verb
def generate(
    report: Annotated[
        str, typer.Argument(metavar="REPORT", help="Output of `firmware-pipeline inspect --json`; - reads stdin.")
    ],
    chip: Annotated[list[str] | None, typer.Option(help="Only this chip; repeatable.")] = None,
    base: Annotated[str | None, typer.Option(help="Policy file to start from; it is only added to.")] = None,
    bootloader: Annotated[
        list[str] | None, typer.Option(help="Accepted bootloader: sha256:HEX or sha512:HEX; repeatable.")
    ] = None,
    with_bootloader: Annotated[
        bool, typer.Option("--with-bootloader", help="Accept the bootloader that the artifact holds, too.")
    ] = False,
    authority: Annotated[
        list[str] | None, typer.Option(help="Accepted secure boot authority hash, hex; repeatable.")
    ] = None,
    signer: Annotated[list[str] | None, typer.Option(help="NAME=FILE, a PEM key that must sign; repeatable.")] = None,
    min_root_of_trust: Annotated[RootOfTrust | None, typer.Option(help="Weakest root of trust that counts.")] = None,
    require_measured: Annotated[RequireMeasured | None, typer.Option(help="Which images must be measured.")] = None,
    any_partition_table: Annotated[
        bool, typer.Option("--any-partition-table", help="Do not demand the artifact's partition table.")
    ] = False,
    kind: Annotated[str | None, typer.Option(help="AttestationPolicy: a whole object for a cluster.")] = None,
    name: Annotated[str, typer.Option(help="With --kind: name of the object.")] = "generated",
    as_json: AsJson = False,
) -> None:
    """Make a policy that accepts what an artifact's signed config measures. What it leaves open is said on standard error."""
    if kind not in (None, "AttestationPolicy"):
        raise typer.BadParameter(f"--kind {kind}: only AttestationPolicy is known")
    made = policy_generate.generate(
        policy_generate.InspectReport.read(read_input(report, _REPORT_LIMIT)),
        chips=chip or (),
        base=policy_from(base) if base else None,
        bootloaders=[measurement(value, "--bootloader") for value in bootloader or ()],
        with_bootloader=with_bootloader,
        authorities=[from_hex(value, "--authority") for value in authority or ()],
        signers=[_signer(value) for value in signer or ()],
        min_root_of_trust=min_root_of_trust,
        require_measured=require_measured,
        any_partition_table=any_partition_table,
    )
    content = _plain(made)
    if kind:
        content = {
            "apiVersion": "flashjob.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": content,
        }
    if as_json:
        print_json(content)
    else:
        typer.echo(yaml.safe_dump(content, sort_keys=False, width=200), nl=False)
    for point in policy_generate.weak_points(made):
        say(f"note: {point}")


@app.command()
@verb
def show(policy: PolicyFile, as_json: AsJson = False) -> None:
    """Print a policy with every default written out."""
    content = policy_from(policy).model_dump(mode="json", by_alias=True, exclude_none=True)
    json_or(as_json, content, lambda: typer.echo(yaml.safe_dump(content, sort_keys=False, width=200), nl=False))


@app.command("hash")
@verb
def hash_of(policy: PolicyFile) -> None:
    """Print the hash that verdicts name: equal hashes mean equal judgement, however the files are written."""
    typer.echo(policy_hash(policy_from(policy)).hex())


@app.command()
@verb
def check(policy: PolicyFile, as_json: AsJson = False) -> None:
    """Say whether a policy can be read (exit 0, else 4), and what to know before using it."""
    found = policy_from(policy)
    points = policy_generate.weak_points(found)

    def show() -> None:
        typer.echo(f"valid {policy_hash(found).hex()}")
        for point in points:
            typer.echo(f"note: {point}")

    json_or(as_json, {"valid": True, "policyHash": policy_hash(found).hex(), "notes": points}, show)


@app.command()
@verb
def diff(
    old: Annotated[str, typer.Argument(help="Policy file.")],
    new: Annotated[str, typer.Argument(help="Policy file; - reads stdin.")],
    as_json: AsJson = False,
) -> None:
    """Show where two policies judge differently. Exit 0: they are the same, 1: they differ."""
    found = policy_generate.differences(policy_from(old), policy_from(new))

    def show() -> None:
        table = Table("field", "old", "new")
        for row in found:
            table.add_row(*(Text(cell) for cell in row))
        if found:
            console().print(table)
        else:
            typer.echo("same")

    json_or(as_json, [{"field": name, "old": before, "new": after} for name, before, after in found], show)
    raise typer.Exit(Exit.REJECTED if found else Exit.PROVEN)


def _plain(policy: AttestationPolicySpec) -> dict[str, Any]:
    """What differs from the defaults, and the fields that a reader looks for first."""
    content = json.loads(policy.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True))
    return {"minRootOfTrust": policy.min_root_of_trust.value, **content}


def _signer(value: str) -> Signer:
    name, sign, file = value.partition("=")
    try:
        if not sign:
            raise ValueError("not NAME=FILE")
        return Signer(name=name, public_key=Path(file).read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise typer.BadParameter(f"--signer {value}: {reason}") from error
