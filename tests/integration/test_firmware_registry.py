# SPDX-License-Identifier: Apache-2.0
"""Push, verify and pull with the real registry, open and with a password."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from firmware_pipeline import api
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.errors import Reason
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.oci import canonical_json
from firmware_pipeline.signing.keys import LocalSigner, TrustedKey
from flashjob.sandbox import programs
from flashjob.sandbox.registry import Login, Registry
from flashjob.sandbox.toolchain import build
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused

pytestmark = pytest.mark.integration
SIGNERS = [LocalSigner(ec.derive_private_key(number, ec.SECP256R1())) for number in (7, 8)]
RELEASE = api.Release(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), 21)


@pytest.fixture(params=[None, Login()], ids=["open", "password"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    binary = build(programs.REGISTRY, os.environ)
    with Registry.start(tmp_path / "registry", binary=binary, login=request.param) as running:
        yield running


def test_a_release_makes_the_round_trip(registry: Registry, tmp_path: Path) -> None:
    config = registry.docker_config(tmp_path / "docker" / "config.json")
    options = ClientOptions(load_credentials({"DOCKER_CONFIG": str(config.parent)}), plain_http=True)
    plans = []
    for chip in ("esp32c3", "esp32s3"):
        (tmp_path / chip).mkdir()
        plans.append(builds.plan(tmp_path / chip, chip))
    where = f"{registry.host}/team/porch:2.1.0"
    pushed = [
        api.push(plans, where, signer=signer, release=RELEASE, options=options, also_tags=["latest"])
        for signer in (*SIGNERS, SIGNERS[0])
    ]
    assert pushed[0] == pushed[1] == pushed[2]

    store = api.open_store(where, options)
    digest = api.resolve(store, f"{registry.host}/team/porch:latest")
    keys = [TrustedKey(f"key{number}", signer.public_key) for number, signer in enumerate(SIGNERS)]
    assert api.verify(store, digest, keys, threshold=2).signers == ("key0", "key1")
    assert len(store.referrers(digest)) == 2
    for plan in plans:
        opened = api.open_chip(store, digest, plan.target)
        fetched = api.fetch_layer(store, opened.app, tmp_path / opened.app.title)
        assert fetched.read_bytes() == plan.app_file.data

    refused(Reason.ReferenceNotFound, lambda: store.resolve("9.9"))
    if registry.login:
        anonymous = api.open_store(where, ClientOptions(plain_http=True))
        refused(Reason.RegistryUnauthorized, lambda: anonymous.resolve("2.1.0"))
    orphan = canonical_json(
        {
            "manifests": [{"digest": "sha256:" + "1" * 64, "mediaType": "a/b", "size": 1}],
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "schemaVersion": 2,
        }
    )
    writer = api.open_store(where, options, push=True)
    error = refused(
        Reason.RegistryProtocol,
        lambda: writer.put_manifest(orphan, "application/vnd.oci.image.index.v1+json", tag="9.9"),
    )
    assert "MANIFEST_BLOB_UNKNOWN" in error.message
    refused(Reason.ReferenceNotFound, lambda: store.resolve("9.9"))


def test_jobs_of_a_matrix_are_joined_and_carried_away(registry: Registry, tmp_path: Path) -> None:
    """Children from other repositories are mounted, not sent; the artifact moves to a layout and back unchanged."""
    config = registry.docker_config(tmp_path / "docker" / "config.json")
    options = ClientOptions(load_credentials({"DOCKER_CONFIG": str(config.parent)}), plain_http=True)
    host, signer, key = registry.host, SIGNERS[0], [TrustedKey("ci", SIGNERS[0].public_key)]
    children = []
    for chip in ("esp32c3", "esp32s3"):
        (tmp_path / chip).mkdir()
        children.append(f"{host}/jobs/{chip}:7")
        plan = builds.plan(tmp_path / chip, chip)
        api.push([plan], children[-1], signer=signer, release=RELEASE, options=options)
    where, sent = f"{host}/team/porch:2.1.0", []
    joined = api.index(
        children, where, signer=signer, keys=key, options=options, progress=lambda title, *_: sent.append(title)
    )
    assert sent == []
    assert [chip.target for chip in joined.chips] == ["esp32c3", "esp32s3"]
    carried = api.copy(where, f"oci:{tmp_path}/carried:2.1.0", keys=key, options=options)
    back = api.copy(f"oci:{tmp_path}/carried", f"{host}/mirror/porch:2.1.0", keys=key, options=options)
    assert {carried.reference.digest, back.reference.digest} == {joined.index_digest}
    assert api.diff(where, f"{host}/mirror/porch:2.1.0", options=options) == []
    pulled = api.pull(f"{host}/mirror/porch:2.1.0", "esp32s3", tmp_path / "out", keys=key, options=options)
    assert pulled.signers == ("ci",)
