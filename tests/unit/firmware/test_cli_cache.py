# SPDX-License-Identifier: Apache-2.0
"""`firmware-pipeline export | import | gc | serve` and `pull --cache` as a user meets them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner, Result

from firmware_pipeline.cli import app
from firmware_pipeline.layout import LayoutStore
from tests.unit.firmware.artifacts import push_to
from tests.unit.firmware.hostile_registry import HostileRegistry


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "FIRMWARE_PIPELINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_out_of_one_site_into_another(place: Path) -> None:
    pushed = push_to("oci:layout:2.1.0")
    said = run("export", "layout", "-o", "site.tar")
    assert said.stdout == f"oci:layout@{pushed.index_digest}\n"
    with HostileRegistry() as registry:
        found = run("import", "site.tar", f"{registry.host}/porch", "--plain-http", "--json")
        assert json.loads(found.stdout) == {
            "artifacts": [{"digest": pushed.index_digest, "tag": "2.1.0"}],
            "destination": f"{registry.host}/porch",
        }
        assert registry.tags["2.1.0"] == pushed.index_digest
    run("import", "site.tar", "--cache", "cache")
    assert LayoutStore(Path("cache")).tags()["2.1.0"] == pushed.index_digest
    again = run("gc", "cache", "--max-size", "0", "--json")
    assert json.loads(again.stdout)["removed"] == []
    assert run("import", "site.tar", "oci:other", "-q").stdout == f"oci:other@{pushed.index_digest}\n"


def test_pull_through_a_cache(place: Path) -> None:
    with HostileRegistry() as registry:
        where = f"{registry.host}/porch:1"
        pushed = push_to(where)
        pull = ["pull", f"{where}@{pushed.index_digest}", "--chip", "esp32s3", "--unverified", "--plain-http"]
        pull += ["--cache", "cache", "--json"]
        first = json.loads(run(*pull, "-o", "one").stdout)["traffic"]
        registry.seen.clear()
        second = json.loads(run(*pull, "-o", "two").stdout)["traffic"]
        assert registry.seen == []
    assert second["bytesCache"] == first["bytesNetwork"] > 0
    files = [sorted(p.relative_to(f) for p in Path(f).rglob("*") if p.is_file()) for f in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export", "layout"], 2, "--output"),
        (["export", "layout", "-o", "x.tar", "--flash-args", "d"], 2, "--output"),
        (["export", "nowhere.test/x", "-o", "x.tar"], 2, "ReferenceMalformed"),
        (["import", "layout"], 2, "one place"),
        (["import", "layout", "r.test/a", "--cache", "c"], 2, "one place"),
        (["import", "layout", "oci:other:tag"], 2, "leave tag"),
        (["import", "absent.tar", "oci:other"], 2, "absent.tar"),
        (["import", "rubbish", "oci:other"], 6, "ArtifactMalformed"),
        (["gc", "absent"], 5, "ReferenceNotFound"),
        (["gc", "layout", "--max-size", "much"], 2, "2G"),
        (["serve", "layout", "--listen", "here"], 2, "ADDRESS:PORT"),
        (["serve", "layout", "--listen", "192.0.2.1:0"], 2, "--listen 192.0.2.1:0: Cannot assign"),
    ],
)
def test_wrong_usage_is_said(place: Path, arguments: list[str], code: int, words: str) -> None:
    push_to("oci:layout:1")
    Path("rubbish").write_bytes(b"rubbish" * 1000)
    assert words in run(*arguments, code=code).output
    assert not Path("x.tar").exists()
    assert not Path("absent").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_and_ends_when_told(place: Path, number: signal.Signals) -> None:
    pushed = push_to("oci:cache:1")
    command = [sys.executable, "-m", "firmware_pipeline.cli", "serve", "cache", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{url}/v2/any/manifests/{pushed.index_digest}", timeout=10)
        assert answer.status_code == 200
        server.send_signal(number)
        _, said = server.communicate(timeout=20)
    assert server.returncode == 0
    assert "Traceback" not in said
