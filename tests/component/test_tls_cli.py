# SPDX-License-Identifier: Apache-2.0
"""Every command that dials a device dials one that speaks TLS: as processes, on a fleet process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from attestation.directory import TrustDirectory
from flashjob.cli.place import on_network
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import DemoDevice, Materials

from .test_bench_cli import Shop

YARD = DemoDevice("yard", "esp32s3", "network", "SignedBoot", "field")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    materials = Materials.make(root / "materials")
    spec = materials.fleet([YARD], root)
    spec["devices"] = [{**one, "tls": True} for one in spec["devices"]]
    with FleetProcess(spec, root) as fleet:
        yield Shop(root, fleet, materials)


def attest(shop: Shop, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "attestation.cli", *map(str, words), "--json"],
        capture_output=True, text=True, timeout=60, check=False, env={"COLUMNS": "200", "HOME": str(shop.root)},
    )  # fmt: skip


def test_a_device_that_speaks_tls_from_a_bench(shop: Shop, tmp_path: Path) -> None:
    ready = shop.fleet.devices[YARD.name]
    assert ready.address.startswith("https://127.0.0.1:")

    info = shop.run("device", "info", ready.address, "--json")
    assert info.returncode == 0, info.stderr
    assert json.loads(info.stdout)["info"]["ueid"] == ready.ueid

    enrolled = shop.enroll(YARD, "--fixed")
    assert enrolled.returncode == 0, enrolled.stderr
    assert json.loads(shop.file(YARD).read_text())["spec"]["connection"] == {"network": {"address": ready.address}}

    code, said = shop.flash(shop.push("2.0.0", 2), YARD)
    assert (code, said["error"]) == (0, None)
    assert said["verdict"]["version"] == "2.0.0"

    asked = attest(shop, "ask", ready.address, "--trust", shop.trust)
    verdict = json.loads(asked.stdout)
    assert (asked.returncode, verdict["accepted"]) == (0, True), asked.stdout


def test_a_host_is_an_address_and_nothing_else(shop: Shop) -> None:
    assert on_network("https://yard.example:8443/") == "https://yard.example:8443", "the slash is no part of it"
    assert on_network("http://192.0.2.7:80") == "192.0.2.7:80"
    for wrong in ("https://", "https://a/b", "ftp://a:1", "/dev/ttyUSB0"):
        with pytest.raises(typer.BadParameter):
            on_network(wrong)
    done = shop.run("flash", "layout", "--host", "https://a/b", "--trust", shop.trust)
    assert (done.returncode, "https://" in done.stderr) == (2, True)


def test_first_use_over_tls(shop: Shop, tmp_path: Path) -> None:
    ready = shop.fleet.devices[YARD.name]
    trust = shop.new_trust(tmp_path / "trust")
    words = ["--anchor", ready.public_key, "--policy", YARD.policy, "--root-of-trust", YARD.tier, "--trust", trust]
    pending = attest(shop, "enroll", "first-use", ready.address, *words)
    assert json.loads(pending.stdout)["pending"] == ready.ueid, pending.stderr
    assert TrustDirectory(trust).pending_ids() == [ready.ueid]


def test_conformance_over_tls(shop: Shop) -> None:
    ready = shop.fleet.devices[YARD.name]
    done = shop.run("device", "conformance", ready.address, "--only", "tls.*", "--only", "info.*", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["conforms"]) == (0, True), done.stdout
    outcomes = {one["id"]: one["outcome"] for one in said["checks"]}
    assert outcomes["tls.bound"] == outcomes["tls.no_dice_key"] == "pass"
    assert outcomes["tls.new_key"] == "not testable"
    plain = shop.run("device", "conformance", ready.address.removeprefix("https://"), "--only", "info.shape")
    assert plain.returncode == 3, "plain HTTP is no answer"
