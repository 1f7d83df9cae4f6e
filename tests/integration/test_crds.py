# SPDX-License-Identifier: Apache-2.0
"""A real API server takes the CRDs without a warning, refuses every bad object by field, and keeps what is immutable."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from flashjob.api.crds import crds
from flashjob.api.flashtask import Phase
from flashjob.sandbox.launcher import ControlPlane
from tests.objects import DIGEST, device, flashjob, flashtask, policy

pytestmark = pytest.mark.integration


class Api:
    """Requests as admin; every warning header is kept."""

    def __init__(self, plane: ControlPlane) -> None:
        self.session = requests.Session()
        self.session.verify = str(plane.ca)
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {plane.admin_token}"
        self.url = plane.url
        self.warnings: list[str] = []

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json") -> tuple[int, Any]:
        answer = self.session.request(method, self.url + path, json=body, headers={"Content-Type": content}, timeout=30)
        if "Warning" in answer.headers:
            self.warnings.append(answer.headers["Warning"])
        return answer.status_code, answer.json()

    def merge(self, path: str, patch: Any) -> tuple[int, Any]:
        return self.call("PATCH", path, patch, "application/merge-patch+json")


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> Iterator[Api]:
    api = Api(control_plane)
    install_crds(control_plane)
    yield api
    assert api.warnings == []
    api.session.close()


def install_crds(plane: ControlPlane) -> None:
    """Apply all CRDs strictly and wait until each is established."""
    api = Api(plane)
    for crd in crds():
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        query = "?fieldManager=test&fieldValidation=Strict&force=true"
        status, made = api.call("PATCH", path + query, crd, "application/apply-patch+yaml")
        assert status in (200, 201), made["message"]
    for crd in crds():
        plane.kubectl("wait", "--for=condition=Established", f"crd/{crd['metadata']['name']}", "--timeout=30s")
        made = plane.request(
            "GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        )
        conditions = {condition["type"]: condition for condition in made["status"]["conditions"]}
        assert "NonStructuralSchema" not in conditions
        assert conditions["NamesAccepted"]["status"] == "True"
    assert api.warnings == []


def collection(namespace: str, plural: str) -> str:
    return f"/apis/flashjob.dev/v1alpha1/namespaces/{namespace}/{plural}"


def test_every_kind_is_taken_with_its_defaults(api: Api, namespace: str) -> None:
    for plural, obj in (
        ("attestationpolicies", policy("p")),
        ("devices", device("d")),
        ("flashjobs", flashjob("j")),
        ("flashtasks", flashtask("t")),
    ):
        status, made = api.call("POST", collection(namespace, plural) + "?fieldValidation=Strict", obj)
        assert status == 201, made["message"]
    _, job = api.call("GET", collection(namespace, "flashjobs/j"))
    assert job["spec"]["strategy"] == {
        "maxInFlight": 20,
        "onBusy": "Wait",
        "retries": {"limit": 2, "backoffSeconds": 30},
    }
    assert job["spec"]["attestation"] == {"before": "Identity"}
    assert job["spec"]["timeouts"]["writeSeconds"] == 300
    assert job["status"]["phase"] == "Pending"
    _, task = api.call("GET", collection(namespace, "flashtasks/t"))
    assert (task["status"]["phase"], task["status"]["reason"]) == ("Pending", "WaitingForTurn")
    _, found = api.call("GET", collection(namespace, "flashtasks") + "?fieldSelector=status.phase=Pending")
    assert [item["metadata"]["name"] for item in found["items"]] == ["t"]


def test_kubectl_shows_the_columns(control_plane: ControlPlane, api: Api, namespace: str) -> None:
    api.call("POST", collection(namespace, "devices"), device("d"))
    api.call("POST", collection(namespace, "flashtasks"), flashtask("t"))
    api.call("POST", collection(namespace, "flashjobs"), flashjob("j"))
    api.call("POST", collection(namespace, "attestationpolicies"), policy("p"))
    for short, columns in {
        "fj": ["NAME", "PHASE", "PROGRESS", "VERSION", "REASON", "AGE"],
        "ft": ["NAME", "DEVICE", "PHASE", "STAGE", "REASON", "AGE"],
        "dev": ["NAME", "ROOT OF TRUST", "APPLICATION", "VERSION", "QUARANTINED", "AGE"],
        "ap": ["NAME", "ROOT OF TRUST", "MEASURED", "AGE"],
    }.items():
        header = control_plane.kubectl("get", short, "-n", namespace).splitlines()[0]
        assert [part.strip() for part in header.split("  ") if part.strip()] == columns
    assert control_plane.kubectl("get", "flashjob", "-n", namespace, "-o", "name").split() == [
        "flashjob.flashjob.dev/j"
    ]
    assert "SignedBoot" in control_plane.kubectl("get", "dev", "d", "-n", namespace)


INVALID_JOBS = [
    ("firmware missing", {"firmware": None}, "spec.firmware"),
    ("image missing", {"firmware": {"image": None}}, "spec.firmware.image"),
    ("image empty", {"firmware": {"image": ""}}, "spec.firmware.image"),
    ("image of wrong type", {"firmware": {"image": 7}}, "spec.firmware.image"),
    (
        "threshold beyond the keys",
        {"firmware": {"verify": {"keys": [{"name": "ci", "secretKeyRef": {"name": "s", "key": "k"}}], "threshold": 2}}},
        "spec.firmware.verify.threshold",
    ),
    ("no keys", {"firmware": {"verify": {"keys": []}}}, "spec.firmware.verify.keys"),
    (
        "one key name twice",
        {"firmware": {"verify": {"keys": [{"name": "ci", "secretKeyRef": {"name": "s", "key": "k"}}] * 2}}},
        "spec.firmware.verify.keys",
    ),
    ("devices missing", {"devices": None}, "spec.devices"),
    ("nothing selected", {"devices": {"selector": None}}, "spec.devices"),
    ("selected twice", {"devices": {"akri": {"configuration": "c"}}}, "spec.devices"),
    ("empty selector", {"devices": {"selector": {"matchLabels": None}}}, "spec.devices.selector"),
    ("empty labels", {"devices": {"selector": {"matchLabels": {"site": None}}}}, "spec.devices.selector"),
    ("empty properties", {"devices": {"selector": None, "properties": {}}}, "spec.devices.properties"),
    (
        "In without values",
        {"devices": {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}},
        "spec.devices.selector.matchExpressions",
    ),
    (
        "unknown operator",
        {"devices": {"selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}},
        "spec.devices.selector.matchExpressions[0].operator",
    ),
    ("unknown transport", {"transport": "Pigeon"}, "spec.transport"),
    ("unknown before", {"attestation": {"before": "Maybe"}}, "spec.attestation.before"),
    ("blank boards by any transport", {"attestation": {"before": "None"}}, "spec.attestation.before"),
    ("nothing in flight", {"strategy": {"maxInFlight": 0}}, "spec.strategy.maxInFlight"),
    ("negative retries", {"strategy": {"retries": {"limit": -1}}}, "spec.strategy.retries.limit"),
    ("no time to write", {"timeouts": {"writeSeconds": 0}}, "spec.timeouts.writeSeconds"),
    ("a time as text", {"timeouts": {"bootSeconds": "60s"}}, "spec.timeouts.bootSeconds"),
    ("negative ttl", {"ttlSecondsAfterFinished": -5}, "spec.ttlSecondsAfterFinished"),
    ("unknown rediscovery", {"rediscovery": "Perhaps"}, "spec.rediscovery"),
    ("unknown field", {"firmwear": "x"}, "spec.firmwear"),
]


def merged(base: Any, change: Any) -> Any:
    """`base` with `change` merged in; None removes."""
    if not isinstance(change, dict):
        return change
    out = copy.deepcopy(base) if isinstance(base, dict) else {}
    for key, value in change.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


@pytest.mark.parametrize(
    ("change", "field"), [case[1:] for case in INVALID_JOBS], ids=[case[0] for case in INVALID_JOBS]
)
def test_an_invalid_job_is_refused_by_field(api: Api, namespace: str, change: Any, field: str) -> None:
    job = flashjob("bad")
    job["spec"] = merged(job["spec"], change)
    status, answer = api.call("POST", collection(namespace, "flashjobs") + "?fieldValidation=Strict", job)
    assert status in (400, 422), answer.get("message")
    assert field in answer["message"]


def test_a_long_job_name_is_refused(api: Api, namespace: str) -> None:
    status, answer = api.call("POST", collection(namespace, "flashjobs"), flashjob("j" * 64))
    assert status == 422
    assert "metadata.name" in answer["message"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"firmware": {"image": "127.0.0.1:5000/other:1"}}, "spec.firmware"),
        ({"firmware": {"plainHTTP": False}}, "spec.firmware"),
        ({"firmware": {"pullSecrets": None}}, "spec.firmware"),
        ({"devices": {"selector": {"matchLabels": {"site": "paris"}}}}, "spec.devices"),
        ({"transport": "Network"}, "spec.transport"),
        ({"attestation": {"before": "Known"}}, "spec.attestation"),
        ({"attestation": None}, None),
    ],
)
def test_what_a_job_is_about_never_changes(api: Api, namespace: str, patch: Any, field: str | None) -> None:
    job = flashjob("j")
    job["spec"]["firmware"] |= {"plainHTTP": True, "pullSecrets": [{"name": "login"}]}
    assert api.call("POST", collection(namespace, "flashjobs"), job)[0] == 201
    status, answer = api.merge(collection(namespace, "flashjobs/j"), {"spec": patch})
    if field is None:  # the default comes back: nothing has changed
        assert status == 200
        assert answer["spec"]["attestation"] == {"before": "Identity"}
    else:
        assert status == 422
        assert field in answer["message"]


def test_how_a_job_goes_may_change(api: Api, namespace: str) -> None:
    api.call("POST", collection(namespace, "flashjobs"), flashjob("j"))
    patch = {"paused": True, "strategy": {"maxInFlight": 3}, "ttlSecondsAfterFinished": 60}
    status, answer = api.merge(collection(namespace, "flashjobs/j"), {"spec": patch})
    assert status == 200, answer.get("message")
    assert answer["metadata"]["generation"] == 2


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"id": "01" + "22" * 32}, "spec.id"),
        ({"rootOfTrust": "Isolated"}, "spec.rootOfTrust"),
        ({"rootOfTrust": None}, "spec.rootOfTrust"),
        ({"trustAnchor": {"coseKey": "AAAA"}}, "spec.trustAnchor"),
        ({"trustAnchor": None}, "spec.trustAnchor"),
        ({"connection": {"network": {}}}, "spec.connection"),
        ({"connection": {"serial": None}}, "spec.connection"),
        ({"connection": {"serial": {"match": {"UDEV_DEVPATH": None}}}}, "spec.connection.serial.match"),
    ],
)
def test_who_a_device_is_never_changes(api: Api, namespace: str, patch: Any, field: str) -> None:
    assert api.call("POST", collection(namespace, "devices"), device("d"))[0] == 201
    status, answer = api.merge(collection(namespace, "devices/d"), {"spec": patch})
    assert status == 422, answer.get("message")
    assert field in answer["message"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"baud": 1}, "spec.connection.serial.baud"),
        ({"baud": "fast"}, "spec.connection.serial.baud"),
        ({"stub": "no"}, "spec.connection.serial.stub"),
        (
            {"reset": "W0.1.2"},
            "spec.connection.serial.reset: auto, usb-jtag, classic, none, or at most 32 steps as D0|R1",
        ),
        ({"reset": "D0\n"}, "spec.connection.serial.reset: auto, usb-jtag"),
        ({"reset": "|".join(["D0"] * 33)}, "spec.connection.serial.reset: auto, usb-jtag"),
    ],
)
def test_a_line_that_nobody_can_drive_is_refused(api: Api, namespace: str, line: Any, says: str) -> None:
    assert api.call("POST", collection(namespace, "devices"), device("d"))[0] == 201
    status, answer = api.merge(collection(namespace, "devices/d"), {"spec": {"connection": {"serial": line}}})
    assert status == 422, answer.get("message")
    assert says in answer["message"]


def test_a_line_may_be_driven_otherwise_and_has_defaults(api: Api, namespace: str) -> None:
    assert api.call("POST", collection(namespace, "devices"), device("d"))[0] == 201
    patch = {"connection": {"serial": {"reset": "D0|R1|W0.1|D1|R0|W0.05|D0", "stub": False}}}
    status, answer = api.merge(collection(namespace, "devices/d"), {"spec": patch})
    assert status == 200, answer.get("message")
    serial = answer["spec"]["connection"]["serial"]
    assert (serial["baud"], serial["stub"]) == (460_800, False)


def test_a_device_may_move(api: Api, namespace: str) -> None:
    api.call("POST", collection(namespace, "devices"), device("d"))
    patch = {"connection": {"serial": None, "network": {"address": "127.0.0.1:9"}}, "suspended": True}
    status, answer = api.merge(collection(namespace, "devices/d"), {"spec": patch})
    assert status == 200, answer.get("message")


@pytest.mark.parametrize(
    "status",
    [
        {"floors": {"sequence": 6}},
        {"floors": {"securityVersion": 0}},
        {"floors": {"bootCount": None}},
        {"floors": None},
        None,
    ],
)
def test_floors_only_rise(api: Api, namespace: str, status: Any) -> None:
    api.call("POST", collection(namespace, "devices"), device("d"))
    path = collection(namespace, "devices/d/status")
    floors = {"securityVersion": 1, "sequence": 7, "bootCount": 3}
    assert api.merge(path, {"status": {"floors": floors}})[0] == 200
    code, answer = api.merge(path, {"status": status})
    assert code == 422, answer.get("message")
    assert "status.floors" in answer["message"]
    assert api.merge(path, {"status": {"floors": {"sequence": 8}}})[0] == 200


@pytest.mark.parametrize(
    "patch", [{"target": None}, {"before": "None"}, {"device": {"id": "01" + "33" * 32}}, {"timeouts": None}]
)
def test_a_tasks_spec_never_changes(api: Api, namespace: str, patch: Any) -> None:
    task = flashtask("t")
    task["spec"]["timeouts"] = {"writeSeconds": 7}
    assert api.call("POST", collection(namespace, "flashtasks"), task)[0] == 201
    status, answer = api.merge(collection(namespace, "flashtasks/t"), {"spec": patch})
    assert status == 422, answer.get("message")
    assert "spec" in answer["message"]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.final])
def test_a_final_phase_is_final(api: Api, namespace: str, phase: Phase) -> None:
    api.call("POST", collection(namespace, "flashtasks"), flashtask("t"))
    path = collection(namespace, "flashtasks/t/status")
    assert api.merge(path, {"status": {"phase": "Writing"}})[0] == 200
    assert api.merge(path, {"status": {"phase": phase.value}})[0] == 200
    assert api.merge(path, {"status": {"message": "a word more"}})[0] == 200
    for other in ("Pending", "Writing", "Succeeded", "Failed"):
        if other != phase:
            code, answer = api.merge(path, {"status": {"phase": other}})
            assert code == 422
            assert "status.phase" in answer["message"]
    assert api.merge(path, {"status": None})[0] == 422


def test_a_given_permit_and_a_used_nonce_stay(api: Api, namespace: str) -> None:
    api.call("POST", collection(namespace, "flashtasks"), flashtask("t"))
    path = collection(namespace, "flashtasks/t/status")
    permit = {"attempt": 1, "grantId": "ab" * 16, "fence": 3, "at": "2026-01-02T03:04:05Z"}
    report = {"permits": [permit], "usedNonces": ["aa", "bb"]}
    assert api.merge(path, {"status": {"report": report}})[0] == 200
    shortened: list[Any] = [{"permits": []}, {"usedNonces": ["aa"]}, {"permits": None}, None]
    for shorter in shortened:
        assert api.merge(path, {"status": {"report": shorter}})[0] == 422
    assert api.merge(path, {"status": {"report": {"usedNonces": ["aa", "bb", "cc"]}}})[0] == 200


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"requiredSigners": {"keys": [], "threshold": 1}}, "spec.requiredSigners.keys"),
        ({"requiredSigners": {"threshold": 2}}, "spec.requiredSigners.threshold"),
        (
            {
                "requiredSigners": {
                    "requiredAnnotations": [{"key": "stage", "value": "a"}, {"key": "stage", "value": "b"}]
                }
            },
            "spec.requiredSigners.requiredAnnotations",
        ),
        ({"minRootOfTrust": "Hearsay"}, "spec.minRootOfTrust"),
        ({"nonceTtlSeconds": 5}, "spec.nonceTtlSeconds"),
        ({"application": {"measurements": [{"alg": -16, "value": "ab" * 64}]}}, "spec.application.measurements"),
        ({"algorithms": ["RS256"]}, "spec.algorithms"),
    ],
)
def test_an_invalid_policy_is_refused_by_field(api: Api, namespace: str, patch: Any, field: str) -> None:
    made = policy("p")
    made["spec"] = merged(made["spec"], patch)
    status, answer = api.call("POST", collection(namespace, "attestationpolicies") + "?fieldValidation=Strict", made)
    assert status in (400, 422), answer.get("message")
    assert field in answer["message"]


def test_the_digest_stays_as_pinned(api: Api, namespace: str) -> None:
    api.call("POST", collection(namespace, "flashtasks"), flashtask("t"))
    status, answer = api.merge(
        collection(namespace, "flashtasks/t"), {"spec": {"target": {"indexDigest": DIGEST.replace("1", "2")}}}
    )
    assert status == 422, answer.get("message")


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "path", sorted([*EXAMPLES.glob("flashjobs/*.yaml"), *EXAMPLES.glob("policies/*.yaml")]), ids=lambda path: path.stem
)
def test_every_example_is_taken(control_plane: ControlPlane, api: Api, namespace: str, path: Path) -> None:
    control_plane.kubectl("create", "--validate=strict", "-n", namespace, "-f", str(path))
