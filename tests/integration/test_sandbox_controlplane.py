# SPDX-License-Identifier: Apache-2.0
"""The embedded control plane is a real one, gives every identity its own rights, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from flashjob.errors import FlashJobError
from flashjob.sandbox.client import ApiClient, ApiError, Changed, Listed
from flashjob.sandbox.launcher import ControlPlane

from .processes import of_state_dir, wait_until_none

pytestmark = pytest.mark.integration
ROOT = str(Path(__file__).parents[2])
STARTER = """
import sys, time
from pathlib import Path
from flashjob.sandbox.launcher import ControlPlane
plane = ControlPlane.start(Path(sys.argv[1]), binary=Path(sys.argv[2]))
Path(sys.argv[1], "pids.new").write_text(" ".join(str(program.pid) for program in plane.programs))
Path(sys.argv[1], "pids.new").rename(Path(sys.argv[1], "pids"))
time.sleep(600)
"""


def config_map(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}}


def test_create_read_update_delete(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    made = control_plane.request("POST", path, config_map("c"))
    assert made["metadata"]["uid"]
    control_plane.request("PATCH", f"{path}/c", {"data": {"k": "w"}}, "application/merge-patch+json")
    assert control_plane.kubectl("get", "configmap", "c", "-n", namespace, "-o", "jsonpath={.data.k}") == "w"
    control_plane.request("DELETE", f"{path}/c")
    with pytest.raises(FlashJobError) as caught:
        control_plane.request("GET", f"{path}/c")
    assert caught.value.reason == "ApiRefused"
    assert "not found" in caught.value.message


def test_the_server_is_the_version_we_say(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json"))
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"] == "v1.36.2"


def test_children_of_a_deleted_owner_are_collected(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = control_plane.request("POST", path, config_map("owner"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    child = config_map("child")
    child["metadata"] = {"name": "child", "ownerReferences": [reference]}
    control_plane.request("POST", path, child)
    control_plane.request("DELETE", f"{path}/owner")
    control_plane.kubectl("wait", "--for=delete", "configmap/child", "-n", namespace, "--timeout=60s")


def test_nobody_gets_in_without_credentials(control_plane: ControlPlane) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = requests.get(
            control_plane.url + "/api/v1/secrets", headers=headers, verify=str(control_plane.ca), timeout=10
        )
        assert answer.status_code in {401, 403}


async def test_a_service_account_may_do_nothing_by_default(control_plane: ControlPlane, namespace: str) -> None:
    account = {"metadata": {"name": "nobody"}}
    control_plane.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    async with ApiClient.from_kubeconfig(control_plane.service_account_kubeconfig(namespace, "nobody")) as client:
        with pytest.raises(ApiError) as caught:
            await client.request("GET", f"/api/v1/namespaces/{namespace}/pods")
    assert caught.value.status == 403
    assert f"system:serviceaccount:{namespace}:nobody" in caught.value.message


def test_tokens_of_an_audience_verify_against_the_published_keys(control_plane: ControlPlane, namespace: str) -> None:
    keys = control_plane.request("GET", "/openid/v1/jwks")["keys"]
    assert [key["kty"] for key in keys] == ["EC"]
    control_plane.kubectl("create", "serviceaccount", "s", "-n", namespace)
    token = control_plane.service_account_token(namespace, "s", 600, "flashjob-gateway")
    refused = requests.get(
        control_plane.url + "/api",
        headers={"Authorization": f"Bearer {token}"},
        verify=str(control_plane.ca),
        timeout=10,
    )
    assert refused.status_code == 401


def test_private_files_are_private(control_plane: ControlPlane) -> None:
    assert (
        control_plane.state_dir.stat().st_mode & 0o077 == 0
        or (control_plane.state_dir / "pki").stat().st_mode & 0o077 == 0
    )
    assert (control_plane.state_dir / "pki").stat().st_mode & 0o077 == 0
    for path in (*control_plane.state_dir.glob("pki/*.key"), *control_plane.state_dir.glob("kubeconfig/*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_requests_are_in_the_audit_log(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", config_map("audited"))
    lines = (control_plane.state_dir / "audit.log").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines if '"audited"' in line and namespace in line]
    assert [(event["verb"], event["user"]["username"]) for event in events] == [("create", "admin")]


async def test_follow_lists_then_watches(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets"
    async with ApiClient.from_kubeconfig(control_plane.kubeconfig) as client:
        body = {"metadata": {"name": "first"}}
        await client.request("POST", path, body)
        events = client.follow(path)
        listed = await anext(events)
        assert isinstance(listed, Listed)
        assert [item["metadata"]["name"] for item in listed.items] == ["first"]
        await client.request("POST", path, {"metadata": {"name": "second"}})
        added = await anext(events)
        assert isinstance(added, Changed)
        assert (added.item["metadata"]["name"], added.deleted) == ("second", False)
        await client.request("DELETE", f"{path}/first")
        gone = await anext(events)
        assert isinstance(gone, Changed)
        assert (gone.item["metadata"]["name"], gone.deleted) == ("first", True)
        await events.aclose()  # type: ignore[attr-defined]


def test_state_survives_a_restart_and_a_stop_leaves_nothing(control_plane_binary: Path, tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path, binary=control_plane_binary) as plane:
        plane.request("POST", "/api/v1/namespaces/default/configmaps", config_map("kept"))
        assert len(of_state_dir(tmp_path)) >= 4
    assert of_state_dir(tmp_path) == []
    with ControlPlane.start(tmp_path, binary=control_plane_binary) as plane:
        kept = plane.request("GET", "/api/v1/namespaces/default/configmaps/kept")
        assert kept["data"] == {"k": "v"}
    plane.stop()  # a second stop does nothing
    assert of_state_dir(tmp_path) == []


def test_nothing_is_left_after_kill_9_of_the_launcher(control_plane_binary: Path, tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), str(control_plane_binary)],
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pids").exists():
            assert launcher.poll() is None, "the launcher ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(of_state_dir(tmp_path)) >= 5
    finally:
        launcher.kill()
        launcher.wait()
    wait_until_none(tmp_path)


def test_a_component_that_does_not_start_is_named_with_its_log(control_plane_binary: Path, tmp_path: Path) -> None:
    with pytest.raises(FlashJobError) as caught:
        ControlPlane.start(tmp_path, binary=control_plane_binary, apiserver_arguments=["--no-such-flag"])
    assert caught.value.reason == "ProgramEnded"
    assert "kube-apiserver" in caught.value.message
    assert "no-such-flag" in caught.value.message
    assert of_state_dir(tmp_path) == []
