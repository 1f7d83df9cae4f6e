# SPDX-License-Identifier: Apache-2.0
"""`firmware-pipeline inspect --json REF | attest policy generate -`: a policy that nobody copied a hash into, and what it judges."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.anchors import DeviceAnchor
from attestation.directory import parse_policy
from attestation.policy import AttestationPolicySpec, DebugStatus, RootOfTrust
from attestation.verifier import Context, ExactNonce, Verdict, verify
from firmware_pipeline import api
from firmware_pipeline.inputs.files import load_files
from flashjob.virtual import secure_boot
from tests.unit.virtual.workbench import NONCE, Bench, bootloader, image

PROGRAMS = Path(sys.executable).parent
CHIP = "esp32s3"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> AttestationPolicySpec:
    """From an artifact of bootloader, partition table and version 2.0, through the pipe that users type."""
    folder = tmp_path_factory.mktemp("artifact")
    bench = Bench()
    table = bench.flash.read(bench.identity.hardware.table_offset, 0xC00)
    files = []
    for offset, name, data in (
        (0, "bootloader", bootloader(CHIP)),
        (0x8000, "table", table),
        (0x20000, "app", image("2.0")),
    ):
        (folder / f"{name}.bin").write_bytes(data)
        files.append(f"{offset:#x}={folder / name}.bin")
    reference = f"oci:{folder / 'layout'}:2.0"
    release = api.Release(ec.derive_private_key(5, ec.SECP256R1()), 2)
    api.push([load_files(files, chip=CHIP)], reference, signer=None, release=release)
    trusted = hashlib.sha512(secure_boot.key_digest(secure_boot.maker_key(b"test").public_key())).hexdigest()
    inspect = subprocess.Popen([PROGRAMS / "firmware-pipeline", "inspect", "--json", reference], stdout=subprocess.PIPE)
    generate = subprocess.run(
        [PROGRAMS / "attest", "policy", "generate", "-", "--with-bootloader", "--authority", trusted],
        stdin=inspect.stdout, capture_output=True, check=False,
    )  # fmt: skip
    assert inspect.wait(30) == 0
    assert generate.returncode == 0, generate.stderr.decode()
    assert b"no required signers" in generate.stderr, "what it leaves open is said"
    made = parse_policy(generate.stdout, "generated")
    return made.model_copy(update={"debug_status": tuple(DebugStatus)})


def judged(bench: Bench, policy: AttestationPolicySpec) -> Verdict:
    device = DeviceAnchor(bench.identity.ueid, bench.identity.anchor, RootOfTrust.SIGNED_BOOT, "generated")
    return verify(bench.evidence(), Context(device=device, policy=policy, nonce=ExactNonce(NONCE), now=0))


def test_a_device_that_runs_the_artifact_is_accepted(policy: AttestationPolicySpec) -> None:
    verdict = judged(Bench(first=image("2.0")), policy)
    assert verdict.proven_at_tier, verdict.message


def test_another_version_name_or_partition_table_is_not(policy: AttestationPolicySpec) -> None:
    assert str(judged(Bench(first=image("1.0")), policy).code) == "ref.code"
    assert policy.application.names == ("porch",)
    (table,) = policy.partition_tables
    other = policy.model_copy(update={"partition_tables": (table[::-1],)})
    assert str(judged(Bench(first=image("2.0")), other).code) == "ref.partitions"
