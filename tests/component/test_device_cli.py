# SPDX-License-Identifier: Apache-2.0
"""`flashjob device info | provision | conformance` as processes, on a fleet process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from attestation import factory_list, keys
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import APP_A, DemoDevice, Materials

SERIAL = DemoDevice("porch", "esp32c3", "serial", "SelfReported", "bench")
VIRGIN = DemoDevice("virgin", "esp32c3", "serial", "SignedBoot", "bench")
OLD = DemoDevice("attic", "esp32", "serial", "SelfReported", "bench")
YARD = DemoDevice("yard", "esp32s3", "network", "SelfReported", "field")


class Shop:
    """A bench with devices."""

    def __init__(self, root: Path, fleet: FleetProcess, materials: Materials) -> None:
        self.root, self.fleet, self.materials = root, fleet, materials

    def run(self, *words: object, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flashjob.cli", "device", *map(str, words)],
            input=typed, capture_output=True, text=True, timeout=120, check=False,
            env={"COLUMNS": "200", "HOME": str(self.root)},
        )  # fmt: skip

    def where(self, device: DemoDevice) -> str:
        ready = self.fleet.devices[device.name]
        return ready.link or ready.address


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    materials = Materials.make(root / "materials")
    spec: dict[str, Any] = materials.fleet([SERIAL, VIRGIN, OLD, YARD], root)
    spec["devices"] = [{**one, "virgin": True} if one["name"] == VIRGIN.name else one for one in spec["devices"]]
    with FleetProcess(spec, root) as fleet:
        yield Shop(root, fleet, materials)


# --- info


def test_info_over_serial_shows_chip_flash_application_and_claim(shop: Shop) -> None:
    before = shop.fleet.ask("counters", SERIAL.name)
    done = shop.run("info", shop.where(SERIAL), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    ready = shop.fleet.devices[SERIAL.name]
    assert (said["chip"]["chip"], said["chip"]["mac"]) == ("esp32c3", ready.mac)
    assert said["info"]["ueid"] == ready.ueid
    assert [slot["name"] for slot in said["slots"]][:2] == ["ota_0", "ota_1"]
    assert said["slots"][0]["application"].startswith(APP_A)
    assert said["contradictions"] == []
    assert said["rootOfTrust"]["reachable"] == "SelfReported"
    assert any("secure boot is not on" in why for why in said["rootOfTrust"]["why"])
    after = shop.fleet.ask("counters", SERIAL.name)
    assert (after["bytesErased"], after["bytesProgrammed"]) == (before["bytesErased"], before["bytesProgrammed"])


def test_info_over_the_network_in_words(shop: Shop) -> None:
    done = shop.run("info", f"http://{shop.where(YARD)}")
    assert done.returncode == 0, done.stderr
    assert shop.fleet.devices[YARD.name].ueid in done.stdout
    assert "at most SelfReported" in done.stdout


def test_info_says_why_a_chip_can_have_no_more(shop: Shop) -> None:
    done = shop.run("info", shop.where(OLD))
    assert "ESP32 has no eFuse key" in done.stdout


def test_info_without_the_loader_leaves_the_application_alone(shop: Shop) -> None:
    boots = shop.fleet.ask("counters", SERIAL.name)["boots"]
    said = json.loads(shop.run("info", shop.where(SERIAL), "--no-loader", "--json").stdout)
    assert said["chip"] is None
    assert said["info"]
    assert shop.fleet.ask("counters", SERIAL.name)["boots"] == boots


@pytest.mark.parametrize(("where", "code"), [("a:b:c", 2), ("/dev/ttyNone", 1), ("127.0.0.1:1", 1), ("host:99999", 2)])
def test_info_of_what_is_not_there(shop: Shop, where: str, code: int) -> None:
    done = shop.run("info", where, "--wait", "0.5")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Next: " in done.stderr or done.returncode == 2


# --- provision


def provision(shop: Shop, device: DemoDevice, *more: object, typed: str = "") -> subprocess.CompletedProcess[str]:
    return shop.run("provision", shop.where(device), "--batch", "b1", *more, typed=typed)


def owner(shop: Shop) -> list[object]:
    return ["--grant-key", shop.materials.public("grant"), "--release-key", shop.materials.public("release")]


def test_provision_is_a_dry_run_by_default(shop: Shop, tmp_path: Path) -> None:
    before = shop.fleet.ask("counters", SERIAL.name)
    done = provision(shop, SERIAL, "--list", tmp_path / "factory.csv", *owner(shop))
    assert done.returncode == 0, done.stderr
    assert "espefuse --chip esp32c3 --port" in done.stdout
    assert "burn-key BLOCK_KEY4 SECRET.bin HMAC_UP" in done.stdout
    assert "Nothing was changed" in done.stdout
    assert list(tmp_path.iterdir()) == []
    after = shop.fleet.ask("counters", SERIAL.name)
    assert after["bytesProgrammed"] == before["bytesProgrammed"]


def test_provision_plans_nothing_that_the_chip_cannot_have(shop: Shop) -> None:
    done = provision(shop, OLD)
    assert done.returncode == 1
    assert done.stdout.count("ESP32") == 1
    assert done.stderr.startswith("RootOfTrustTooLow: ")


def test_provision_of_a_virgin_device(shop: Shop, tmp_path: Path) -> None:
    ready, listed = shop.fleet.devices[VIRGIN.name], tmp_path / "factory.csv"
    how = ["--virtual", shop.root / "control", "--list", listed, "--execute", *owner(shop)]
    wrong = provision(shop, VIRGIN, *how, typed="24:6f:28:00:00:00\n")
    assert (wrong.returncode, listed.exists()) == (1, False)
    assert "WrongDevice" in wrong.stderr
    done = provision(shop, VIRGIN, *how, typed=f"{ready.mac}\n")
    assert done.returncode == 0, done.stderr
    (one,) = factory_list.read(listed.read_bytes(), "b1")
    assert keys.ueid(one.key).hex() == ready.ueid
    again = provision(shop, VIRGIN, *how, typed=f"{ready.mac}\n")
    assert again.returncode == 1
    assert "has an owner already" in again.stderr
    assert "succession" in again.stderr


@pytest.mark.parametrize(
    "more",
    [
        ["--execute"],
        ["--execute", "--root-of-trust", "SelfReported"],
        ["--grant-key", "none"],
        ["--secure-boot-digest", "none"],
    ],
)
def test_provision_usage_is_2(shop: Shop, more: list[str]) -> None:
    done = provision(shop, SERIAL, *more, typed="\n")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- conformance


def test_conformance_without_keys(shop: Shop, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    done = shop.run("conformance", shop.where(YARD), "--only", "info.*", "--only", "install.*", "--junit", junit)
    assert done.returncode == 0, done.stderr
    assert "conforms: 2 pass, 0 fail, 5 not testable" in done.stdout
    assert "--grant-key" in done.stdout
    assert ElementTree.parse(junit).getroot().get("skipped") == "5"


def test_conformance_over_serial_resets_by_the_loader(shop: Shop) -> None:
    done = shop.run("conformance", shop.where(SERIAL), "--only", "serial.*", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["conforms"]) == (0, True), said
    assert {one["id"]: one["outcome"] for one in said["checks"]}["serial.beacon"] == "pass"


def test_conformance_of_a_liar_is_1(shop: Shop) -> None:
    shop.fleet.ask("behave", YARD.name, behaviour="ReplaysEvidence")
    try:
        done = shop.run("conformance", shop.where(YARD), "--only", "attest.fresh")
    finally:
        shop.fleet.ask("behave", YARD.name, behaviour="Honest")
    assert done.returncode == 1
    assert "does not conform" in done.stdout
    assert "another nonce" in done.stdout


def test_conformance_of_nobody_is_3(shop: Shop) -> None:
    done = shop.run("conformance", "127.0.0.1:1")
    assert done.returncode == 3
    assert done.stderr.startswith("DeviceUnreachable: ")


@pytest.mark.parametrize(
    "more", [["--only", "nothing"], ["--grant-key", "none"], ["--image", "none"], ["--sequence", "0"]]
)
def test_conformance_usage_is_2(shop: Shop, more: list[str]) -> None:
    done = shop.run("conformance", shop.where(YARD), *more)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
