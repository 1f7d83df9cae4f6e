# SPDX-License-Identifier: Apache-2.0
"""`flashjob device enroll --trust` and `flashjob flash` as processes, on a fleet process: exit codes and JSON.

What goes wrong with artifacts, lines and lying devices is in test_bench_faults.py; here it is the command line itself.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.directory import TrustDirectory
from firmware_pipeline import api
from firmware_pipeline.esp import builder, partitions
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.signing.keys import load_signer
from firmware_pipeline.signing.release import load_release_key
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import APP_A, APP_OFFSET, DemoDevice, Materials, dump

CHIPS = ("esp32", "esp32c3", "esp32s3")
SERIAL = DemoDevice("porch", "esp32c3", "serial", "SelfReported", "bench")
WEAK = DemoDevice("attic", "esp32", "serial", "SelfReported", "field")
NETWORK = DemoDevice("yard", "esp32s3", "network", "SignedBoot", "field")
OTHER = DemoDevice("shed", "esp32s3", "network", "SignedBoot", "field")


class Shop:
    """A bench with devices, keys and a trust directory in which nobody is enrolled yet."""

    def __init__(self, root: Path, fleet: FleetProcess, materials: Materials) -> None:
        self.root, self.fleet, self.materials = root, fleet, materials
        self.trust = root / "trust"
        self.new_trust(self.trust)

    def new_trust(self, root: Path) -> Path:
        trust = TrustDirectory.create(root)
        trust.write_grant_key(keys.private_from_pem(self.materials.key("grant").read_bytes()))
        (root / "release" / "owner.pub").write_text(self.materials.public("release").read_text())
        for name in ("field", "bench"):
            dump(root / "policies" / f"{name}.yaml", self.materials.policy(name, CHIPS))
        return root

    def push(self, version: str, sequence: int) -> Path:
        layout = self.root / f"layout-{version}"
        builds = (self.materials.build(chip, self.materials.image(chip, APP_A, version)) for chip in CHIPS)
        plans = load_builds([*chain.from_iterable(builds)])
        signer = load_signer(self.materials.key("signer").read_bytes(), "ci")
        release = api.Release(load_release_key(self.materials.key("release").read_bytes(), "owner"), sequence)
        api.push(plans, f"oci:{layout}:{version}", signer=signer, release=release)
        return layout

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flashjob.cli", *map(str, words)],
            capture_output=True, text=True, timeout=120, check=False, env={"COLUMNS": "200", "HOME": str(self.root)},
        )  # fmt: skip

    def where(self, device: DemoDevice) -> list[str]:
        ready = self.fleet.devices[device.name]
        return ["--port", ready.link] if ready.link else ["--host", ready.address]

    def enroll(self, device: DemoDevice, *more: object, **changes: str) -> subprocess.CompletedProcess[str]:
        options = {
            "anchor": self.fleet.devices[device.name].public_key,
            "policy": device.policy,
            "root-of-trust": device.tier,
            "trust": str(self.trust),
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        pairs = [word for name, value in options.items() for word in (f"--{name}", value)]
        return self.run("device", "enroll", device.name, *self.where(device), *pairs, *more)

    def flash(self, layout: Path, device: DemoDevice, *more: object) -> tuple[int, dict[str, Any]]:
        """(exit code, the one JSON object)."""
        done = self.run("flash", layout, *self.where(device), "--trust", self.trust, "--json", *more)
        return done.returncode, json.loads(done.stdout)

    def file(self, device: DemoDevice) -> Path:
        return self.trust / "devices" / f"{self.fleet.devices[device.name].ueid}.json"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    materials = Materials.make(root / "materials")
    with FleetProcess(materials.fleet([SERIAL, WEAK, NETWORK, OTHER], root), root) as fleet:
        yield Shop(root, fleet, materials)


@pytest.fixture(scope="module")
def release(shop: Shop) -> Path:
    return shop.push("2.0.0", 2)


# --- enroll


def test_enroll_reads_the_chip_and_writes_the_device(shop: Shop) -> None:
    done = shop.enroll(SERIAL)
    ready = shop.fleet.devices[SERIAL.name]
    assert (done.returncode, done.stderr) == (0, "")
    assert f"enrolled porch {ready.ueid} (SelfReported, policy bench)" in done.stdout
    spec = json.loads(shop.file(SERIAL).read_text())["spec"]
    assert spec["id"] == ready.ueid
    assert spec["hardware"]["chip"] == "esp32c3"
    assert spec["hardware"]["mac"] == ready.mac
    assert spec["hardware"]["flashSize"] == ready.flash_size
    assert spec["connection"] == {"serial": {"match": {"UDEV_DEVNODE": ready.link}}}
    assert shop.enroll(SERIAL).returncode == 0, "again is harmless"


def test_enroll_takes_the_anchor_from_a_file_too(shop: Shop, tmp_path: Path) -> None:
    key = keys.from_cose(bytes.fromhex(shop.fleet.devices[NETWORK.name].public_key))
    pem = tmp_path / "anchor.pem"
    pem.write_text(keys.to_pem(key))
    assert shop.enroll(NETWORK, anchor=str(pem)).returncode == 0
    assert json.loads(shop.file(NETWORK).read_text())["spec"]["connection"] == {"network": {}}


def refusal(done: subprocess.CompletedProcess[str], reason: str, code: int = 1) -> str:
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(f"{reason}: ")
    assert "\nNext: " in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_enroll_with_another_devices_anchor(shop: Shop) -> None:
    said = refusal(shop.enroll(OTHER, anchor=shop.fleet.devices[NETWORK.name].public_key), "EvidenceInvalid")
    assert "does not prove this anchor" in said
    assert not shop.file(OTHER).exists()


def test_enroll_where_the_device_does_not_know_the_grant_key(shop: Shop, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "foreign.pub").write_text(keys.to_pem(key))
    said = refusal(shop.enroll(OTHER, "--grant-key", tmp_path / "foreign.pub"), "GrantKeyUnknown")
    assert keys.key_id(key).hex() in said
    assert not shop.file(OTHER).exists()


def test_enroll_under_a_policy_that_is_not_there(shop: Shop) -> None:
    assert "policies/none.yaml" in refusal(shop.enroll(OTHER, policy="none"), "PolicyMissing")
    assert not shop.file(OTHER).exists()


def test_enroll_claims_no_root_of_trust_that_the_chip_cannot_have(shop: Shop) -> None:
    refusal(shop.enroll(WEAK, root_of_trust="SignedBoot"), "EvidenceInvalid")
    assert not shop.file(WEAK).exists()


def test_enroll_into_a_directory_without_a_grant_key(shop: Shop, tmp_path: Path) -> None:
    trust = shop.new_trust(tmp_path / "trust")
    (trust / "grant.key").unlink()
    assert "grant.key" in refusal(shop.enroll(OTHER, trust=str(trust)), "TrustUnusable")
    assert list((trust / "devices").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "/dev/ttyX", "--host", "127.0.0.1:1", "--trust", "t"],
        ["--trust", "t"],
        ["--port", "/dev/ttyX"],
        ["--port", "/dev/ttyX", "--kubeconfig", "k"],
        ["--host", "127.0.0.1:1", "--trust", "t", "--label", "nothing"],
        ["--host", "127.0.0.1:1", "--trust", "t", "--anchor", "zz"],
        ["--host", "127.0.0.1:1", "--trust", "t", "--anchor", "a1"],
        ["--host", "127.0.0.1:1", "--trust", "t", "--root-of-trust", "Hope"],
    ],
)
def test_enroll_usage_is_2(shop: Shop, tmp_path: Path, words: list[str]) -> None:
    anchor = shop.fleet.devices[OTHER.name].public_key
    base = ["device", "enroll", "x", "--anchor", anchor, "--policy", "field", "--root-of-trust", "SignedBoot"]
    done = shop.run(*base, *(str(tmp_path / word) if word in ("t", "k") else word for word in words))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_enroll_with_a_grant_key_that_is_none_is_2(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    for name in ("junk", "absent"):
        done = shop.enroll(OTHER, "--grant-key", tmp_path / name)
        assert done.returncode == 2
        assert "no PEM public key" in done.stderr


# --- flash


def test_flash_proves_and_says_so_in_one_json_object(shop: Shop, release: Path) -> None:
    assert shop.enroll(NETWORK).returncode == 0
    kept = shop.root / "evidence"
    code, said = shop.flash(release, NETWORK, "--evidence-dir", kept)
    assert code == 0, said
    assert set(said) == {"error", "result", "verdict"}
    assert said["error"] is None
    result, verdict = said["result"], said["verdict"]
    assert (result["ok"], result["stage"], result["bytesWritten"] > 0) == (True, "Confirming", True)
    assert (verdict["outcome"], verdict["version"], verdict["rootOfTrust"]) == ("Proven", "2.0.0", "SignedBoot")
    assert len(verdict["measurement"]["value"]) in (64, 128), "machines get the whole hash"
    stored = json.loads(shop.file(NETWORK).read_text())["status"]
    assert stored["floors"]["sequence"] == 2
    code, said = shop.flash(release, NETWORK)
    assert (code, said["verdict"]["outcome"], said["result"]["bytesWritten"]) == (0, "AlreadyRunning", 0)
    policy = shop.trust / "policies" / f"{NETWORK.policy}.yaml"
    again = ("reappraise", kept, "--trust", shop.trust, "--policy", policy, "--json")
    done = subprocess.run([sys.executable, "-m", "attestation.cli", *again], capture_output=True, check=True)
    (judged,) = json.loads(done.stdout)["devices"]
    assert (judged["outcome"], judged["about"]["outcome"]) == ("holds", "Proven")


def test_flash_refuses_a_downgrade_without_leave(shop: Shop, release: Path) -> None:
    assert shop.enroll(NETWORK).returncode == 0
    assert shop.flash(release, NETWORK)[0] == 0
    older = shop.push("1.5.0", 1)
    code, said = shop.flash(older, NETWORK)
    assert (code, said["result"]["reason"], said["result"]["bytesWritten"]) == (3, "Downgrade", 0), said
    code, said = shop.flash(older, NETWORK, "--allow-downgrade")
    assert (code, said["verdict"]["version"]) == (0, "1.5.0")
    floors = json.loads(shop.file(NETWORK).read_text())["status"]["floors"]
    assert floors["sequence"] == 2, "leave to go back lowers no floor"


def test_flash_what_cannot_be_proven_is_4(shop: Shop, release: Path) -> None:
    assert shop.enroll(WEAK).returncode == 0
    code, said = shop.flash(release, WEAK)
    assert (code, said["verdict"]["outcome"], said["verdict"]["reason"]) == (4, "BelowPolicy", "RootOfTrustTooLow")
    assert said["verdict"]["unproven"]


def test_flash_what_was_written_and_is_not_right_is_1(shop: Shop, release: Path) -> None:
    assert shop.enroll(OTHER).returncode == 0
    shop.fleet.ask("behave", OTHER.name, behaviour="RunsOldImage")
    code, said = shop.flash(release, OTHER)
    assert (code, said["verdict"]["outcome"], said["verdict"]["reason"]) == (1, "Rejected", "MeasurementMismatch")
    assert len(said["verdict"]["message"]) < 300, "messages show the beginning of a hash"
    assert said["result"]["bytesWritten"] > 0


def test_flash_that_begins_nothing_is_3_with_the_error_in_the_json(shop: Shop, tmp_path: Path, release: Path) -> None:
    done = shop.run("flash", release, *shop.where(NETWORK), "--trust", tmp_path / "none", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["result"], said["verdict"]) == (3, None, None)
    assert set(said["error"]) == {"reason", "message", "nextStep"}
    assert "none" in said["error"]["message"]
    assert said["error"]["nextStep"]
    assert done.stderr.startswith(said["error"]["reason"]), "and people read it on the other stream"


def test_flash_of_a_device_that_another_process_works_with(shop: Shop, release: Path) -> None:
    assert shop.enroll(SERIAL).returncode == 0
    with TrustDirectory(shop.trust).locked(bytes.fromhex(shop.fleet.devices[SERIAL.name].ueid)):
        code, said = shop.flash(release, SERIAL)
    assert (code, said["error"]["reason"]) == (3, "DeviceBusy")


def test_flash_needs_the_owners_release_key(shop: Shop, release: Path) -> None:
    """A statement that nobody vouches for is refused before the first byte, not left out."""
    assert shop.enroll(SERIAL).returncode == 0
    key = shop.trust / "release" / "owner.pub"
    kept = key.read_text()
    key.unlink()
    try:
        code, said = shop.flash(release, SERIAL)
    finally:
        key.write_text(kept)
    assert (code, said["result"]["reason"], said["result"]["bytesWritten"]) == (3, "ReleaseInvalid", 0)


def test_flash_from_another_version_is_3(shop: Shop, release: Path) -> None:
    assert shop.enroll(SERIAL).returncode == 0
    code, said = shop.flash(release, SERIAL, "--from-version", "0.1.0")
    assert (code, said["result"]["reason"], said["result"]["bytesWritten"]) == (3, "FromVersion", 0), said


def test_flash_writes_what_else_it_is_given_leave_for(shop: Shop, tmp_path: Path) -> None:
    assert shop.enroll(SERIAL).returncode == 0
    table, files = builder.default_partitions(), tmp_path / "files.bin"
    storage = next(row for row in table.partitions if row.name == "storage")
    (tmp_path / "table.bin").write_bytes(partitions.build_table(table))
    files.write_bytes(b"files")
    image = shop.materials.image("esp32c3", APP_A, "2.7.0")
    parts = {APP_OFFSET: image, 0x8000: tmp_path / "table.bin", storage.offset: files}
    layout, signer = tmp_path / "whole", load_signer(shop.materials.key("signer").read_bytes(), "ci")
    plans = load_builds([f"esp32c3:{offset:#x}={file}" for offset, file in parts.items()])
    release = api.Release(load_release_key(shop.materials.key("release").read_bytes(), "owner"), 7)
    api.push(plans, f"oci:{layout}:2.7.0", signer=signer, release=release)
    code, said = shop.flash(layout, SERIAL, "--allow-bootloader", "--allow-partition-table", "--data", "Wipe")
    assert (code, said["verdict"]["outcome"]) == (0, "Proven"), said
    assert said["verdict"]["unproven"] == ["data image storage", "that its data was wiped"]
    assert shop.enroll(NETWORK).returncode == 0
    code, said = shop.flash(shop.push("2.7.1", 8), NETWORK, "--data", "Wipe")
    assert (code, said["error"]["reason"], said["result"]) == (3, "WipeNeedsSerial", None)


def test_flash_that_is_stopped_says_what_is_left(shop: Shop, release: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        words = ("flash", release, "--host", host, "--trust", shop.trust, "--json")
        done = subprocess.Popen(
            [sys.executable, "-m", "flashjob.cli", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"HOME": str(shop.root)},
        )  # fmt: skip
        mute.settimeout(60)
        with mute.accept()[0]:
            done.send_signal(signal.SIGINT)
            out, err = done.communicate(timeout=30)
    assert done.returncode == 130
    assert json.loads(out)["error"]["reason"] == "Stopped"
    assert err.startswith("Stopped: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say where the device is: PORT or HOST:PORT"),
        (
            ["--host", "127.0.0.1:1", "--device", "zz"],
            "--device 'zz' is no device id: an even number of lower-case hex",
        ),
        (["--host", "127.0.0.1:1", "--baud", "1"], "--baud 1: input should be greater than or equal to 9600"),
        (["--host", "127.0.0.1:1", "--from-version", ""], "--from-version: a version has 1 to 32 characters"),
        (["--port", "/dev/ttyX", "--host", "127.0.0.1:1"], "--port and --host are for one device"),
        (["--host", "127.0.0.1:1", "--before", "Maybe"], "Invalid value for '--before': 'Maybe' is not one of"),
        (["--host", "127.0.0.1:1", "--data", "No"], "Invalid value for '--data': 'No' is not one of 'Keep', 'Wipe'"),
        (["--host", "127.0.0.1:1", "--baud", "fast"], "Invalid value for '--baud': "),
        (["--nothing"], "No such option: --nothing"),
    ],
)
def test_flash_usage_is_2(shop: Shop, release: Path, words: list[str], says: str) -> None:
    done = shop.run("flash", release, "--trust", shop.trust, *words)
    said = refusal(done, "WrongUsage", code=2)
    assert said.startswith(f"WrongUsage: flashjob flash: {says}"), said
    assert said.endswith("\nNext: flashjob flash --help\n")
    assert "Value error" not in said


def test_a_network_device_is_not_wiped_and_nothing_is_asked_for_it(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        done = shop.run("flash", f"{host}/x/y:1", host, "--plain-http", "--trust", shop.trust, "--data", "Wipe")
        assert f"{host} is reached over the network" in refusal(done, "WipeNeedsSerial", code=3)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_trust_directory_that_is_not_there_is_no_fault_of_the_evidence(shop: Shop, release: Path) -> None:
    done = shop.run("flash", release, *shop.where(SERIAL), "--trust", shop.root / "nowhere")
    said = refusal(done, "TrustUnusable", code=3)
    assert f"{shop.root / 'nowhere'}: No such file or directory" in said
    assert "name the right one with --trust" in said
