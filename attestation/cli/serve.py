# SPDX-License-Identifier: Apache-2.0
"""``attest serve``: the verifier as an HTTP service for relying parties."""

import asyncio
import logging
import math
import os
import signal
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from attestation.cli.common import Trust, open_trust, say, verb
from attestation.directory import TrustDirectory
from attestation.evidence_store import EvidenceStore, verifier_build

if TYPE_CHECKING:
    from attestation.service.judge import Judge, Records

DEFAULT_LISTEN: Final = "127.0.0.1:8643"
CHAINS: Final = 10_000


@verb
def command(
    nonce_keys: Annotated[
        Path, typer.Option(help="Directory of nonce keys: files named 0 to 255, the highest is used.")
    ],
    ear_key: Annotated[Path, typer.Option(help="PEM private key that signs results, P-256 or Ed25519.")],
    ear_public: Annotated[
        list[Path] | None, typer.Option(help="PEM public key to publish too: the next one, or the last. Repeatable.")
    ] = None,
    trust: Trust = None,
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT.")] = DEFAULT_LISTEN,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    used_nonces: Annotated[
        Path | None, typer.Option(help="Directory of used nonces that all replicas share; default: this one's memory.")
    ] = None,
    audit_log: Annotated[Path | None, typer.Option(help="Append one JSON line per result; SIGHUP reopens.")] = None,
    evidence_dir: Annotated[
        Path | None, typer.Option(help="Keep a signed record of each judged evidence here.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Verdicts per second and device; 0: no limit.")] = 10.0,
    queue: Annotated[int, typer.Option(min=0, max=100_000, help="Most verdicts that wait.")] = 256,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Threads for verdicts.", show_default="1; one per core with --evidence-dir"),
    ] = None,
) -> None:
    """Serve nonces and signed results over HTTP. SIGTERM drains, SIGHUP reads keys again and reopens the audit log.

    Exit codes: 0 ended by SIGTERM; 2 wrong usage, also an address that cannot be listened at; 4 trust directory or a key
    cannot be used; 130 interrupted.
    """
    host, sign, port = listen.rpartition(":")
    if not sign or not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"--listen {listen} is not ADDRESS:PORT")
    if not math.isfinite(rate):
        raise typer.BadParameter(f"--rate {rate} is not a number of verdicts")
    try:
        from attestation.service import app, server
        from attestation.service.keyring import KeyFiles
        from attestation.service.metrics import Metrics
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"this needs {error.name}: pip install 'flashjob[service]'") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    threads = workers or ((os.cpu_count() or 1) if evidence_dir else 1)  # a record waits for the disk
    limits = app.Limits(rate=rate, queue=queue, workers=threads)
    settings = server.Settings(
        host=host.strip("[]"),
        port=int(port),
        keys=KeyFiles(nonce_keys, ear_key, tuple(ear_public or ())),
        limits=limits,
        tls=_tls(tls_cert, tls_key),
    )
    counts = Metrics()
    judge = _judge(open_trust(trust), used_nonces, audit_log, evidence_dir)
    service = server.Service(settings, judge, counts)
    scheme = "https" if settings.tls else "http"
    try:
        number = asyncio.run(server.serve(service, judge, lambda port: say(f"listening at {scheme}://{host}:{port}")))
    except OSError as error:
        raise typer.BadParameter(f"--listen {listen}: {error.strerror}") from error
    if number == signal.SIGINT:
        raise KeyboardInterrupt


def _judge(store: TrustDirectory, used: Path | None, audit_log: Path | None, evidence_dir: Path | None) -> "Judge":
    from attestation.ear import Verifier
    from attestation.replay import InMemorySingleUse
    from attestation.service import server
    from attestation.service.audit import AuditLog
    from attestation.service.judge import Judge
    from attestation.service.trust import LiveTrust
    from attestation.service.used import DirectorySingleUse
    from attestation.verifier import ChainCache

    shared = DirectorySingleUse(used) if used is not None else None
    if shared is not None:
        shared.prepare()
    return Judge(
        trust=LiveTrust(store),
        single_use=shared or InMemorySingleUse(),
        chains=ChainCache(CHAINS),
        verifier=Verifier("flashjob.dev", verifier_build()),
        clock=time.time,
        began=None if shared is not None else server.begin(time.time()),
        records=_records(store, evidence_dir),
        audit=AuditLog(audit_log) if audit_log is not None else None,
    )


def _records(store: TrustDirectory, folder: Path | None) -> "Records | None":
    from attestation.service.judge import Records

    if folder is None:
        return None
    return Records(EvidenceStore(folder, create=True), store.evidence_key())


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise typer.BadParameter("--tls-cert and --tls-key go together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise typer.BadParameter(f"--tls-cert {cert}, --tls-key {key}: {error}") from error
    return context
