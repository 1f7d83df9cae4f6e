# SPDX-License-Identifier: Apache-2.0
"""Evidence records as referrers of the artifact that they are about: in a layout and in a registry."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from attestation import evidence, keys
from attestation.evidence_store import EvidenceStore
from attestation.keys import Alg
from attestation.verifier import verify
from firmware_pipeline import api
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.oci import Descriptor
from flashjob.cli.evidence import app
from flashjob.errors import FlashJobError
from tests.unit.attestation.world import NOW, Minted, context, private_key
from tests.unit.firmware import builds
from tests.unit.firmware.hostile_registry import HostileRegistry

KEY = private_key(Alg.ES256, b"records")
OPTIONS = api.ClientOptions(plain_http=True)


@pytest.fixture(params=["layout", "registry"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "layout":
        yield f"oci:{tmp_path / 'layout'}"
        return
    with HostileRegistry() as server:
        yield f"{server.host}/porch"


def artifact(folder: Path, repository: str, version: str = "2.0.0") -> tuple[str, str]:
    """Push one; (reference, digest)."""
    place = folder / version
    place.mkdir()
    plan = builds.plan(place, "esp32c3", app=build_app("esp32c3", "porch", version, payload_size=builds.PAYLOAD))
    release = api.Release(ec.derive_private_key(5, ec.SECP256R1()), 2)
    reference = f"{repository}:{version}"
    return reference, api.push([plan], reference, signer=None, release=release, options=OPTIONS).index_digest


def keep(root: Path, digest: str, device: str = "one", at: int = NOW) -> None:
    phone = Minted(seed=device.encode(), nonce=bytes(32))
    told = context(phone, nonce=bytes(32), now=at)
    data = phone.evidence()
    about = {"artifact": f"registry.example/porch@{digest}"}
    made = evidence.record(data, told, verify(data, told), verifier="test", about=about)
    assert made is not None
    EvidenceStore(root, create=True).add(made, KEY)


def referrers(reference: str, digest: str) -> list[bytes]:
    """What is attached of our type, content of each."""
    store = api.open_store(reference, OPTIONS)
    found = [store.get_manifest(entry.digest) for entry in store.referrers(digest)]
    said = [json.loads(manifest.raw) for manifest in found]
    mine = [one for one in said if one.get("artifactType") == evidence.PAYLOAD_TYPE]
    assert all(one["subject"]["digest"] == digest for one in mine)
    return [
        store.read_blob(Descriptor.model_validate_json(json.dumps(one["layers"][0])), max_bytes=1 << 20) for one in mine
    ]


def run(folder: Path, reference: str, *more: str) -> Result:
    public = folder / "evidence.pub"
    public.write_text(keys.to_pem(KEY.public_key()))
    arguments = ["push", str(folder / "records"), reference, "--key", str(public), "--plain-http", *more]
    return CliRunner().invoke(app, arguments)


def test_3_records_become_referrers_and_again_changes_nothing(tmp_path: Path, repository: str) -> None:
    reference, digest = artifact(tmp_path, repository)
    for device in ("one", "two"):
        keep(tmp_path / "records", digest, device)
    said = json.loads(run(tmp_path, reference, "--json").stdout)
    assert (said["artifact"], len(said["attached"]), said["others"]) == (digest, 2, 0)
    attached = referrers(reference, digest)
    assert {evidence.read(one, [KEY.public_key()]).id for one in attached} == {
        Minted(seed=device).ueid.hex() for device in (b"one", b"two")
    }
    assert json.loads(run(tmp_path, reference, "--json").stdout) == said
    assert sorted(referrers(reference, digest)) == sorted(attached)


def test_2_records_about_others_are_left_out(tmp_path: Path, repository: str) -> None:
    reference, digest = artifact(tmp_path, repository)
    keep(tmp_path / "records", "sha256:" + "0" * 64, "one")
    nothing = run(tmp_path, reference)
    assert isinstance(nothing.exception, FlashJobError)
    assert "1 are about other artifacts" in nothing.exception.message
    keep(tmp_path / "records", digest, "two")
    assert "1 records attached" in run(tmp_path, reference).stdout


def test_2_the_newest_of_each_device_or_all(tmp_path: Path, repository: str) -> None:
    reference, digest = artifact(tmp_path, repository)
    for at in (NOW, NOW + 60):
        keep(tmp_path / "records", digest, at=at)
    assert len(json.loads(run(tmp_path, reference, "--json").stdout)["attached"]) == 1
    assert [evidence.read(one, [KEY.public_key()]).at for one in referrers(reference, digest)] == [NOW + 60]
    assert len(json.loads(run(tmp_path, reference, "--json", "--all").stdout)["attached"]) == 2


def test_1_one_flipped_bit_and_nothing_is_pushed(tmp_path: Path, repository: str) -> None:
    reference, digest = artifact(tmp_path, repository)
    for device in ("one", "two"):
        keep(tmp_path / "records", digest, device)
    victim = sorted((tmp_path / "records" / "records").iterdir())[-1]
    victim.write_bytes(victim.read_bytes().replace(b"e", b"f", 1))
    refused = run(tmp_path, reference)
    assert isinstance(refused.exception, FlashJobError)
    assert "record.hash" in refused.exception.message
    assert referrers(reference, digest) == []


def test_1_another_key_and_nothing_is_pushed(tmp_path: Path, repository: str) -> None:
    reference, digest = artifact(tmp_path, repository)
    keep(tmp_path / "records", digest)
    foreign = keys.encode_cose(private_key(Alg.ES256, b"foreign").public_key()).hex()
    arguments = ["push", str(tmp_path / "records"), reference, "--key", foreign, "--plain-http"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, FlashJobError)
    assert "record.signature" in refused.exception.message
