# SPDX-License-Identifier: Apache-2.0
"""``attest enroll``: three ways into the trust directory, and what becomes of a device afterwards."""

import asyncio
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from attestation import enrolment, factory_list, keys, standing, vendor_ca
from attestation.cli.common import (
    AsJson,
    By,
    Exit,
    Trust,
    Why,
    console,
    device_id,
    fail,
    from_hex,
    iso,
    json_or,
    now,
    open_trust,
    print_json,
    public_key,
    read_input,
    verb,
)
from attestation.device_file import DeviceFile
from attestation.device_protocol import NONCE_SIZE
from attestation.directory import TrustDirectory
from attestation.eat import EVIDENCE_LIMIT
from attestation.errors import Code, Reject
from attestation.policy import AttestationPolicySpec, RootOfTrust

app = typer.Typer(no_args_is_help=True, help="Who is trusted: enroll, suspend, release, revoke.")

Policy = Annotated[str, typer.Option(help="Name of the policy in the trust directory that judges the devices.")]
Tier = Annotated[RootOfTrust, typer.Option(help="What their hardware can prove; never changes afterwards.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Device id, or its beginning: 8 digits at least.")]


@app.command("factory-list")
@verb
def from_factory_list(
    file: Annotated[
        str, typer.Argument(metavar="LIST", help="CSV or CBOR of UDS public keys with proofs; - reads stdin.")
    ],
    batch: Annotated[str, typer.Option(help="The batch that the proofs are for.")],
    policy: Policy,
    root_of_trust: Tier,
    by: By,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Enroll every device of a maker's list, or none: each key comes with a proof that it is held."""
    standing.check_who(by)
    store = open_trust(trust, create=True)
    _policy(store, policy)
    listed = factory_list.read(read_input(file, factory_list.LIMIT_BYTES), batch)
    how = {"way": "factory-list", "batch": batch, "by": by, "at": now()}
    specs = [
        enrolment.spec(
            one.key, tier=root_of_trust, policy_name=policy, oemid=one.oemid, hwmodel=one.hwmodel, enrolled=how
        )
        for one in listed
    ]
    _enroll(store, specs, as_json)


@app.command("vendor-ca")
@verb
def from_vendor_ca(
    certificates: Annotated[
        list[str],
        typer.Argument(metavar="CERT...", help="UDS certificates, DER or PEM; a PEM may hold its intermediates."),
    ],
    root: Annotated[list[Path], typer.Option(help="Certificate of the vendor CA that is trusted; repeatable.")],
    policy: Policy,
    root_of_trust: Tier,
    by: By,
    intermediate: Annotated[
        list[Path] | None, typer.Option(help="Certificate between device and root, in this order; repeatable.")
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Enroll every device whose UDS certificate leads to a trusted vendor CA, or none."""
    standing.check_who(by)
    store = open_trust(trust, create=True)
    _policy(store, policy)
    at = now()
    limit = vendor_ca.LIMIT_BYTES * vendor_ca.MOST_CERTIFICATES
    roots = [one for path in root for one in vendor_ca.parse(read_input(str(path), limit))]
    between = [one for path in intermediate or () for one in vendor_ca.parse(read_input(str(path), limit))]
    specs = {}
    for name in certificates:
        try:
            path = vendor_ca.parse(read_input(name, limit))
            key = vendor_ca.device_key([*path, *between] if len(path) == 1 else path, roots, at)
        except Reject as reject:
            raise Reject(reject.code, f"{name}: {reject.message}") from reject
        how = {"way": "vendor-ca", "by": by, "at": at, "serial": f"{path[0].serial_number:x}"}
        spec = enrolment.spec(key, tier=root_of_trust, policy_name=policy, enrolled=how)
        specs[spec["id"]] = spec
    _enroll(store, list(specs.values()), as_json)


@app.command("first-use")
@verb
def first_use(
    anchor: Annotated[
        str, typer.Option(help="Its UDS public key, as it or its maker says: a file, or COSE_Key in hex.")
    ],
    policy: Policy,
    root_of_trust: Tier,
    where: Annotated[
        str | None,
        typer.Argument(metavar="[URL|PORT]", help="Where to ask: HOST:PORT, https://HOST:PORT or a serial port."),
    ] = None,
    evidence: Annotated[str | None, typer.Option(help="Instead of asking: file with its evidence.")] = None,
    nonce: Annotated[str | None, typer.Option(help="With --evidence: the nonce it was asked with, hex.")] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Let a device that nobody vouches for prove its key. It then waits for approval; nothing trusts it yet."""
    if (where is None) == (evidence is None) or (evidence is None) != (nonce is None):
        raise typer.BadParameter("give either URL|PORT, or --evidence together with --nonce")
    key = public_key(anchor, "--anchor")
    store = open_trust(trust, create=True)
    rules = _policy(store, policy)
    if store.by_ueid(keys.ueid(key)) is not None:
        raise Reject(Code.ENROL_KNOWN, f"{keys.ueid(key).hex()} is enrolled already: it need not wait")
    at = now()
    if where is not None:
        from attestation.cli.ask import answer

        asked = secrets.token_bytes(NONCE_SIZE)
        data = asyncio.run(answer(where, asked))
    else:
        asked, data = from_hex(nonce or "", "--nonce"), read_input(evidence or "", EVIDENCE_LIMIT)
    pending = enrolment.first_use(
        data,
        key,
        tier=root_of_trust,
        policy_name=policy,
        policy=rules,
        nonce=asked,
        now=at,
        seen_from=where or "a file",
    )
    store.write_pending(pending.id, pending.to_json())

    def show() -> None:
        typer.echo(f"waits for approval: {pending.id}")
        typer.echo(f"  runs {pending.application}, {pending.measurement[:19]}...; nothing trusts it yet")
        typer.echo(
            f"  compare the id with the device itself, then: attest enroll approve {pending.id[:16]} --by NAME --reason TEXT"
        )

    json_or(as_json, {"pending": pending.id, "application": pending.application}, show)


@app.command()
@verb
def pending(trust: Trust = None, as_json: AsJson = False) -> None:
    """List the devices that wait for approval."""
    store = open_trust(trust)
    found = [_waiting(store, name) for name in store.pending_ids()]

    def show() -> None:
        for one in found:
            typer.echo(one.id)
            typer.echo(f"  {one.root_of_trust}, runs {one.application}, seen {iso(one.seen_at)} from {one.seen_from}")

    json_or(
        as_json,
        [one.model_dump(mode="json", by_alias=True, exclude={"cose_key", "evidence_sha256"}) for one in found],
        show,
    )


@app.command()
@verb
def approve(name: Id, by: By, reason: Why, trust: Trust = None, as_json: AsJson = False) -> None:
    """Enroll a device that waits, in a person's name, after its id was compared with the device itself."""
    store = open_trust(trust)
    one = _waiting(store, device_id(store, name, store.pending_ids()).hex())
    standing.check_who_and_why(by, reason)
    how = {"way": "first-use", "by": by, "reason": reason, "at": now(), "seenAt": one.seen_at}
    _enroll(store, [enrolment.spec(one.key, tier=one.root_of_trust, policy_name=one.policy, enrolled=how)], as_json)
    store.write_pending(one.id, None)


@app.command()
@verb
def deny(name: Id, trust: Trust = None) -> None:
    """Forget a device that waits for approval."""
    store = open_trust(trust)
    found = device_id(store, name, store.pending_ids()).hex()
    store.write_pending(found, None)
    typer.echo(f"forgotten: {found}")


@app.command("list")
@verb
def list_devices(trust: Trust = None, as_json: AsJson = False) -> None:
    """List the enrolled devices and how they stand."""
    store = open_trust(trust)
    rows = [_row(store, ueid) for ueid in store.ids()]

    def show() -> None:
        for row in rows:
            last = row["history"][-1] if row["history"] else None
            since = f" since {iso(last['at'])} by {last['by']}: {last['reason']}" if last else ""
            line = f"{row['id']}  {row['rootOfTrust']}  {row['policy']}  "
            style = "" if row["standing"] == standing.Standing.ACTIVE else "bold red"
            console(soft_wrap=True).print(Text(line), Text(row["standing"], style), Text(since), sep="")

    json_or(as_json, rows, show)


@app.command()
@verb
def show(name: Id, trust: Trust = None) -> None:
    """Print all that is known of one device, as JSON."""
    store = open_trust(trust)
    print_json(dict(store.device(device_id(store, name)) or {}))


@app.command()
@verb
def suspend(name: Id, by: By, reason: Why, trust: Trust = None) -> None:
    """Stop believing a device until it is released."""
    _change(name, standing.Verb.SUSPEND, by, reason, trust)


@app.command()
@verb
def quarantine(name: Id, by: By, reason: Why, trust: Trust = None) -> None:
    """Withhold an active device whose evidence gave trouble, until it is released."""
    _change(name, standing.Verb.QUARANTINE, by, reason, trust)


@app.command()
@verb
def release(name: Id, by: By, reason: Why, trust: Trust = None) -> None:
    """Believe a suspended or quarantined device again."""
    _change(name, standing.Verb.RELEASE, by, reason, trust)


@app.command()
@verb
def revoke(name: Id, by: By, reason: Why, trust: Trust = None) -> None:
    """Never believe a device again. Final."""
    _change(name, standing.Verb.REVOKE, by, reason, trust)


@app.command()
@verb
def reindex(trust: Trust = None) -> None:
    """Find devices by their chain's anchor again, after files were copied into the trust directory by hand."""
    typer.echo(f"{open_trust(trust).index_again()} devices")


def _change(name: str, what: standing.Verb, by: str, reason: str, trust: Path | None) -> None:
    store = open_trust(trust)
    ueid = device_id(store, name)
    became = store.change_standing(ueid, what, by=by, reason=reason, at=now())
    typer.echo(f"{ueid.hex()} is {became} now")


def _policy(store: TrustDirectory, name: str) -> AttestationPolicySpec:
    found = store.policy(name)
    if found is None:
        fail(f"policy.missing: {store.root} has no policy {name}: write policies/{name}.yaml first", Exit.TRUST)
    return found


def _enroll(store: TrustDirectory, specs: list[dict[str, Any]], as_json: bool) -> None:
    fresh: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    for spec in specs:
        found = store.file(bytes.fromhex(spec["id"]))
        if found is not None:
            enrolment.check_same(found.spec, DeviceFile.of({"spec": spec}, spec["id"]).spec)
        (fresh if found is None else known).append(spec)
    for spec in fresh:
        store.enroll(spec)
    content = {"enrolled": [spec["id"] for spec in fresh], "known": [spec["id"] for spec in known]}
    show = f"{len(fresh)} enrolled now, {len(known)} enrolled already"
    json_or(as_json, content, lambda: typer.echo(show))


def _waiting(store: TrustDirectory, name: str) -> enrolment.Pending:
    data = store.pending(name)
    if data is None:
        raise Reject(Code.ENROL_PENDING, f"no device {name} waits for approval")
    found = enrolment.Pending.read(data)
    if found.id != name:
        raise Reject(Code.ENROL_PENDING, f"pending/{name}.json is about {found.id}")
    return found


def _row(store: TrustDirectory, ueid: bytes) -> dict[str, Any]:
    spec, history = (store.device(ueid) or {})["spec"], store.history(ueid)
    suspended = " (spec.suspended)" if spec.get("suspended") else ""
    return {
        "id": ueid.hex(),
        "rootOfTrust": spec.get("rootOfTrust", "SelfReported"),
        "policy": spec["policyRef"]["name"],
        "standing": standing.current(history).value + suspended,
        "history": [
            {"standing": one.standing.value, "by": one.by, "reason": one.reason, "at": one.at} for one in history
        ],
    }
