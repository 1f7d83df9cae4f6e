# SPDX-License-Identifier: Apache-2.0
"""The flashing pod as a process: environment in, HTTPS to a gateway, termination message and exit code out."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel

from flashjob.flasher.esptool import Esptool
from flashjob.virtual.adversaries import RunsOldImage
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.virtual.faults import ChipHangs
from flashjob.virtual.reset_lines import UsbSerialJtag
from flashjob.wire.gateway import (
    AddressReply,
    ConfirmRequest,
    DeviceResult,
    EvidenceReply,
    EvidenceRequest,
    NonceRequest,
    Outcome,
    PermitRequest,
    PodResult,
    Progress,
    RevertRequest,
)
from flashjob.wire.pod import Assignment, Assignments
from flashjob.wire.refusal import Refused
from flashjob.wire.serial import SerialSettings

from .bench import OWNER, QUICK, Bench, BenchJudge, Release, app, assignment, identity, new_app, old_app, push, runs

TOKEN = "token-of-the-pod"
REQUESTS: dict[str, type[BaseModel]] = {
    "nonce": NonceRequest,
    "permit": PermitRequest,
    "evidence": EvidenceRequest,
    "confirm": ConfirmRequest,
    "revert": RevertRequest,
    "progress": Progress,
    "result": DeviceResult,
}


class Gateway:
    """The routes of wire/gateway.py before the bench's judge, over TLS with a CA of its own."""

    def __init__(self, directory: Path) -> None:
        self.judges: dict[str, BenchJudge] = {}
        self.failing = 0
        self.url = ""
        self._directory = directory
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        certificate, key = self._directory / "ca.crt", self._directory / "tls.key"
        _certificate(certificate, key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        application = web.Application()
        application.router.add_route("*", "/v1/tasks/{task}/{verb}", self._serve)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        if self.failing > 0:
            self.failing -= 1
            return web.Response(status=503)
        judge, verb = self.judges[request.match_info["task"]], request.match_info["verb"]
        if verb == "address":
            return _json(AddressReply(address=await judge.address()))
        body = REQUESTS[verb].model_validate_json(await request.read())
        try:
            reply = await getattr(judge, verb)(body)
        except Refused as refused:
            return _json(refused.problem, 403)
        return web.Response(status=204) if reply is None else _json(reply)


class Pod:
    """One run of `python -m flashjob.flasher`."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self.gateway, self.directory = gateway, directory
        self.termination = directory / "termination"
        (directory / "token").write_text(TOKEN)

    def environment(self, device: VirtualDevice, *tasks: Assignment) -> dict[str, str]:
        items = Assignments(namespace="default", job="job", items=tasks)
        environment = {
            "PATH": "/usr/bin:/bin",
            "FLASHJOB_ASSIGNMENTS": items.model_dump_json(by_alias=True, exclude_none=True),
            "FLASHJOB_GATEWAY_URL": self.gateway.url,
            "FLASHJOB_TOKEN_FILE": str(self.directory / "token"),
            "FLASHJOB_CA_FILE": str(self.directory / "ca.crt"),
            "FLASHJOB_WORK_DIR": str(self.directory / "work"),
            "FLASHJOB_TERMINATION_FILE": str(self.termination),
        }
        if device.port is not None:
            environment["UDEV_DEVNODE"] = device.port.path
        return environment

    async def start(self, device: VirtualDevice, task: Assignment) -> asyncio.subprocess.Process:
        self.gateway.judges[task.task] = BenchJudge(device, task)
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flashjob.flasher", env=self.environment(device, task)
        )

    async def start_all(self, pairs: list[tuple[VirtualDevice, Assignment]]) -> asyncio.subprocess.Process:
        self.gateway.judges |= {task.task: BenchJudge(device, task) for device, task in pairs}
        environment = self.environment(pairs[0][0], *(task for _, task in pairs))
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flashjob.flasher", env=environment, stderr=asyncio.subprocess.PIPE
        )

    def results(self) -> dict[str, DeviceResult]:
        return {item.task: item for item in PodResult.model_validate_json(self.termination.read_text()).items}

    async def run(self, device: VirtualDevice, release: Release) -> tuple[int, DeviceResult, BenchJudge]:
        task = assignment(device, release.target)
        process = await self.start(device, task)
        code = await process.wait()
        (result,) = PodResult.model_validate_json(self.termination.read_text()).items
        return code, result, self.gateway.judges[task.task]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    gateway = Gateway(tmp_path)
    await gateway.start()
    yield Pod(gateway, tmp_path)
    await gateway.stop()


@pytest.mark.parametrize("network", [False, True], ids=["serial", "network"])
async def test_pod_updates_a_device(bench: Bench, pod: Pod, tmp_path: Path, network: bool) -> None:
    device = await bench.device(network=network)
    pod.gateway.failing = 2  # a gateway that restarts is waited for
    code, result, judge = await pod.run(device, push(tmp_path, new_app("esp32s3"), "esp32s3"))
    assert (code, result.ok, result.reason) == (0, True, "Proven"), result
    assert judge.outcome is Outcome.PROVEN
    assert pod.termination.stat().st_size <= 4096
    assert result.hardware is not None, "one device leaves room for what preflight read and for timings"
    assert judge.results[0].hardware is not None
    assert {"Writing", "Attesting", "Confirming"} <= judge.results[0].seconds.keys()
    await runs(device, "2.0.0")


async def test_pod_drives_the_line_as_it_is_told(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    """A chip whose own USB is behind RFC 2217: no id tells esptool so, the Device must."""
    device = VirtualDevice("far", identity("far", "esp32c3"), OWNER, tcp="rfc2217")
    device.wiring = UsbSerialJtag()
    device.factory_flash(old_app("esp32c3"))
    bench.devices.append(device)
    await device.start()
    release = push(tmp_path, new_app("esp32c3"), "esp32c3")
    usual = assignment(device, release.target)
    process = await pod.start(device, usual)
    assert await process.wait() == 3
    assert pod.results()[usual.task].reason == "PortSilent"
    settings = SerialSettings(baud=115_200, reset="usb-jtag", stub=False)
    told = usual.model_copy(update={"serial": settings})
    process = await pod.start(device, told)
    assert (await process.wait(), pod.results()[told.task].reason) == (0, "Proven")
    assert device.port is not None
    assert device.port.baud == settings.baud
    await runs(device, "2.0.0")


async def test_refusal_before_the_first_byte_is_exit_3(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    device = await bench.device()
    code, result, _ = await pod.run(device, push(tmp_path, new_app("esp32c3"), "esp32c3"))
    assert (code, result.reason, result.bytes_written) == (3, "WrongChip", 0)
    await runs(device, "1.0.0")


async def test_missing_firmware_is_exit_3(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    device = await bench.device()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    blob = release.layout / "blobs" / "sha256" / release.target.image_digest.removeprefix("sha256:")
    blob.unlink()
    code, result, judge = await pod.run(device, release)
    assert (code, result.reason, result.stage.value) == (3, "ImageNotFound", "Fetching")
    assert judge.results[0].reason == "ImageNotFound"


async def test_sigterm_in_mid_write_kills_the_writer_and_frees_the_port(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    device = await bench.device()
    device.port.baud, device.port._simulate = 115_200, True  # type: ignore[union-attr]
    release = push(tmp_path, app("esp32s3", "2.0.0", 1200 * 1024), "esp32s3")
    process = await pod.start(device, assignment(device, release.target))
    async with asyncio.timeout(20):
        while device.flash.regions["ota_1"].programmed == 0:
            await asyncio.sleep(0.02)
    process.terminate()
    async with asyncio.timeout(5):
        assert await process.wait() == 143
    written = device.flash.regions["ota_1"].programmed
    device.port._simulate = False  # type: ignore[union-attr]
    assert device.port is not None
    async with Esptool(device.port.path) as tool:
        assert (await tool.probe())[0].chip == "esp32s3"
        await tool.reset()
    assert written < len(release.image)
    await runs(device, "1.0.0")
    assert device.mode is Mode.RUNNING
    assert pod.gateway.judges["job-porch-1"].results[0].reason == "Stopped"


async def test_many_devices_in_one_pod_and_none_ends_another(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    devices = [await bench.device(f"porch-{n}", network=True) for n in range(6)]
    behaviour, quick = RunsOldImage(), QUICK.model_copy(update={"attest_seconds": 1})
    liar = await bench.device("liar", network=True, behaviour=behaviour)
    gone = await bench.device("gone", network=True)
    pairs = [(device, assignment(device, release.target)) for device in [*devices, liar]]
    pairs.append((gone, assignment(gone, release.target, timeouts=quick)))
    await gone.stop()
    process = await pod.start_all(pairs)
    _, said = await process.communicate()
    results = pod.results()
    assert process.returncode == 1
    assert {n: (r.ok, r.reason) for n, r in results.items()} == {
        **{f"job-porch-{n}": (True, "Proven") for n in range(6)},
        "job-liar": (False, "MeasurementMismatch"),
        "job-gone": (False, "DeviceUnreachable"),
    }
    assert pod.termination.stat().st_size <= 4096
    assert "Writing" in pod.gateway.judges["job-liar"].results[0].log
    assert "job-porch-3: " in said.decode()
    for text in (
        said.decode(),
        pod.termination.read_text(),
        *(r.log for j in pod.gateway.judges.values() for r in j.results),
    ):
        assert TOKEN not in text, "no secret in any log"
    for device in devices:
        await runs(device, "2.0.0")


async def test_sigterm_lets_written_images_be_proven_and_stops_the_rest(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    done, stuck = await bench.device("done", network=True), await bench.device("stuck", network=True)
    stuck.faults.append(ChipHangs(percent=40))
    hold = asyncio.Event()
    pairs = [(device, assignment(device, release.target)) for device in (done, stuck)]
    process = await pod.start_all(pairs)
    judge = pod.gateway.judges["job-done"]
    judge_evidence = judge.evidence

    async def late(request: EvidenceRequest) -> EvidenceReply:
        hold.set()
        await asyncio.sleep(0.5)
        return await judge_evidence(request)

    judge.evidence = late  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        await hold.wait()
    process.terminate()
    async with asyncio.timeout(15):
        await process.communicate()
    results = pod.results()
    assert process.returncode == 143
    assert (results["job-done"].ok, results["job-done"].reason) == (True, "Proven")
    assert (results["job-stuck"].reason, results["job-stuck"].stage.value) == ("Stopped", "Writing")
    assert "not complete" in results["job-stuck"].message
    await runs(done, "2.0.0")


async def test_a_pod_ends_by_itself_when_its_time_is_over(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    device = await bench.device(network=True)
    ones = {f"{stage}_seconds": 1 for stage in ("start", "fetch", "write", "boot", "attest", "confirm")}
    task = assignment(device, release.target, timeouts=QUICK.model_copy(update=ones))
    pod.gateway.failing = 10_000
    process = await pod.start_all([(device, task)])
    async with asyncio.timeout(20):
        await process.communicate()
    (result,) = pod.results().values()
    assert (process.returncode, result.reason, result.bytes_written) == (143, "Stopped", 0)
    assert "not done after 6 s" in result.message


@pytest.mark.parametrize("missing", ["FLASHJOB_ASSIGNMENTS", "FLASHJOB_GATEWAY_URL", "UDEV_DEVNODE"])
async def test_wrong_environment_is_exit_2_and_names_the_variable(
    bench: Bench, pod: Pod, tmp_path: Path, missing: str
) -> None:
    device = await bench.device()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    environment = pod.environment(device, assignment(device, release.target))
    del environment[missing]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flashjob.flasher", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert missing in said.decode()


async def test_gateway_with_another_certificate_gets_no_token(bench: Bench, pod: Pod, tmp_path: Path) -> None:
    device = await bench.device()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    _certificate(tmp_path / "ca.crt", tmp_path / "other.key")
    process = await pod.start(device, assignment(device, release.target))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(4):
            await process.wait()
    process.terminate()
    assert await process.wait() == 143
    assert pod.gateway.judges["job-porch-1"].case.permits == ()
    assert device.flash.regions["ota_1"].programmed == 0


def _json(model: BaseModel, status: int = 200) -> web.Response:
    body = model.model_dump_json(by_alias=True, exclude_none=True)
    assert json.loads(body) is not None
    return web.Response(status=status, text=body, content_type="application/json")


def _certificate(certificate: Path, key: Path) -> None:
    """A self-signed certificate for 127.0.0.1."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
