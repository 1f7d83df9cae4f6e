# SPDX-License-Identifier: Apache-2.0
"""The discovery handler's account writes what it saw, and wakes Configurations: asked of the real API server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from flashjob.sandbox.apply import SYSTEM_NAMESPACE
from flashjob.sandbox.main import Sandbox
from flashjob.trust.discovery import ANNOTATION_WOKEN
from tests import objects

pytestmark = pytest.mark.integration

AT = "2026-01-02T03:04:05Z"
CONFIGURATION = {"discoveryHandler": {"name": "nobody"}, "capacity": 1, "brokerProperties": {"SITE": "farm"}}


@pytest.fixture(params=["devices", "configurations"])
def path(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[str]:
    """An object that somebody else has made, as the API server names it; a Device has been in quarantine since `AT`."""
    name = f"touched-{uuid.uuid4().hex[:8]}"
    if request.param == "devices":
        policy, path = "flashjob-discovery-status", f"/apis/flashjob.dev/v1alpha1/namespaces/default/devices/{name}"
        body = objects.device(name, "default", device_id=f"01{uuid.uuid4().hex * 2}")
    else:
        policy, path = "flashjob-discovery-wakes", f"/apis/akri.sh/v0/namespaces/default/configurations/{name}"
        body = {
            "apiVersion": "akri.sh/v0",
            "kind": "Configuration",
            "metadata": {"name": name, "namespace": "default", "labels": {"site": "farm"}},
            "spec": CONFIGURATION,
        }
    sandbox.plane.kubectl(
        "wait", "--for=jsonpath={.status.observedGeneration}=1", f"validatingadmissionpolicy/{policy}"
    )
    sandbox.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    if request.param == "devices":
        status = {"quarantine": {"reason": "BootIdMismatch", "since": AT}, "floors": {"securityVersion": 3}}
        sandbox.plane.request("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json")
    yield path
    sandbox.plane.request("DELETE", path)


def patch(sandbox: Sandbox, path: str, body: Any) -> str:
    """A merge patch by the handler's account; "" if it was taken, else the API server's words."""
    token = sandbox.plane.service_account_token(SYSTEM_NAMESPACE, "flashjob-discovery-handler")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.patch(
            f"{sandbox.plane.url}{path}",
            data=json.dumps(body),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            verify=str(sandbox.plane.ca),
            timeout=30,
        )
    return "" if answer.ok else str(answer.json()["message"])


@pytest.mark.parametrize("path", ["devices"], indirect=True)
def test_it_writes_what_it_saw(sandbox: Sandbox, path: str) -> None:
    saw = {
        "attestation": {"accepted": True, "at": AT},
        "endpoint": "192.0.2.7:80",
        "instance": {"name": "porches-123456", "configuration": "porches"},
    }
    assert patch(sandbox, f"{path}/status", {"status": saw}) == ""
    assert patch(sandbox, f"{path}/status", {"status": {"instance": None}}) == ""


@pytest.mark.parametrize("path", ["devices"], indirect=True)
@pytest.mark.parametrize(
    "status",
    [
        {"quarantine": None},
        {"quarantine": {"since": "2020-01-02T03:04:05Z"}},
        {"floors": {"securityVersion": 9}},
        {"floors": {"bootCount": 9}},
        {"firmware": {"artifact": "registry.example/evil:1", "version": "9", "confirmedAt": AT}},
        {"hardware": {"chip": "esp32c3"}},
        {"outcomes": [{"task": "t", "phase": "Succeeded", "reason": "Proven", "at": AT}]},
    ],
    ids=json.dumps,
)
def test_it_neither_lets_go_nor_holds_back(sandbox: Sandbox, path: str, status: Any) -> None:
    refused = patch(sandbox, f"{path}/status", {"status": status})
    assert "writes what it saw" in refused, refused


@pytest.mark.parametrize("path", ["configurations"], indirect=True)
def test_it_wakes_a_configuration(sandbox: Sandbox, path: str) -> None:
    assert patch(sandbox, path, {"metadata": {"annotations": {ANNOTATION_WOKEN: AT}}}) == ""
    assert patch(sandbox, path, {"metadata": {"annotations": {ANNOTATION_WOKEN: f"{AT}, again"}}}) == ""


@pytest.mark.parametrize("path", ["configurations"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"brokerSpec": {"brokerPodSpec": {"containers": [{"name": "x", "image": "registry.example/evil"}]}}}},
        {"spec": {"brokerProperties": {"FLASHJOB_LISTING": "forged"}}},
        {"spec": {"capacity": 2}},
        {"metadata": {"labels": {"site": None}}},
        {"metadata": {"finalizers": ["for-ever.example/me"]}},
    ],
    ids=json.dumps,
)
def test_it_changes_no_configuration(sandbox: Sandbox, path: str, change: Any) -> None:
    refused = patch(sandbox, path, change)
    assert "by an annotation" in refused, refused
