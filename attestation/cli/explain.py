# SPDX-License-Identifier: Apache-2.0
"""``attest explain``: what evidence says, without believing any of it.

A part that cannot be read is shown with the reason, and the other parts all the same; then the exit code is 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from attestation import cose, dice_cbor, dice_chain, eat
from attestation.cli.common import AsJson, Exit, console, json_or, verb
from attestation.cli.evidence_file import EvidenceFile, read_evidence
from attestation.dice_cbor import Certificate, LeafCertificate
from attestation.errors import Code, Reject
from attestation.policy import IdForm, Measurement

UNREADABLE: Final = "unreadable"
"""Instead of its fields: why a part cannot be read."""

C = TypeVar("C", Certificate, LeafCertificate)


@verb
def command(evidence: EvidenceFile, as_json: AsJson = False) -> None:
    """Show what evidence says. Nothing is verified: it may all be a lie. Exit 1: not all of it can be read."""
    content = said(read_evidence(evidence))

    def show() -> None:
        table = Table("what", title="Not verified")
        table.add_column("says", overflow="fold")
        for part, fields in content.items():
            for name, value in fields.items():
                table.add_row(Text(f"{part} {name}"), Text(str(value), "red" if name == UNREADABLE else ""))
        console().print(table)

    json_or(as_json, content, show)
    if any(UNREADABLE in fields for fields in content.values()):
        raise typer.Exit(Exit.REJECTED)


def said(data: bytes) -> dict[str, dict[str, Any]]:
    """Every field of the evidence, by part. Raises Reject where not even the envelope can be read."""
    envelope = eat.parse_evidence(data)
    content: dict[str, dict[str, Any]] = {"evidence": {"bytes": len(data), "anchor id": envelope.anchor_id.hex()}}
    for number, encoded in enumerate(envelope.certificates):
        if number < dice_chain.LAYERS:
            content[f"layer {number}"] = _or_why(partial(_layer, encoded, number))
        else:
            content[f"attestation key {number}"] = _or_why(partial(_leaf, encoded))
    content["token"] = _or_why(partial(_token, envelope.token))
    return content


def _or_why(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except Reject as reject:
        return {UNREADABLE: str(reject)}


def _in_its_form(parse: Callable[..., C], data: bytes) -> tuple[C, IdForm]:
    """The certificate, and which form of key its ids are made from."""
    try:
        return parse(data, algs=cose.ALL_ALGS, compressed_ids=False), IdForm.UNCOMPRESSED
    except Reject as reject:
        if reject.code is not Code.DICE_SUBJECTID:
            raise
        return parse(data, algs=cose.ALL_ALGS, compressed_ids=True), IdForm.COMPRESSED


def _names(certificate: Certificate | LeafCertificate, form: IdForm) -> dict[str, Any]:
    return {
        "issuer": certificate.issuer.hex(),
        "subject": certificate.subject.hex(),
        "algorithm": certificate.message.alg.name,
        **({"id form": form.value} if form is not IdForm.UNCOMPRESSED else {}),
    }


def _layer(data: bytes, number: int) -> dict[str, Any]:
    certificate, form = _in_its_form(dice_chain.parse_certificate, data)
    layer = {
        **_names(certificate, form),
        "code": Measurement.of_hash(certificate.code_hash).full,
        "authority": certificate.authority_hash.hex(),
        "mode": certificate.mode.value,
    }
    if number == 0:
        boot = dice_cbor.read_bootloader_config(certificate.configuration)
        return {**layer, "name": boot.name, "security version": boot.security_version}
    config = dice_cbor.read_application_config(certificate.configuration)
    return {
        **layer,
        "name": config.name,
        "security version": config.security_version,
        "boot id": config.boot_id.hex(),
        "slot": config.slot,
        "partition table": config.partition_table.hex(),
        "eFuses": f"{config.security_efuses:#010b}",
    }


def _leaf(data: bytes) -> dict[str, Any]:
    return _names(*_in_its_form(dice_chain.parse_leaf, data))


def _token(data: bytes) -> dict[str, Any]:
    message = cose.parse(
        data, tagging=cose.Tagging.EITHER, protected=eat.PROTECTED_HEADERS, unprotected=eat.UNPROTECTED_HEADERS
    )
    token = eat.read_token(eat.decode_claims(message.payload))
    return {
        "nonce": token.nonce.hex(),
        "ueid": token.ueid.hex(),
        "software": f"{token.name} {token.version}",
        "model": token.hwmodel.decode("latin-1").encode("unicode_escape").decode("ascii"),
        "debug": token.debug_status.value,
        "slot state": token.slot_state.name,
        "boot": token.boot_count,
        "fence": token.fence,
        "owner keys": [key.hex() for key in token.owner_keys],
        "data images": {label: value.full for label, value in token.data_images.items()},
        "addresses": list(token.addresses),
    }
