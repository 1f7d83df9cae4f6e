# SPDX-License-Identifier: Apache-2.0
"""Pods as processes, placed by the real scheduler: what a flashing pod meets on a node of the sandbox."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from flashjob.sandbox.main import Sandbox

from .conftest import POD_PROGRAM

pytestmark = pytest.mark.integration
Json = dict[str, Any]


class Cluster:
    """One namespace of the sandbox and what the tests do in it."""

    def __init__(self, sandbox: Sandbox, namespace: str) -> None:
        self.sandbox = sandbox
        self.namespace = namespace
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    def create(self, plural: str, body: Json, group: str = "/api/v1") -> Json:
        made: Json = self.sandbox.plane.request("POST", f"{group}/namespaces/{self.namespace}/{plural}", body)
        return made

    def pod(self, *arguments: str, name: str = "", container: Json | None = None, **spec: Any) -> str:
        """Create a pod that runs the tests' program; returns its name."""
        name = name or f"pod-{uuid.uuid4().hex[:8]}"
        self.create(
            "pods",
            {
                "metadata": {"name": name, "labels": {"app": "test"}},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "containers": [
                        {
                            "name": "main",
                            "image": "none",
                            "command": ["python", "-m", POD_PROGRAM],
                            "args": list(arguments),
                            **(container or {}),
                        }
                    ],
                    **spec,
                },
            },
        )
        return name

    def get(self, name: str) -> Json:
        item: Json = self.sandbox.plane.request("GET", f"{self._pods}/{name}")
        return item

    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.sandbox.plane.request("GET", self._pods)["items"]]

    def until(self, name: str, condition: Callable[[Json], bool], seconds: float = 30.0) -> Json:
        deadline = time.monotonic() + seconds
        while True:
            item = self.get(name)
            if condition(item):
                return item
            assert time.monotonic() < deadline, json.dumps(item["status"], indent=1)
            time.sleep(0.05)

    def ended(self, name: str, seconds: float = 30.0) -> Json:
        """Wait for the end; returns the status."""
        status: Json = self.until(name, lambda pod: pod["status"]["phase"] in {"Succeeded", "Failed"}, seconds)[
            "status"
        ]
        return status

    def running(self, name: str) -> Json:
        return self.until(name, lambda pod: pod["status"]["phase"] == "Running")

    def delete(self, name: str, grace: int | None = None) -> None:
        body = {} if grace is None else {"gracePeriodSeconds": grace}
        self.sandbox.plane.request("DELETE", f"{self._pods}/{name}", body)

    def wait_gone(self, name: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while name in self.names():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def cluster(sandbox: Sandbox) -> Iterator[Cluster]:
    name = f"test-{uuid.uuid4().hex[:10]}"
    sandbox.plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    cluster = Cluster(sandbox, name)
    deadline = time.monotonic() + 20
    accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
    while not sandbox.plane.request("GET", accounts)["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield cluster
    for pod in cluster.names():
        cluster.delete(pod, grace=0)


def terminated(status: Json) -> Json:
    state: Json = status["containerStatuses"][0]["state"]["terminated"]
    return state


def process_of(uid: str) -> list[int]:
    """Living processes whose environment names the pod's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if uid.encode() in (entry / "environ").read_bytes() and (entry / "stat").read_text().split()[2] != "Z":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_pod_succeeds_with_its_termination_message(cluster: Cluster) -> None:
    container = {"env": [{"name": "GREETING", "value": "hello"}, {"name": "ECHO", "value": "$(GREETING)!"}]}
    status = cluster.ended(cluster.pod("exit", "0", container=container))
    assert status["phase"] == "Succeeded"
    end = terminated(status)
    assert (end["exitCode"], end["reason"]) == (0, "Completed")
    assert end["startedAt"] <= end["finishedAt"]
    env = json.loads(end["message"])
    assert env["ECHO"] == "hello!"
    assert not {"KUBECONFIG", "KUBERNETES_SERVICE_HOST"} & env.keys()
    assert {"type": "PodScheduled", "status": "True"}.items() <= next(
        condition for condition in status["conditions"] if condition["type"] == "PodScheduled"
    ).items()


def test_a_failing_pod_keeps_its_exit_code_and_log(cluster: Cluster) -> None:
    container = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    status = cluster.ended(cluster.pod("shout", "it is broken", "7", container=container))
    assert status["phase"] == "Failed"
    assert terminated(status)["exitCode"] == 7
    assert terminated(status)["message"] == "it is broken"


def test_only_our_entry_points_run(cluster: Cluster) -> None:
    status = cluster.ended(cluster.pod(container={"command": ["/bin/sh", "-c", "true"]}))
    assert status["phase"] == "Failed"
    assert status["reason"] == "EntryPointNotAllowed"
    assert "containerStatuses" not in status


def test_volumes_and_references(cluster: Cluster) -> None:
    password = base64.b64encode(b"hunter2").decode()
    cluster.create("secrets", {"metadata": {"name": "login"}, "data": {"password": password}})
    cluster.create("configmaps", {"metadata": {"name": "ca"}, "data": {"ca.crt": "PEM"}})
    token = {"serviceAccountToken": {"audience": "flashjob-gateway", "expirationSeconds": 600, "path": "token"}}
    container = {
        "env": [
            {"name": "FLASHJOB_TOKEN_FILE", "value": "/var/run/flashjob/token/token"},
            {"name": "FLASHJOB_CA_FILE", "value": "/var/run/flashjob/ca/ca.crt"},
            {"name": "PASSWORD_FILE", "value": "/login/password"},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
        ],
        "volumeMounts": [
            {"name": "token", "mountPath": "/var/run/flashjob/token"},
            {"name": "ca", "mountPath": "/var/run/flashjob/ca"},
            {"name": "login", "mountPath": "/login"},
            {"name": "work", "mountPath": "/work"},
        ],
    }
    volumes = [
        {"name": "token", "projected": {"sources": [token]}},
        {"name": "ca", "configMap": {"name": "ca"}},
        {"name": "login", "secret": {"secretName": "login"}},
        {"name": "work", "emptyDir": {}},
    ]
    wanted = ["FLASHJOB_TOKEN_FILE", "FLASHJOB_CA_FILE", "PASSWORD_FILE"]
    name = cluster.pod("files", *wanted, container=container, volumes=volumes)
    status = cluster.ended(name)
    assert status["phase"] == "Succeeded", status
    files = json.loads(terminated(status)["message"])
    assert files["FLASHJOB_CA_FILE"] == "PEM"
    assert files["PASSWORD_FILE"] == "hunter2"
    payload = files["FLASHJOB_TOKEN_FILE"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"] == ["flashjob-gateway"]
    assert claims["kubernetes.io"]["pod"] == {"name": name, "uid": cluster.get(name)["metadata"]["uid"]}
    assert claims["exp"] - claims["iat"] == 600


def test_what_a_pod_refers_to_may_come_later(cluster: Cluster) -> None:
    container = {"env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "late", "key": "k"}}}]}
    name = cluster.pod("exit", "0", container=container)

    def waits(pod: Json) -> bool:
        statuses = pod["status"].get("containerStatuses") or [{"state": {}}]
        return bool(statuses[0]["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError")

    waiting = cluster.until(name, waits)
    assert waiting["status"]["phase"] == "Pending"
    assert '"late" not found' in waiting["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
    cluster.create("secrets", {"metadata": {"name": "late"}, "stringData": {"k": "v"}})
    assert json.loads(terminated(cluster.ended(name))["message"])["V"] == "v"


def test_a_deadline_ends_a_pod(cluster: Cluster) -> None:
    status = cluster.ended(cluster.pod("wait", activeDeadlineSeconds=1))
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
    assert terminated(status)["message"] == "stopped by SIGTERM"
    assert terminated(status)["exitCode"] == 143


def test_deletion_asks_first(cluster: Cluster) -> None:
    name = cluster.pod("wait", terminationGracePeriodSeconds=20)
    uid = cluster.running(name)["metadata"]["uid"]
    assert process_of(uid)
    started = time.monotonic()
    cluster.delete(name)
    cluster.wait_gone(name)
    assert time.monotonic() - started < 15  # it did not wait for the end of the grace period
    assert process_of(uid) == []


def test_deletion_kills_what_ignores_it(cluster: Cluster) -> None:
    name = cluster.pod("stubborn", terminationGracePeriodSeconds=1)
    uid = cluster.running(name)["metadata"]["uid"]
    cluster.delete(name)
    cluster.wait_gone(name)
    assert process_of(uid) == []


def test_forced_deletion_leaves_no_process(cluster: Cluster) -> None:
    name = cluster.pod("stubborn", terminationGracePeriodSeconds=600)
    uid = cluster.running(name)["metadata"]["uid"]
    cluster.delete(name, grace=0)
    deadline = time.monotonic() + 10
    while process_of(uid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_of_a_pod_stays_on_disk_but_its_log(cluster: Cluster) -> None:
    name = cluster.pod("shout", "last words", "0")
    cluster.ended(name)
    pod = cluster.get(name)
    root = cluster.sandbox.state_dir / "nodes" / pod["spec"]["nodeName"]
    deadline = time.monotonic() + 5
    while (root / "pods" / pod["metadata"]["uid"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "last words" in next((root / "logs").glob(f"*_{name}_*.log")).read_text()


def test_logs_can_be_read_while_a_pod_runs_and_after(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.pod("shout", "one", "0")
    cluster.ended(name)
    kubectl = cluster.sandbox.plane.kubectl
    assert kubectl("logs", name, "-n", cluster.namespace) == "one\n"
    release = tmp_path / "release"
    waiting = cluster.pod("wait-for", str(release))
    node = cluster.running(waiting)["spec"]["nodeName"]
    release.touch()
    assert kubectl("logs", "-f", waiting, "-n", cluster.namespace) == "released\n"
    port = cluster.sandbox.plane.request("GET", f"/api/v1/nodes/{node}")["status"]["daemonEndpoints"]["kubeletEndpoint"]
    url = f"https://127.0.0.1:{port['Port']}/containerLogs/{cluster.namespace}/{name}/main"
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url, verify=str(cluster.sandbox.plane.ca), timeout=10)
    stranger = cluster.sandbox.plane.authority.issue("stranger", "stranger")
    refused = requests.get(
        url, verify=str(cluster.sandbox.plane.ca), cert=(str(stranger[0]), str(stranger[1])), timeout=10
    )
    assert refused.status_code == 403


INSTANCES = "/apis/akri.sh/v0"


def instance(cluster: Cluster, node: str, devnode: str) -> str:
    """A hand-made port Instance on a node; waits until the node offers it."""
    name = f"ports-{uuid.uuid4().hex[:6]}"
    spec = {
        "configurationName": "ports",
        "cdiName": f"akri.sh/ports={name[-6:]}",
        "capacity": 1,
        "brokerProperties": {"UDEV_DEVNODE": devnode, "UDEV_DEVPATH": "/virtual/x"},
        "nodes": [node],
    }
    cluster.create(
        "instances",
        {"apiVersion": "akri.sh/v0", "kind": "Instance", "metadata": {"name": name}, "spec": spec},
        INSTANCES,
    )
    wait_for_capacity(cluster, node, name, "1")
    return name


def wait_for_capacity(cluster: Cluster, node: str, name: str, slots: str) -> None:
    deadline = time.monotonic() + 15
    while True:
        status = cluster.sandbox.plane.request("GET", f"/api/v1/nodes/{node}")["status"]
        if status["allocatable"].get(f"akri.sh/{name}") == slots == status["capacity"].get(f"akri.sh/{name}"):
            return
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def claim(name: str) -> Json:
    return {"resources": {"limits": {f"akri.sh/{name}": "1"}, "requests": {f"akri.sh/{name}": "1"}}}


def test_a_device_is_claimed_by_one_pod_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    name = instance(cluster, "node-b", "/dev/virtual-7")
    release = tmp_path / "release"
    first = cluster.pod("wait-for", str(release), container=claim(name))
    assert cluster.running(first)["spec"]["nodeName"] == "node-b"
    second = cluster.pod("exit", "0", container=claim(name))
    waiting = cluster.until(second, lambda pod: bool(pod["status"].get("conditions")))
    assert waiting["status"]["phase"] == "Pending"
    assert f"akri.sh/{name}" in waiting["status"]["conditions"][0]["message"]
    assert cluster.get(first)["status"]["phase"] == "Running"

    release.touch()
    assert json.loads(terminated(cluster.ended(first))["message"]) == {"UDEV_DEVNODE": "/dev/virtual-7"}
    env = json.loads(terminated(cluster.ended(second))["message"])
    assert env["UDEV_DEVNODE"] == env[f"UDEV_DEVNODE_{name[-6:].upper()}"] == "/dev/virtual-7"
    assert cluster.get(second)["spec"]["nodeName"] == "node-b"


def test_a_device_that_is_gone_cannot_be_claimed(cluster: Cluster) -> None:
    name = instance(cluster, "node-a", "/dev/virtual-8")
    cluster.sandbox.plane.request("DELETE", f"{INSTANCES}/namespaces/{cluster.namespace}/instances/{name}")
    wait_for_capacity(cluster, "node-a", name, "0")
    pod = cluster.pod("exit", "0", container=claim(name))
    waiting = cluster.until(pod, lambda item: bool(item["status"].get("conditions")))
    assert waiting["status"]["conditions"][0]["reason"] == "Unschedulable"
    assert "nodeName" not in waiting["spec"]


def test_the_scheduler_obeys_the_hostname(cluster: Cluster) -> None:
    for node in ("node-a", "node-b"):
        name = cluster.pod("exit", "0", nodeSelector={"kubernetes.io/hostname": node})
        cluster.ended(name)
        assert cluster.get(name)["spec"]["nodeName"] == node


def test_the_registry_wants_its_password(sandbox: Sandbox) -> None:
    login = sandbox.registry.login
    assert login is not None
    url = f"http://{sandbox.registry.host}/v2/"
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, auth=(login.user, "wrong"), timeout=10).status_code == 401
    assert requests.get(url, auth=(login.user, login.password), timeout=10).status_code == 200
    assert login.password not in repr(login)
    config = sandbox.registry.docker_config(sandbox.state_dir / "docker" / "config.json")
    assert json.loads(config.read_text())["auths"][sandbox.registry.host]["password"] == login.password
    assert os.stat(config).st_mode & 0o077 == 0
