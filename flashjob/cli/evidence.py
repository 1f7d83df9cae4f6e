# SPDX-License-Identifier: Apache-2.0
"""`flashjob evidence push`: evidence records beside the artifact whose installation they judged.

1. A record is pushed only if it holds: signature, spelling, hashes, and the index that names it. One that does not ends
   the command, before anything is pushed.
2. It goes to the artifact that it was judged for, by digest; records about others are left out and counted.
3. Each becomes a referrer of the artifact's index, as it is: its signature is its own. Pushing again changes nothing.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from attestation import evidence
from attestation.cli.common import public_key
from attestation.errors import Reject
from attestation.evidence_store import EvidenceStore
from attestation.keys import PublicKey
from firmware_pipeline import api
from firmware_pipeline.attachments import attach, other_file
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.store import ArtifactStore
from flashjob import terminal
from flashjob.errors import FlashJobError
from flashjob.pipeline_reasons import artifact_error
from flashjob.wire.reasons import Reason

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def records() -> None:
    """Keep the evidence of verdicts beside the firmware that they were about."""


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Records, as --evidence-dir keeps them.")],
    reference: Annotated[str, typer.Argument(metavar="REF", help="The artifact: registry reference or OCI layout.")],
    key: Annotated[list[str], typer.Option(help="Public key that signs the records (evidence.pub); repeatable.")],
    every: Annotated[bool, typer.Option("--all", help="Every record, not only the newest of each device.")] = False,
    plain_http: Annotated[bool, typer.Option(help="Speak to the registry without TLS.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Attach the records about an artifact to it, one referrer each.

    Exit codes: 0 all are there now; 1 a record does not hold, none is about this artifact, or the registry refused.
    """
    keys = [public_key(one, "--key") for one in key]
    try:
        where = api.locate(reference)
        options = api.ClientOptions(credentials=load_credentials(os.environ), plain_http=plain_http)
        store = api.open_store(where, options, push=True)
        digest = api.resolve(store, where)
        mine, others = about(EvidenceStore(directory), digest, keys, every=every)
        if not mine:
            raise FlashJobError(
                Reason.EVIDENCE_INVALID,
                f"none of the records in {directory} is about {digest}; {others} are about other artifacts",
                "name the artifact that was flashed: a record's about.artifact says which (attest reappraise --json)",
            )
        attached = push_records(store, digest, mine)
    except Reject as reject:
        step = "push nothing from this directory before you know why: see docs/evidence.md"
        raise FlashJobError(Reason.EVIDENCE_INVALID, str(reject), step) from reject
    except PipelineError as error:
        raise artifact_error(error) from error
    if as_json:
        content = {"artifact": digest, "type": evidence.PAYLOAD_TYPE, "attached": attached, "others": others}
        typer.echo(json.dumps(content, sort_keys=True))
    else:
        terminal.console().print(f"{len(attached)} records attached to {digest}, {others} left out", highlight=False)


def about(
    records: EvidenceStore, digest: str, keys: Sequence[PublicKey], *, every: bool = False
) -> tuple[dict[str, bytes], int]:
    """The records about an artifact (rules 1 and 2).

    Args:
        records: the directory.
        digest: of the artifact's index.
        keys: may have signed records.
        every: all of them, not only the newest of each device.

    Returns:
        (name to envelope, oldest first; how many are about others).

    Raises:
        Reject: a record does not hold.
    """
    chosen: dict[str, tuple[str, bytes]] = {}
    others = 0
    for line in records.lines():
        envelope = records.envelope(line.record)
        record = evidence.read(envelope, keys)
        line.require(record)
        told = record.about
        if told.get("artifact", "").rpartition("@")[2] != digest:
            others += 1
            continue
        chosen[line.record if every else line.device] = (line.record, envelope)
    return dict(chosen.values()), others


def push_records(store: ArtifactStore, digest: str, records: dict[str, bytes]) -> list[str]:
    """Rule 3; the digests of the referrers.

    Raises:
        PipelineError: as the store.
    """
    found = store.get_manifest(digest)
    subject = [Descriptor(media_type=found.media_type, digest=digest, size=len(found.raw))]
    documents = [other_file(data, f"{name}.json", evidence.PAYLOAD_TYPE) for name, data in records.items()]
    return [made for document in documents for made in attach(store, subject, document, None, store.name)]
