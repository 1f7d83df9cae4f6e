# SPDX-License-Identifier: Apache-2.0
"""Every target over mutated inputs: a taste in `make test`, the numbers of the promise in `make test-all`.

100,000 inputs for each parser of firmware_pipeline, 1,000,000 for the verdict (tokens, certificates, keys, evidence), and
25,000 for each other parser of attestation. One process each, two at a time.
"""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import cose
from attestation.cbor import strict_loads
from attestation.errors import Reject

from . import cbor_tree, tlv_tree
from .engine import Finding, allowed_seconds, run
from .mutation import Mutator
from .target import Accepted, Target
from .targets import targets

ROOT = Path(__file__).parents[2]
TASTE = 150
NAMES = sorted(targets())
VERDICTS = [name for name in NAMES if name.startswith("attestation-verdict-")]


def planned(name: str) -> int:
    """Inputs in `make test-all`."""
    if name.startswith("firmware-"):
        return 100_000
    return 1_000_000 // len(VERDICTS) if name in VERDICTS else 25_000


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_accepted(name: str) -> None:
    """Else the mutations would start from refusals and find nothing. Some seeds are another device's, on purpose."""
    target = targets()[name]
    assert target.accepts(target.seeds[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_taste_of_every_target(name: str) -> None:
    tally = run(targets()[name], TASTE)
    assert tally.inputs == TASTE
    assert tally.slow == []
    assert tally.accepted < TASTE, "nothing was refused: the target does not look"


FOUND = {
    "a login that is not ASCII": ("firmware-docker-config", '{"auths": {"h": {"auth": "dXNlcjpwYXNzé"}}}'.encode()),
    "an X.509 version that there is not": (
        "attestation-vendor-certificate",
        targets()["attestation-vendor-certificate"].seeds[0].replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a"),
    ),
}
"""What fuzzing found: each raised something else than the target's own refusal."""


@pytest.mark.parametrize(("name", "data"), FOUND.values(), ids=FOUND)
def test_what_was_found_is_refused_now(name: str, data: bytes) -> None:
    assert data not in targets()[name].seeds
    assert not targets()[name].accepts(data)


def _jobs() -> Iterator[tuple[str, int]]:
    for name in sorted(NAMES, key=planned, reverse=True):
        yield name, planned(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_promised_number_of_inputs() -> None:
    def in_a_process(job: tuple[str, int]) -> str:
        command = [sys.executable, "-m", "tests.fuzz", job[0], "--inputs", str(job[1]), "--engine", "builtin"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else f"{job[0]}: {done.stdout}{done.stderr}"

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(in_a_process, _jobs()) if found] == []
    assert sum(count for name, count in _jobs() if name in VERDICTS) == 1_000_000


# --- the engine itself: a fuzzer that finds nothing must be able to find something ------------------------------------


def test_an_exception_of_another_kind_is_a_finding() -> None:
    def careless(raw: bytes) -> None:
        if len(raw) < 40:
            raise IndexError("out of range")

    with pytest.raises(Finding, match="IndexError"):
        run(Target("careless", careless, (Reject,), (bytes(64),)), 500)


def test_a_belief_without_a_signature_is_a_finding() -> None:
    """A verifier that forgets the signature is found within a taste."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    seed = cose.sign(b"payload", key)

    def forgetful(raw: bytes) -> None:
        cose.parse(raw)
        if raw != seed:
            raise Accepted("believed")

    with pytest.raises(Finding, match="Accepted"):
        run(Target("forgetful", forgetful, (Reject,), (seed,)), TASTE)


def test_a_slow_input_is_told() -> None:
    def slow(raw: bytes) -> None:
        if raw == b"slow":
            sum(range(3_000_000))

    tally = run(Target("slow", slow, (), (b"slow",)), 300)
    assert all(data == b"slow" for _, data in tally.slow)
    assert allowed_seconds(8192) == 0.005
    assert allowed_seconds(65536) == pytest.approx(0.015)


def test_a_supply_repeats_itself_and_another_number_is_another_supply() -> None:
    seeds = targets()["attestation-cose-key"].seeds

    def first(number: int) -> list[bytes]:
        supply = Mutator(seeds, number)
        return [supply.next() for _ in range(200)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert len(set(first(1))) > 150


def test_an_input_of_any_kind_can_be_varied() -> None:
    """A guided engine comes with whatever it has grown: CBOR for a target whose seeds are DER, and the reverse."""
    inputs = [targets()[name].seeds[0] for name in ("attestation-certificate", "attestation-x509-certificate")]
    for seeds in inputs:
        supply = Mutator((seeds,), 0)
        for data in (*inputs, b"", b"{}", b"\x30\x00"):
            assert {supply.vary(data, number) for number in range(100)} - {data}
            assert supply.vary(data, 7) == supply.vary(data, 7)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("attestation-") and "serial" not in name])
def test_a_tree_writes_what_it_read(name: str) -> None:
    for seed in targets()[name].seeds:
        for tree in (cbor_tree.parse(seed), tlv_tree.parse(seed)):
            assert tree is None or tree.encode() == seed


def test_bent_trees_keep_the_lengths_around_them() -> None:
    """Most mutations deep inside a message still are one CBOR item, so that they get past the reader."""
    seed = targets()["attestation-certificate"].seeds[0]
    tree = cbor_tree.parse(seed)
    assert tree is not None
    random, good = Random(3), 0
    for _ in range(400):
        try:
            strict_loads(tree.bend(tree, random))
        except Reject:
            continue
        good += 1
    assert good > 120
