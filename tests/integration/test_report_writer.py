# SPDX-License-Identifier: Apache-2.0
"""Only the gateway's account writes permits and verdicts, and it writes nothing else: asked of the real API server."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import requests

from flashjob.sandbox.apply import SYSTEM_NAMESPACE
from flashjob.sandbox.main import Sandbox
from tests import objects

pytestmark = pytest.mark.integration

VERDICT = {
    "attempt": 1,
    "outcome": "Proven",
    "reason": "Proven",
    "at": "2026-01-02T03:04:05Z",
}


@pytest.fixture
def task(sandbox: Sandbox) -> str:
    """A FlashTask, made by a person above the rules."""
    sandbox.plane.kubectl(
        "wait", "--for=jsonpath={.status.observedGeneration}=1", "validatingadmissionpolicy/flashjob-report-writer"
    )
    body = objects.flashtask(f"forged-{uuid.uuid4().hex[:8]}", "default")
    sandbox.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    return str(body["metadata"]["name"])


def patch(sandbox: Sandbox, account: str, task: str, status: dict[str, Any]) -> str:
    """Patch the status as an account; "" if it was taken, else the API server's words."""
    token = sandbox.plane.service_account_token(SYSTEM_NAMESPACE, f"flashjob-{account}")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.patch(
            f"{sandbox.plane.url}/apis/flashjob.dev/v1alpha1/namespaces/default/flashtasks/{task}/status",
            data=json.dumps({"status": status}),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            verify=str(sandbox.plane.ca),
            timeout=30,
        )
    return "" if answer.ok else str(answer.json()["message"])


def test_the_gateway_writes_the_report(sandbox: Sandbox, task: str) -> None:
    assert patch(sandbox, "gateway", task, {"report": {"verdict": VERDICT}}) == ""


@pytest.mark.parametrize("account", ["operator"])
def test_nobody_else_forges_a_verdict(sandbox: Sandbox, task: str, account: str) -> None:
    refused = patch(sandbox, account, task, {"report": {"verdict": VERDICT}})
    assert "only the gateway's account writes it" in refused
    assert patch(sandbox, "gateway", task, {"report": {"verdict": {**VERDICT, "outcome": "Rejected"}}}) == ""
    refused = patch(sandbox, account, task, {"report": {"verdict": {"outcome": "Proven"}}})
    assert "only the gateway's account writes it" in refused
    assert patch(sandbox, account, task, {"phase": "Failed", "reason": "PodFailed"}) == "", "its own fields it writes"


def test_the_gateway_ends_no_task(sandbox: Sandbox, task: str) -> None:
    refused = patch(sandbox, "gateway", task, {"phase": "Succeeded", "reason": "Proven"})
    assert "status.report of a FlashTask and nothing else" in refused


def test_no_success_without_the_verdict(sandbox: Sandbox, task: str) -> None:
    success = {"phase": "Succeeded", "reason": "Proven"}
    assert "only with the verdict Proven" in patch(sandbox, "operator", task, success)
    assert patch(sandbox, "gateway", task, {"report": {"verdict": {**VERDICT, "outcome": "BelowPolicy"}}}) == ""
    assert "only with the verdict Proven" in patch(sandbox, "operator", task, success)
    assert patch(sandbox, "gateway", task, {"report": {"verdict": VERDICT}}) == ""
    assert patch(sandbox, "operator", task, success) == ""
