# SPDX-License-Identifier: Apache-2.0
"""`verify`: may this artifact be flashed?"""

import json
from typing import Annotated

import typer
from typer import Option

from firmware_pipeline.cli.options import AsJson, Device, Login, Quiet, Ref, Trust
from firmware_pipeline.cli.running import client_options, err, pairs, refuse, trusted_keys, verb
from firmware_pipeline.downgrade import Installed
from firmware_pipeline.exit_codes import CHECK_FAILED
from firmware_pipeline.explanation import Explanation, explain
from firmware_pipeline.opening import locate, open_store, resolve
from firmware_pipeline.signing.policy import VerificationPolicy


@verb
def command(
    reference: Ref,
    login: Login,
    trust: Trust,
    device: Device,
    chip: Annotated[str | None, Option("--chip", help="Look at this chip only (default: all).")] = None,
    layers: Annotated[bool, Option("--layers", help="Fetch and check every image too.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check signatures, index, every chip's manifest, config and release statement; with --layers every image; with
    --device-... that it is no downgrade. Prints the pinned reference if all hold."""
    policy = verification_policy(trust)
    where = locate(reference)
    store = open_store(where, client_options(login, where))
    digest = resolve(store, where)
    facts = (device.device_version, device.device_secure_version, device.device_sequence)
    installed = Installed(facts[1], facts[2], facts[0]) if any(fact is not None for fact in facts) else None
    found = explain(
        store,
        digest,
        policy,
        chip=chip,
        layers=layers,
        owners=trusted_keys(trust.release_key) if trust.release_key else (),
        installed=installed,
        allow_downgrade=device.allow_downgrade,
    )
    pinned = str(where.at(digest))
    if as_json:
        typer.echo(json.dumps(describe(found, pinned), sort_keys=True))
    elif device.explain:
        for check in found.checks:
            err(f"{check.outcome.value:<9}  {check.rule}: {check.message}")
    if found.refusal is not None:
        refuse(found.refusal, CHECK_FAILED)
    if as_json:
        return
    if not quiet and not device.explain:
        err(f"Signed by {', '.join(found.signers)}; chips: {', '.join(found.chips)}.")
    typer.echo(pinned)


def verification_policy(trust: Trust) -> VerificationPolicy:
    """What the options demand.

    Raises:
        PipelineError: KeyMalformed.
    """
    return VerificationPolicy(
        keys=trusted_keys(trust.key),
        threshold=trust.threshold,
        annotations=pairs(trust.require_annotation, "--require-annotation"),
        identity_prefix=trust.identity_prefix,
        sbom=trust.require_sbom,
        provenance=trust.require_provenance,
        builders=frozenset(trust.builder or ()),
    )


def describe(found: Explanation, pinned: str) -> dict[str, object]:
    """The JSON of `verify`; printed for a refusal too."""
    return {
        "reference": pinned,
        "digest": found.digest,
        "accepted": found.refusal is None,
        "signers": found.signers,
        "chips": found.chips,
        "checks": [
            {
                "rule": check.rule,
                "outcome": check.outcome.value,
                "message": check.message,
                **({"reason": check.error.reason.value, "nextStep": check.error.next_step} if check.error else {}),
            }
            for check in found.checks
        ],
    }
