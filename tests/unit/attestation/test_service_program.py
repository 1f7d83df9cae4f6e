# SPDX-License-Identifier: Apache-2.0
"""`attest serve` as a program: signals, files, flags. Real processes, real sockets."""

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from attestation.cli import app
from tests.unit.attestation.serving import Client, Device, Files, Process, program

DEVICE = Device()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, [DEVICE])


async def reason(process: Process) -> str:
    async with aiohttp.ClientSession() as http:
        return await Client(http, process.url).reason(DEVICE)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_serves_until_a_signal_and_ends_in_peace(files: Files, number: signal.Signals, code: int) -> None:
    with program(*files.arguments) as process:
        assert asyncio.run(reason(process)) == "accepted"
        process.popen.send_signal(number)
        assert process.popen.wait(20) == code
        assert "Traceback" not in process.rest()


def test_a_request_in_progress_ends_before_the_process(files: Files) -> None:
    """Half a body is sent, then SIGTERM, then the other half."""
    with program(*files.arguments) as process:
        body = json.dumps({"ueid": DEVICE.ueid, "audience": "a"}).encode()
        head = b"POST /v1/nonce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        with socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), 10) as line:
            line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
            assert line.recv(100).startswith(b"HTTP/1.1 100")  # from here on the request is in progress
            process.popen.send_signal(signal.SIGTERM)
            process.wait_for("draining")
            line.sendall(body)
            said = b""
            while more := line.recv(4096):
                said += more
        assert said.startswith(b"HTTP/1.1 200"), said
        assert process.popen.wait(20) == 0


def test_a_second_signal_ends_it_at_once(files: Files) -> None:
    with program(*files.arguments) as process:
        head = b"POST /v1/nonce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        with socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])), 10) as line:
            line.sendall(head + b"Content-Length: 100\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 100")
            process.popen.send_signal(signal.SIGTERM)
            process.wait_for("draining")
            process.popen.send_signal(signal.SIGTERM)
            assert process.popen.wait(20) == -signal.SIGTERM


def test_sighup_goes_on_in_a_new_audit_log_with_new_keys(files: Files, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    arguments = ["--audit-log", str(log), "--evidence-dir", str(tmp_path / "evidence")]
    with program(*files.arguments, *arguments) as process:
        assert asyncio.run(reason(process)) == "accepted"
        log.rename(tmp_path / "audit.1")
        files.write_nonce_key(2)
        files.write_ear_key()
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for("keys read")
        assert asyncio.run(reason(process)) == "accepted"
        assert process.end() == 0
    assert [len(path.read_text().splitlines()) for path in (tmp_path / "audit.1", log)] == [1, 1]
    assert json.loads(log.read_text())["nonce"][2:4] == "02"
    assert len(list((tmp_path / "evidence/records").iterdir())) == 2


def test_two_processes_that_share_a_directory_accept_once(files: Files, tmp_path: Path) -> None:
    shared = [*files.arguments, "--used-nonces", str(tmp_path / "used"), "--rate", "0"]

    async def race(urls: list[str]) -> list[str]:
        async with aiohttp.ClientSession() as http:
            replicas = [Client(http, url) for url in urls]
            found: list[str] = []
            for _ in range(10):
                nonce = await replicas[0].nonce(DEVICE.ueid)
                data = DEVICE.answer(nonce)
                results = await asyncio.gather(*(each.result(data, DEVICE.ueid, nonce) for each in replicas))
                found += sorted(result.reason for result in results)
            return found

    with program(*shared) as one, program(*shared) as two:
        assert asyncio.run(race([one.url, two.url])) == ["accepted", "replay"] * 10


def test_it_speaks_tls(files: Files, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "verifier")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    (tmp_path / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))

    async def ready(url: str) -> int:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz", ssl=tls) as response:
            return response.status

    arguments = ["--tls-cert", str(tmp_path / "tls.crt"), "--tls-key", str(tmp_path / "tls.key")]
    with program(*files.arguments, *arguments) as process:
        assert process.url.startswith("https://")
        assert asyncio.run(ready(process.url.replace("127.0.0.1", "localhost"))) == 200


def refused(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["serve", *arguments])
    assert isinstance(ended.exception, SystemExit)
    return ended.exit_code, " ".join(ended.stderr.split())


def test_an_address_in_use(files: Files) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refused(*files.arguments, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (code, "--listen 127.0.0.1:" in said, "in use" in said) == (2, True, True)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"--listen": "8643"}, 2, "ADDRESS:PORT"),
        ({"--listen": "127.0.0.1:70000"}, 2, "ADDRESS:PORT"),
        ({"--listen": "nowhere.invalid:0"}, 2, "--listen nowhere.invalid:0"),
        ({"--rate": "-1"}, 2, "--rate"),
        ({"--rate": "nan"}, 2, "--rate"),
        ({"--workers": "0"}, 2, "--workers"),
        ({"--tls-cert": "x.crt"}, 2, "go together"),
        ({"--tls-cert": "x.crt", "--tls-key": "x.key"}, 2, "x.crt"),
        ({"--ear-key": "nowhere.pem"}, 4, "nowhere.pem"),
        ({"--nonce-keys": "nowhere"}, 4, "nowhere"),
        ({"--ear-public": "nowhere.pub"}, 4, "nowhere.pub"),
        ({"--trust": "nowhere"}, 4, "nowhere"),
        ({"--audit-log": "nowhere/audit"}, 4, "nowhere/audit"),
        ({"--evidence-dir": "/dev/null/evidence"}, 4, "/dev/null/evidence"),
        ({"--used-nonces": "/dev/null/used"}, 4, "/dev/null/used"),
    ],
)
def test_wrong_arguments(
    files: Files, changes: dict[str, str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    named = dict(zip(files.arguments[::2], files.arguments[1::2], strict=True)) | {"--listen": "127.0.0.1:0"} | changes
    found = refused(*(part for pair in named.items() for part in pair))
    assert found[0] == code, found
    assert said in found[1]


def test_without_its_extra_it_says_what_to_install(files: Files) -> None:
    block = "import sys; sys.modules['aiohttp'] = None; from attestation.cli import main; main()"
    command = [sys.executable, "-c", block, "serve", *files.arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "pip install 'flashjob[service]'" in ended.stderr
