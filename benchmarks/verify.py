# SPDX-License-Identifier: Apache-2.0
"""How many verdicts per second, against the bare signature verifications that a verdict cannot do without.

Evidence is a two-layer chain and a token, judged by all rules. The anchor is ``cryptography`` verifying the same three
signatures over the same bytes, keys loaded before. Short runs of both take turns and CPU time is what counts, so that
other load disturbs both alike; a figure is the median over all turns.

1. All rules, no cache: at least 0.35 of the rate of the three bare verifications, ES256 and EdDSA, in CBOR; X.509 and
   ES384 are figures.
2. ES256, no cache: at least 1,500 verdicts per second of CPU (judged on an idle machine).
3. The chain seen before (``ChainCache``): at least 0.5 of one bare verification.
4. Refusals: of mutated evidence, certificates and tokens up to 8 KiB, 99.9 % take at most 5 ms CPU, inputs built to be
   slow all do; inputs of 64 KiB take at most 10 ms.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation import cose, dice_cbor, dice_x509, eat
from attestation.cbor import dumps
from attestation.keys import Alg, PublicKey
from attestation.policy import Algorithm
from attestation.verifier import ChainCache, Context, verify
from benchmarks.common import Report, main, median_ratio
from tests.fuzz.engine import SMALL_BYTES
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Target
from tests.fuzz.targets import targets
from tests.unit.attestation.world import Minted, context, policy

BATCH: Final = 12
RATIO: Final = 0.35
CACHED_RATIO: Final = 0.5
RATE: Final = 1500
SMALL_MS: Final = 5
LARGE_MS: Final = 10
LARGE_BYTES: Final = 64 * 1024


def measure(report: Report) -> None:
    """All figures and bars."""
    turns = 60 if report.smoke else 400
    for alg in Alg:
        for form in ("CBOR", "X.509"):
            _measure_form(report, alg, form, turns)
    _measure_refusals(report, 5 if report.smoke else 50)
    _measure_mutations(report, 3_000 if report.smoke else 100_000)


def _measure_form(report: Report, alg: Alg, form: str, turns: int) -> None:
    device = Minted(alg=alg)
    certificates = device.chain() if form == "CBOR" else device.x509_chain()
    evidence = device.evidence(certificates)
    judged = context(device, policy=policy(device, algorithms=tuple(Algorithm)))
    bare = _bare(device, certificates)
    chains = ChainCache(16)
    _accepted(evidence, judged, chains)

    def cold() -> None:
        verify(evidence, judged)

    def cached() -> None:
        verify(evidence, judged, chains=chains)

    def three() -> None:
        for one in bare:
            one()

    whole = [(_cpu(three), _cpu(cold)) for _ in range(turns)]
    token = [(_cpu(bare[-1]), _cpu(cached)) for _ in range(turns)]
    name = f"{alg.name} {form}"
    rate = 1 / statistics.median(ours for _, ours in whole)
    ratio, cached_ratio = median_ratio(whole), median_ratio(token)
    report.figure(f"{name}, verdicts per CPU second", rate)
    report.figure(f"{name}, verdicts per CPU second, chain seen before", 1 / statistics.median(b for _, b in token))
    if form == "CBOR" and alg in (Alg.ES256, Alg.EDDSA):
        report.bar(f"{name}, of three bare verifications", ratio, ">=", RATIO)
        report.bar(f"{name}, chain seen before, of one bare verification", cached_ratio, ">=", CACHED_RATIO)
    else:
        report.figure(f"{name}, of three bare verifications", ratio)
        report.figure(f"{name}, chain seen before, of one bare verification", cached_ratio)
    if form == "CBOR" and alg is Alg.ES256:
        report.bar(f"{name}, verdicts per CPU second", rate, ">=", RATE, wall_clock=True)


def _accepted(evidence: bytes, judged: Context, chains: ChainCache) -> None:
    verdict = verify(evidence, judged, chains=chains)
    if not verdict.proven_at_tier or len(chains) != 1:
        raise RuntimeError(f"the evidence of the benchmark is refused: {verdict.message}")


def _bare(device: Minted, certificates: list[bytes]) -> list[Callable[[], None]]:
    """The three verifications, with nothing around them; the token's is the last."""
    parse = dice_x509.parse_certificate if certificates[0][0] == dice_x509.FIRST_BYTE else dice_cbor.parse_certificate
    signed: list[cose.Signed] = [parse(certificate).message for certificate in certificates]
    token = cose.parse(
        device.token(), tagging=cose.Tagging.EITHER, protected=eat.PROTECTED_HEADERS, limit=eat.EVIDENCE_LIMIT
    )
    keys = [device.key(name).public_key() for name in ("uds", "boot", "app")]
    return [_verification(message, key) for message, key in zip([*signed, token], keys, strict=True)]


def _verification(message: cose.Signed, key: PublicKey) -> Callable[[], None]:
    data, signature = message.signed_bytes, message.signature
    if isinstance(key, ed25519.Ed25519PublicKey):
        return lambda: key.verify(signature, data)
    half = len(signature) // 2
    encoded = encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
    algorithm = ec.ECDSA(hashes.SHA256() if message.alg is Alg.ES256 else hashes.SHA384())
    return lambda: key.verify(encoded, data, algorithm)


def _measure_refusals(report: Report, times: int) -> None:
    device = Minted()
    judged = context(device)
    slow = {
        "nested arrays": b"\x81" * 4096,
        "many small items": b"\x99\x0f\xf0" + bytes(4080),
        "many keys": dumps([1, bytes(20), [bytes(1)], dumps(dict.fromkeys(range(1000), 0))]),
        "many certificates": dumps([1, bytes(20), [b""] * 400, device.token()]),
        "a wrong last signature": device.evidence(token=device.token(key=device.key("uds"))),
    }
    worst = 0.0
    for evidence in slow.values():
        if verify(evidence, judged).accepted:
            raise RuntimeError("an input that must be refused was accepted")
        worst = max(worst, *(_cpu(lambda evidence=evidence: verify(evidence, judged), 1) for _ in range(times)))  # type: ignore[misc]
    report.bar("slowest refusal of those built to be slow, CPU ms", worst * 1000, "<=", SMALL_MS)


def _measure_mutations(report: Report, inputs: int) -> None:
    found = [target for name, target in targets().items() if name.startswith("attestation-verdict-")]
    took: list[float] = []
    for target in found:
        supply = Mutator(target.seeds, 1, SMALL_BYTES)
        took += (_seconds(target, supply.next()) for _ in range(inputs // len(found)))
    took.sort()
    report.figure("mutated inputs", len(took))
    report.figure("refusal of a mutated input, median, CPU ms", statistics.median(took) * 1000)
    report.bar("refusal of a mutated input, p99.9, CPU ms", took[int(len(took) * 0.999)] * 1000, "<=", SMALL_MS)
    large = [target.seeds[0] * (LARGE_BYTES // len(target.seeds[0])) for target in found]
    worst = max(_seconds(target, data) for target, data in zip(found, large, strict=True) for _ in range(20))
    report.bar("slowest refusal of 64 KiB, CPU ms", worst * 1000, "<=", LARGE_MS)


def _seconds(target: Target, data: bytes) -> float:
    return _cpu(lambda: target.accepts(data), 1)


def _cpu(run: Callable[[], object], batch: int = BATCH) -> float:
    """CPU seconds of one call, over a batch."""
    begin = time.process_time_ns()
    for _ in range(batch):
        run()
    return (time.process_time_ns() - begin) / batch / 1e9


if __name__ == "__main__":
    sys.exit(main("verify", measure))
