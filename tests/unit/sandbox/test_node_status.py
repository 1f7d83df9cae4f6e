# SPDX-License-Identifier: Apache-2.0
"""Pod volumes and statuses: node/volumes.py and node/status.py."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any

import pytest

from flashjob.errors import FlashJobError
from flashjob.sandbox.node import status
from flashjob.sandbox.node.logs import tail_offset
from flashjob.sandbox.node.volumes import TokenFile, Volumes, files_of, renew_in_seconds, tokens_of

Json = dict[str, Any]
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
OBJECTS: dict[tuple[str, str], Json | None] = {
    ("Secret", "login"): {
        "data": {"config.json": base64.b64encode(b"{}").decode(), "x": base64.b64encode(b"\xff").decode()}
    },
    ("ConfigMap", "ca"): {"data": {"ca.crt": "PEM"}, "binaryData": {"raw": base64.b64encode(b"\x00").decode()}},
    ("Secret", "gone"): None,
}


def pod(*volumes: Json) -> Json:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": list(volumes)},
    }


def test_all_kinds_of_volumes(tmp_path: Path) -> None:
    whole = pod(
        {"name": "work", "emptyDir": {}},
        {"name": "login", "secret": {"secretName": "login", "defaultMode": 0o600}},
        {"name": "ca", "configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "sub/ca.pem"}]}},
        {
            "name": "all",
            "projected": {
                "defaultMode": 0o640,
                "sources": [
                    {"configMap": {"name": "ca"}},
                    {"downwardAPI": {"items": [{"path": "uid", "fieldRef": {"fieldPath": "metadata.uid"}}]}},
                    {"secret": {"name": "gone", "optional": True}},
                ],
            },
        },
    )
    volumes = Volumes(tmp_path / "volumes", whole)
    volumes.create(OBJECTS)
    root = tmp_path / "volumes"
    assert list((root / "work").iterdir()) == []
    assert (root / "login" / "config.json").read_bytes() == b"{}"
    assert (root / "login" / "x").stat().st_mode & 0o777 == 0o600
    assert (root / "ca" / "sub" / "ca.pem").read_text() == "PEM"
    assert sorted(path.name for path in (root / "all").iterdir()) == ["ca.crt", "raw", "uid"]
    assert (root / "all" / "uid").read_text() == "u"
    assert root.stat().st_mode & 0o777 == 0o700
    volumes.remove()
    assert not root.exists()


@pytest.mark.parametrize(
    "volume",
    [
        {"name": "v", "secret": {"secretName": "gone"}},
        {"name": "v", "secret": {"secretName": "login", "items": [{"key": "none", "path": "p"}]}},
        {"name": "v", "projected": {"sources": [{"configMap": {"name": "never-made"}}]}},
    ],
)
def test_what_is_missing_is_named(volume: Json) -> None:
    with pytest.raises(FlashJobError) as caught:
        files_of(volume, pod(volume), OBJECTS)
    assert caught.value.reason == "CreateContainerConfigError"


@pytest.mark.parametrize("path", ["../outside", "/absolute", "a/../../b"])
def test_no_path_leaves_its_volume(tmp_path: Path, path: str) -> None:
    volume = {"name": "v", "configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": path}]}}
    with pytest.raises(FlashJobError):
        Volumes(tmp_path / "volumes", pod(volume)).create(OBJECTS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_tokens_are_asked_for_and_replaced(tmp_path: Path) -> None:
    source = {"serviceAccountToken": {"audience": "flashjob-gateway", "expirationSeconds": 600, "path": "token"}}
    whole = pod({"name": "token", "projected": {"sources": [source]}})
    (token,) = tokens_of(whole)
    assert token == TokenFile("token", "token", "flashjob-gateway", 600, 0o644)
    volumes = Volumes(tmp_path / "volumes", whole)
    volumes.create({})
    answers = iter(["first", "second"])

    async def request(asked: TokenFile) -> tuple[str, datetime.datetime]:
        assert asked is token
        return next(answers), NOW

    for expected in ("first", "second"):
        assert await volumes.write_token(token, request) == NOW
        assert (tmp_path / "volumes" / "token" / "token").read_text() == expected
    assert [path.name for path in (tmp_path / "volumes" / "token").iterdir()] == ["token"]


def test_tokens_are_renewed_at_four_fifths() -> None:
    assert renew_in_seconds(NOW, NOW + datetime.timedelta(seconds=600)) == pytest.approx(480)
    assert renew_in_seconds(NOW, NOW - datetime.timedelta(seconds=5)) == 1.0


@pytest.mark.parametrize(
    ("code", "late", "phase", "reason"),
    [(0, False, "Succeeded", "Completed"), (3, False, "Failed", "Error"), (0, True, "Failed", "Completed")],
)
def test_how_a_pod_ended(code: int, late: bool, phase: str, reason: str) -> None:
    final = status.ended(pod(), exit_code=code, message="m" * 5000, started=NOW, now=NOW, deadline_exceeded=late)
    terminated = final["containerStatuses"][0]["state"]["terminated"]
    assert final["phase"] == phase
    assert terminated["reason"] == reason
    assert terminated["exitCode"] == code
    assert len(terminated["message"]) == 4096
    assert (final.get("reason") == "DeadlineExceeded") is late
    assert {"type": "Ready", "status": "False"}.items() <= final["conditions"][3].items()


def test_a_cut_message_stays_text() -> None:
    final = status.ended(pod(), exit_code=0, message="é" * 3000, started=NOW, now=NOW)
    message = final["containerStatuses"][0]["state"]["terminated"]["message"]
    assert len(message.encode()) <= 4096
    assert set(message) == {"é"}


def test_running_waiting_refused() -> None:
    running = status.running(pod(), NOW, NOW)
    assert running["phase"] == "Running"
    assert running["startTime"] == "2026-01-02T03:04:05Z"
    assert running["containerStatuses"][0]["ready"] is True
    waiting = status.waiting(pod(), "CreateContainerConfigError", "why", NOW)
    assert waiting["phase"] == "Pending"
    assert waiting["containerStatuses"][0]["state"]["waiting"] == {
        "reason": "CreateContainerConfigError",
        "message": "why",
    }
    refused = status.refused("EntryPointNotAllowed", "no")
    assert refused["phase"] == "Failed"
    assert refused["reason"] == "EntryPointNotAllowed"


def test_log_fallback_is_bounded() -> None:
    assert status.log_fallback(b"x\n" * 200) == b"\n".join([b"x"] * 80)
    assert len(status.log_fallback(b"y" * 9000)) == 2048


@pytest.mark.parametrize(
    ("wanted", "reported", "change"),
    [
        ({"p-1": 1}, {"cpu": "2"}, {"akri.sh/p-1": "1"}),
        ({"p-1": 1}, {"akri.sh/p-1": "1"}, {}),
        ({}, {"akri.sh/p-1": "1", "cpu": "2"}, {"akri.sh/p-1": "0"}),
        ({}, {"akri.sh/p-1": "0"}, {}),
        ({"p-1": 2}, {"akri.sh/p-1": "0"}, {"akri.sh/p-1": "2"}),
    ],
)
def test_capacity_follows_the_instances(
    wanted: dict[str, int], reported: dict[str, str], change: dict[str, str]
) -> None:
    assert status.device_capacity(wanted, reported) == change


@pytest.mark.parametrize(
    ("data", "lines", "expected"),
    [(b"a\nb\nc\n", 1, b"c\n"), (b"a\nb\nc", 2, b"b\nc"), (b"a\n", 5, b"a\n"), (b"", 1, b""), (b"a\nb\n", 0, b"")],
)
def test_tail(data: bytes, lines: int, expected: bytes) -> None:
    assert data[tail_offset(data, lines) :] == expected
