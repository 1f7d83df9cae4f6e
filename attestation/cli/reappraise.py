# SPDX-License-Identifier: Apache-2.0
"""``attest reappraise``: which devices would fail under another policy? Offline, from recorded evidence."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from attestation.cli.common import AsJson, Exit, console, default_trust, iso, json_or, policy_from, public_key, verb
from attestation.errors import Reject
from attestation.evidence_store import EvidenceStore, Line
from attestation.policy import AttestationPolicySpec, policy_hash
from attestation.reappraisal import Outcome, Reappraisal, reappraise

_STYLE: Final = {Outcome.HOLDS: "green", Outcome.MENDS: "green", Outcome.STILL_FAILS: "yellow"}
_WORDS: Final = {
    Outcome.UNREADABLE: "cannot be read",
    Outcome.FAILS: "would fail",
    Outcome.STILL_FAILS: "failed then and still would",
    Outcome.MENDS: "would mend",
    Outcome.HOLDS: "would hold",
}
_ORDER: Final = tuple(_WORDS)


@verb
def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of evidence records.")],
    policy: Annotated[str, typer.Option(help="The new policy, file; - reads stdin.")],
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Public key that may have signed the records; repeatable. Default: evidence.pub of the trust."
        ),
    ] = None,
    trust: Annotated[Path | None, typer.Option(help="Trust directory.", show_default="user data directory")] = None,
    device: Annotated[str | None, typer.Option(help="Only the device whose id begins so.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every record, not only the newest of each device.")] = False,
    policy_only: Annotated[
        bool,
        typer.Option(
            "--policy-only", help="An application counts only if the policy names it, not as confirmed or pinned then."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge recorded evidence under another policy, as of its own time.

    The newest record of each device is judged; that none was changed or taken away is checked for all of them.

    Exit codes: 0 every device would still be accepted; 1 some would fail, or fail still; 4 a record does not hold, or
    directory, key or policy cannot be used.
    """
    named = key or [str((trust or default_trust()) / "evidence.pub")]
    accepted = [public_key(one, "--key") for one in named]
    rules = policy_from(policy)
    store = EvidenceStore(directory)
    lines = [line for line in store.lines() if device is None or line.device.startswith(device.lower())]
    if not lines:
        raise typer.BadParameter(f"{store.root} has no record{' of that device' if device else ''}")
    chosen = lines if every else _newest(lines)
    found = [(line, _again(store, line, accepted, rules, policy_only)) for line in chosen]
    older = set(lines).difference(chosen)
    found += [(line, why) for line in lines if line in older and (why := _spoilt(store, line)) is not None]
    content = {
        "policyHash": policy_hash(rules).hex(),
        "head": store.head(),
        "devices": [_as_json(line, result) for line, result in found],
        "counts": {outcome.value: sum(result.outcome is outcome for _, result in found) for outcome in Outcome},
    }
    json_or(as_json, content, lambda: _show(found))
    outcomes = {result.outcome for _, result in found}
    if Outcome.UNREADABLE in outcomes:
        raise typer.Exit(Exit.TRUST)
    raise typer.Exit(Exit.REJECTED if outcomes & {Outcome.FAILS, Outcome.STILL_FAILS} else Exit.PROVEN)


def _newest(lines: list[Line]) -> list[Line]:
    newest = {line.device: line for line in lines}
    return [newest[one] for one in sorted(newest)]


def _again(
    store: EvidenceStore, line: Line, accepted: list[Any], policy: AttestationPolicySpec, policy_only: bool
) -> Reappraisal:
    try:
        result = reappraise(store.envelope(line.record), accepted, policy, policy_only=policy_only)
        if result.record is not None:
            line.require(result.record)
    except Reject as reject:
        return Reappraisal.unreadable(reject)
    return result


def _spoilt(store: EvidenceStore, line: Line) -> Reappraisal | None:
    """What is wrong with a record that is not judged here; None where its hash is that of its name."""
    try:
        store.envelope(line.record)
    except Reject as reject:
        return Reappraisal.unreadable(reject)
    return None


def _as_json(line: Line, result: Reappraisal) -> dict[str, Any]:
    return {
        "device": line.device,
        "record": line.record,
        "at": iso(line.at),
        "outcome": result.outcome,
        "code": result.code,
        "message": result.message,
        "about": dict(result.record.about) if result.record else {},
    }


def _show(found: list[tuple[Line, Reappraisal]]) -> None:
    """What needs somebody first; one line for each device, which a terminal may wrap and a program may cut."""
    out = console(soft_wrap=True)
    for line, result in sorted(found, key=lambda one: _ORDER.index(one[1].outcome)):
        claims = result.verdict.claims if result.verdict else None
        runs = f"  {claims.application} {claims.version}" if claims else ""
        why = ": ".join(part for part in (result.code, result.message) if part)
        style = _STYLE.get(result.outcome, "bold red")
        said = f"  {line.device[:16]}  {iso(line.at)}{runs}{'  ' if why else ''}{why}"
        out.print(Text(f"{result.outcome.value:11}", style), Text(said), sep="")
    count = Counter(result.outcome for _, result in found)
    told = ", ".join(f"{count[outcome]} {words}" for outcome, words in _WORDS.items() if count[outcome])
    out.print(Text(f"of {len(found)}: {told}"))
