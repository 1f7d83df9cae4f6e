# SPDX-License-Identifier: Apache-2.0
"""``attest explain``: what evidence says, without believing any of it."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attestation import cose, dice_cbor, dice_chain, eat
from attestation.cli.common import AsJson, json_or, read_input, verb
from attestation.cli.verify import EvidenceFile
from attestation.policy import Measurement


@verb
def command(evidence: EvidenceFile, as_json: AsJson = False) -> None:
    """Show what evidence says. Nothing is verified: it may all be a lie."""
    content = said(read_input(evidence, eat.EVIDENCE_LIMIT))

    def show() -> None:
        table = Table("what", "says", title="Not verified")
        for part, fields in content.items():
            for name, value in fields.items():
                table.add_row(Text(f"{part} {name}"), Text(str(value)))
        Console().print(table)

    json_or(as_json, content, show)


def said(data: bytes) -> dict[str, dict[str, Any]]:
    """Every field of the evidence, by part. Raises Reject where it cannot be read."""
    envelope = eat.parse_evidence(data)
    content: dict[str, dict[str, Any]] = {"evidence": {"bytes": len(data), "anchor id": envelope.anchor_id.hex()}}
    for number, encoded in enumerate(envelope.certificates):
        certificate = dice_chain.parse_certificate(encoded, algs=cose.ALL_ALGS)
        layer: dict[str, Any] = {
            "issuer": certificate.issuer.hex(),
            "subject": certificate.subject.hex(),
            "algorithm": certificate.message.alg.name,
            "code": Measurement.of_hash(certificate.code_hash).full,
            "authority": certificate.authority_hash.hex(),
            "mode": certificate.mode.value,
        }
        if number == 0:
            layer["name"] = dice_cbor.read_bootloader_config(certificate.configuration).name
        else:
            config = dice_cbor.read_application_config(certificate.configuration)
            layer |= {"name": config.name, "security version": config.security_version}
            layer |= {"boot id": config.boot_id.hex(), "slot": config.slot}
            layer |= {"partition table": config.partition_table.hex(), "eFuses": f"{config.security_efuses:#010b}"}
        content[f"layer {number}"] = layer
    message = cose.parse(
        envelope.token,
        tagging=cose.Tagging.EITHER,
        protected=eat.PROTECTED_HEADERS,
        unprotected=eat.UNPROTECTED_HEADERS,
    )
    token = eat.read_token(eat.decode_claims(message.payload))
    content["token"] = {
        "nonce": token.nonce.hex(),
        "ueid": token.ueid.hex(),
        "software": f"{token.name} {token.version}",
        "model": token.hwmodel.decode("ascii", "backslashreplace"),
        "debug": token.debug_status.value,
        "slot state": token.slot_state.name,
        "boot": token.boot_count,
        "fence": token.fence,
        "owner keys": [key.hex() for key in token.owner_keys],
        "data images": {label: value.full for label, value in token.data_images.items()},
        "addresses": list(token.addresses),
    }
    return content
