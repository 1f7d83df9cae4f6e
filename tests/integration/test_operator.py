# SPDX-License-Identifier: Apache-2.0
"""The operator as a process on a real API server, under its own ServiceAccount: finalizer, conditions, Events, drain."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.keys import private_to_pem, to_pem
from flashjob.api.meta import FINALIZER
from flashjob.sandbox.main import Sandbox
from flashjob.sandbox.ports import free_port
from flashjob.sandbox.stack import Stack

pytestmark = pytest.mark.integration
DEVICE = "01" + "ab" * 32


@pytest.fixture(scope="module")
def stack(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway and operator on the sandbox; no discovery handler."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("grant", "listing"):
        (folder / name).write_bytes(private_to_pem(ec.generate_private_key(ec.SECP256R1())))
    made = Stack(sandbox, folder / "grant", folder / "listing")
    made.publish()
    made.start_gateway()
    made.start_operator()
    made.wait_ready(f"{made.gateway_url}/readyz")
    made.wait_ready(operator_url(made, "readyz"))
    yield made
    made.stop(made.operator)
    made.stop(made.gateway)


def operator_url(stack: Stack, path: str) -> str:
    return f"http://127.0.0.1:{stack._operator_port}/{path}"


def kubectl(stack: Stack, *arguments: str) -> Any:
    return json.loads(stack.sandbox.plane.kubectl(*arguments, "-o", "json"))


def until(found: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return value


def condition(stack: Stack, job: str, kind: str) -> dict[str, Any]:
    status = kubectl(stack, "get", "flashjob", job).get("status", {})
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def apply_world(stack: Stack, image: str, job: str) -> None:
    api = "flashjob.dev/v1alpha1"
    signer = to_pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    stack.apply(
        {
            "apiVersion": api,
            "kind": "AttestationPolicy",
            "metadata": {"name": "lab"},
            "spec": {"requiredSigners": {"keys": [{"name": "ci", "publicKey": signer}]}},
        },
        {
            "apiVersion": api,
            "kind": "Device",
            "metadata": {"name": "porch-1", "labels": {"site": "berlin"}},
            "spec": {
                "id": DEVICE,
                "policyRef": {"name": "lab"},
                "connection": {"network": {"address": "127.0.0.1:1"}},
                "hardware": {"chip": "esp32s3"},
            },
        },
        {
            "apiVersion": api,
            "kind": "FlashJob",
            "metadata": {"name": job},
            "spec": {
                "firmware": {"image": image, "plainHTTP": True},
                "devices": {"selector": {"matchLabels": {"site": "berlin"}}},
            },
        },
    )


def test_a_silent_registry_makes_the_job_wait_and_deletion_is_not_held_up(stack: Stack) -> None:
    apply_world(stack, f"127.0.0.1:{free_port()}/porch:1", "waits")
    until(lambda: condition(stack, "waits", "ArtifactVerified").get("reason") == "RegistryUnavailable")
    job = kubectl(stack, "get", "flashjob", "waits")
    assert FINALIZER in job["metadata"]["finalizers"]
    assert not any(key.startswith("flashjob.dev/") for key in job["metadata"].get("annotations", {}))
    assert condition(stack, "waits", "Finished")["status"] == "False"
    assert condition(stack, "waits", "Progressing")["reason"] == "RegistryUnavailable"
    stack.sandbox.plane.kubectl("delete", "flashjob", "waits", "--timeout=20s")


def test_an_unknown_tag_ends_the_job_with_an_event(stack: Stack) -> None:
    image = f"{stack.sandbox.registry.host}/nobody/porch:9"
    apply_world(stack, image, "unknown")
    until(lambda: condition(stack, "unknown", "Finished").get("status") == "True")
    failed = condition(stack, "unknown", "Failed")
    assert failed["status"] == "True"
    assert failed["reason"] in ("ImageNotFound", "RegistryUnauthorized")
    events = until(
        lambda: [e for e in kubectl(stack, "get", "events")["items"] if e["involvedObject"]["name"] == "unknown"]
    )
    assert {e["type"] for e in events} == {"Warning"}
    stack.sandbox.plane.kubectl("delete", "flashjob", "unknown", "--timeout=20s")


def test_probes_and_metrics(stack: Stack) -> None:
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(operator_url(stack, "healthz"), timeout=5).text == "ok\n"
        text = session.get(operator_url(stack, "metrics"), timeout=5).text
    assert 'flashjob_reconciles_total{result="ok"}' in text
    assert 'flashjob_unreadable_objects{kind="flashtasks.flashjob.dev"} 0.0' in text


def test_the_operator_uses_little_memory(stack: Stack) -> None:
    with requests.Session() as session:
        session.trust_env = False
        text = session.get(operator_url(stack, "metrics"), timeout=5).text
    line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes"))
    assert float(line.split()[1]) < 120e6
