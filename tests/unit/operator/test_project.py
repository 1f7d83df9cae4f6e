# SPDX-License-Identifier: Apache-2.0
"""Projections: what is read of pods, Leases and Instances, and what happens to objects that cannot be read."""

import json
from typing import Any

import pytest

from flashjob.operator import project
from flashjob.wire.pod import ANNOTATION_ASSIGNMENTS

T = "2026-01-01T00:00:00Z"


def raw_pod(status: dict[str, Any] | None = None, note: object = None, **spec: Any) -> dict[str, Any]:
    annotations = {} if note is None else {ANNOTATION_ASSIGNMENTS: note if isinstance(note, str) else json.dumps(note)}
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": T, "annotations": annotations},
        "spec": spec,
        "status": status or {},
    }


OURS = [{"task": "t", "attempt": 1}]


def ended(message: str, code: int = 0) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "finishedAt": T, "message": message}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "flasher", "state": state}]}


def test_a_pod_of_nobody_is_nothing() -> None:
    assert project.pod(raw_pod()) is None


def test_a_foreign_pod_with_a_claim() -> None:
    container = {"resources": {"limits": {"akri.sh/ports-a": "1", "cpu": "1"}, "requests": {"akri.sh/ports-a": "1"}}}
    found = project.pod(raw_pod(containers=[container]))
    assert found is not None
    assert (found.claims, found.assignments) == (("ports-a",), ())


def test_a_termination_message() -> None:
    item = {
        "task": "t",
        "attempt": 1,
        "stage": "Writing",
        "ok": False,
        "reason": "PortSilent",
        "seconds": {"Writing": 1},
    }
    found = project.pod(raw_pod(ended(json.dumps({"items": [item]}), 1), OURS))
    assert found is not None
    result = found.result("t", 1)
    assert result is not None
    assert result.reason == "PortSilent"
    assert found.result("t", 2) is None
    assert found.finished_at == 1767225600.0


@pytest.mark.parametrize("message", ["", "Traceback ...", "{}", '{"items": 7}', '{"items": [{"task": "t"}]}'])
def test_a_message_that_says_nothing(message: str) -> None:
    found = project.pod(raw_pod(ended(message, 137), OURS))
    assert found is not None
    assert found.results == ()
    assert found.trouble == "exit code 137 (Error)"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"}, "DeadlineExceeded: too long"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, "ImagePullBackOff"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]},
            "Unschedulable: 0/1",
        ),
        ({"phase": "Running"}, ""),
    ],
)
def test_trouble(status: dict[str, Any], said: str) -> None:
    found = project.pod(raw_pod(status, OURS))
    assert found is not None
    assert found.trouble == said


@pytest.mark.parametrize("note", ["nonsense", '{"task": 1}', '[{"task": "t"}]', '[{"task": "t", "attempt": 0}]'])
def test_a_forged_annotation_is_unreadable(note: str) -> None:
    with pytest.raises(ValueError):
        project.pod(raw_pod(note=note))


def test_an_invalid_job_is_unreadable_and_named() -> None:
    with pytest.raises(ValueError, match="firmware"):
        project.job({"metadata": {"name": "j"}, "apiVersion": "flashjob.dev/v1alpha1", "kind": "FlashJob", "spec": {}})


def test_an_instance() -> None:
    found = project.instance(
        {
            "metadata": {"name": "i", "namespace": "akri", "deletionTimestamp": T},
            "spec": {"configurationName": "c", "nodes": ["n1"], "brokerProperties": {"FLASHJOB_LISTING": "tok"}},
        }
    )
    assert (found.token, found.listing, found.deleting, found.nodes) == ("tok", None, True, ("n1",))
