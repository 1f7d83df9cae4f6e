# SPDX-License-Identifier: Apache-2.0
"""``attest verify``: does this evidence prove, fresh for this nonce, what an enrolled device runs?

Nothing is remembered: a file may be old, so that its boot counter says nothing about the order of boots.
"""

from dataclasses import replace
from typing import Annotated

import typer

from attestation.cli import judging
from attestation.cli.common import (
    AsJson,
    Trust,
    from_hex,
    json_or,
    measurement,
    now,
    open_trust,
    policy_from,
    verb,
)
from attestation.cli.evidence_file import EvidenceFile, read_evidence
from attestation.verifier import verify as judge


@verb
def command(
    evidence: EvidenceFile,
    nonce: Annotated[str, typer.Option(help="The nonce that the device was asked with, in hex.")],
    trust: Trust = None,
    policy: Annotated[str | None, typer.Option(help="Judge by this policy file, not by the device's own.")] = None,
    expect: Annotated[
        list[str] | None, typer.Option(help="Measurement that must run: sha256:HEX or sha512:HEX.")
    ] = None,
    boot_id: Annotated[list[str] | None, typer.Option(help="Boot id that must run, in hex.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The verdict alone, without the trail.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge evidence: does it prove, fresh for this nonce, what an enrolled device runs?"""
    expected = frozenset(measurement(value, "--expect") for value in expect) if expect else None
    boot_ids = frozenset(from_hex(value, "--boot-id") for value in boot_id) if boot_id else None
    asked = from_hex(nonce, "--nonce")
    rules = policy_from(policy) if policy else None
    data = read_evidence(evidence)
    store = open_trust(trust)
    context = judging.context_for(store, data, asked, now=now(), policy=rules)
    verdict = judge(data, replace(context, expected=expected, boot_ids=boot_ids))
    json_or(as_json, judging.as_json(verdict), lambda: judging.show(verdict, quiet=quiet))
    raise typer.Exit(judging.exit_code(verdict))
