# SPDX-License-Identifier: Apache-2.0
"""Rights of their own, and the roles for people: asked of the real API server by people who have them and who have not.

ann is a `flashjob-user`, carol a `flashjob-maintainer`, bob may write Devices by a role that a site made,
dora has the cluster's own `edit`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import requests

from flashjob.sandbox.apply import SYSTEM_NAMESPACE
from flashjob.wire.pod import Data, Safety
from tests import objects

from .world import NEW, Obj, Place, World, condition

pytestmark = pytest.mark.integration

NARROWS: Final = {"from_versions": ["1.0.0"]}
"""Fields of spec.safety that permit nothing."""
HELD_SINCE, BEFORE, LATER = "2026-01-02T03:04:05Z", "2026-01-02T03:04:04.5Z", "2026-01-02T03:04:06Z"
QUARANTINE = {"reason": "BootIdMismatch", "since": HELD_SINCE}
TWIN = {"accepted": False, "code": "clone.seed", "at": HELD_SINCE}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at the API server, in one namespace."""

    name: str
    place: Place

    def ask(self, method: str, path: str, body: Any = None, *, dry: bool = False) -> str:
        """One request; "" if it was taken, else the API server's words."""
        plane = self.place.world.sandbox.plane
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(
                method,
                f"{plane.url}/apis/flashjob.dev/v1alpha1/namespaces/{self.place.namespace}/{path}",
                params={"dryRun": "All"} if dry else {},
                json=body,
                headers={
                    "Authorization": f"Bearer {plane.admin_token}",
                    "Impersonate-User": self.name,
                    "Content-Type": kind,
                },
                verify=str(plane.ca),
                timeout=30,
            )
        return "" if answer.ok else str(answer.json()["message"])

    def makes(self, obj: Obj, *, dry: bool = False) -> str:
        """Create an object of ours."""
        return self.ask("POST", f"{obj['kind'].lower()}s", obj, dry=dry)

    def changes(self, path: str, spec: Obj, *, dry: bool = False) -> str:
        """Merge into a spec."""
        return self.ask("PATCH", path, {"spec": spec}, dry=dry)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Real kubectl."""
        plane = self.place.world.sandbox.plane
        return plane.kubectl("-n", self.place.namespace, f"--as={self.name}", *arguments, stdin=stdin)

    def may(self, verb: str, resource: str) -> bool:
        """By a SubjectAccessReview; `resource` is group/resource or group/resource/subresource[:name]."""
        path, _, name = resource.partition(":")
        group, kind, *sub = path.split("/")
        attributes = {"group": group, "resource": kind, "verb": verb, "namespace": self.place.namespace, "name": name}
        spec = {"user": self.name, "resourceAttributes": {**attributes, "subresource": sub[0] if sub else ""}}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        plane = self.place.world.sandbox.plane
        answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer["status"]["allowed"])


@dataclass(frozen=True, slots=True)
class Team:
    """Four people in one namespace."""

    place: Place
    ann: Person
    bob: Person
    carol: Person
    dora: Person


@pytest.fixture(scope="module")
def team(world: World) -> Iterator[Team]:
    """All four, when the API server knows their rights."""
    for policy in ("flashjob-allow-unsafe", "flashjob-release-quarantine"):
        name = f"validatingadmissionpolicy/{policy}"
        world.sandbox.plane.kubectl("wait", "--for=jsonpath={.status.observedGeneration}=1", name)
    with world.place() as place:
        verbs = "get,list,create,update,patch,delete"
        place.kubectl("create", "role", "enrolls", f"--verb={verbs}", "--resource=devices.flashjob.dev")
        place.kubectl("create", "rolebinding", "ann", "--clusterrole=flashjob-user", "--user=ann")
        place.kubectl("create", "rolebinding", "bob", "--role=enrolls", "--user=bob")
        place.kubectl("create", "rolebinding", "carol", "--clusterrole=flashjob-maintainer", "--user=carol")
        place.kubectl("create", "rolebinding", "dora", "--clusterrole=edit", "--user=dora")
        made = Team(place, *(Person(name, place) for name in ("ann", "bob", "carol", "dora")))
        deadline = time.monotonic() + 10
        for person, verb, resource in (
            (made.ann, "create", "flashjob.dev/flashjobs"),
            (made.bob, "create", "flashjob.dev/devices"),
            (made.carol, "release-quarantine", "flashjob.dev/devices"),
            (made.dora, "create", "/pods"),
        ):
            while not person.may(verb, resource):
                assert time.monotonic() < deadline, f"{person.name} may not {verb} {resource}"
                time.sleep(0.02)
        yield made


@pytest.fixture(scope="module", autouse=True)
def leaving(world: World) -> str:
    """A namespace with a Device `held`, told to go; the control plane takes seconds to begin with it, so it is told first."""
    plane, name = world.sandbox.plane, f"leaving-{uuid.uuid4().hex[:8]}"
    plane.kubectl("create", "namespace", name)
    plane.kubectl("apply", "-n", name, "-f", "-", stdin=json.dumps(objects.device("held", suspended=True)))
    plane.kubectl("delete", "namespace", name, "--wait=false")
    return name


def job(**spec: Any) -> Obj:
    """A job that selects nobody and is paused: what it says matters, not what it does."""
    nobody = {"selector": {"matchLabels": {"update": "nobody"}}}
    return objects.flashjob(f"j-{uuid.uuid4().hex[:8]}", paused=True, devices=nobody, **spec)


def device(**spec: Any) -> Obj:
    """A Device that is connected nowhere."""
    name = f"d-{uuid.uuid4().hex[:8]}"
    return objects.device(name, device_id="01" + uuid.uuid4().hex * 2, **spec)


def path_of(obj: Obj) -> str:
    return f"{obj['kind'].lower()}s/{obj['metadata']['name']}"


def release(by: str, at: str = LATER) -> Obj:
    return {"by": by, "reason": "examined on the bench", "at": at}


# allow-unsafe


def risks() -> list[tuple[str, Obj]]:
    """Every field that permits something, as in the model, with a job that uses it alone."""
    found: list[tuple[str, Obj]] = []
    for name, field in Safety.model_fields.items():
        if name not in NARROWS:
            alias = str(field.alias)
            value = Data.WIPE.value if field.annotation is Data else True
            found.append((f"spec.safety.{alias}", {"transport": "Serial", "safety": {alias: value}}))
    found.append(("spec.attestation.before", {"transport": "Serial", "attestation": {"before": "None"}}))
    return found


def test_there_are_fields_to_ask_for() -> None:
    assert {"spec.safety.allowBootloader", "spec.safety.allowDowngrade", "spec.safety.data"} <= {n for n, _ in risks()}


@pytest.mark.parametrize(("field", "spec"), risks())
def test_what_a_job_may_risk_takes_a_right(team: Team, field: str, spec: Obj) -> None:
    refused = team.ann.makes(job(**spec), dry=True)
    assert f"denied request: {field}: permits" in refused
    assert f"the verb allow-unsafe on flashjobs.flashjob.dev in namespace {team.place.namespace}" in refused
    assert "which ann does not have. Next: " in refused
    assert team.carol.makes(job(**spec), dry=True) == ""


def test_what_permits_nothing_takes_no_right(team: Team) -> None:
    defaults = Safety(from_versions=("1.0.0",)).dump()
    explicit = {**defaults, **{name: False for name in defaults if name.startswith("allow")}, "data": "Keep"}
    assert team.ann.makes(job(), dry=True) == ""
    assert team.ann.makes(job(safety=explicit, attestation={"before": "Known"}), dry=True) == ""


def test_all_that_is_asked_for_is_named_at_once(team: Team) -> None:
    blank = {"allowBootloader": True, "allowPartitionTable": True, "data": "Wipe"}
    refused = team.ann.makes(job(transport="Serial", attestation={"before": "None"}, safety=blank), dry=True)
    for field in ("allowBootloader", "allowPartitionTable", "data"):
        assert f"spec.safety.{field}" in refused
    assert "spec.attestation.before: permits" in refused


def test_only_what_an_update_adds_takes_the_right(team: Team) -> None:
    obj = job(transport="Serial", safety={"allowBootloader": True, "fromVersions": ["1.0.0", "1.1.0"]})
    path = path_of(obj)
    assert team.carol.makes(obj) == ""
    name = obj["metadata"]["name"]
    acted = team.place.until("flashjobs", lambda jobs: jobs[name] if condition(jobs[name], "Validated") else None)
    assert acted["metadata"]["finalizers"], "the operator writes to it as to any other"

    assert team.ann.ask("PATCH", path, {"metadata": {"labels": {"shift": "night"}}}) == ""
    assert team.ann.changes(path, {"strategy": {"maxInFlight": 1}}) == ""
    assert team.ann.changes(path, {"safety": {"fromVersions": ["1.1.0"]}}, dry=True) == ""
    assert team.ann.changes(path, {"safety": {"allowBootloader": None}}, dry=True) == ""
    assert team.ann.changes(path, {"safety": {"allowBootloader": None, "fromVersions": None}}, dry=True) == ""

    for more, field in (
        ({"allowPartitionTable": True}, "allowPartitionTable"),
        ({"allowBootloader": None, "allowDowngrade": True}, "allowDowngrade"),
        ({"data": "Wipe"}, "data"),
        ({"fromVersions": None}, "fromVersions"),
        ({"fromVersions": ["1.0.0", "2.0.0"]}, "fromVersions"),
    ):
        assert f"denied request: spec.safety.{field}: permits" in team.ann.changes(path, {"safety": more}, dry=True)
        assert team.carol.changes(path, {"safety": more}, dry=True) == ""


# release-quarantine


def test_a_release_takes_a_right(team: Team) -> None:
    refused = team.bob.makes(device(releaseFromQuarantine=release("bob")), dry=True)
    assert "denied request: spec.releaseFromQuarantine lets go of a device" in refused
    assert team.carol.makes(device(releaseFromQuarantine=release("carol")), dry=True) == ""

    obj = device()
    path = path_of(obj)
    assert team.bob.makes(obj) == "", "who enrolls needs no other right"
    refused = team.bob.changes(path, {"releaseFromQuarantine": release("bob")})
    assert f"the verb release-quarantine on devices.flashjob.dev in namespace {team.place.namespace}" in refused
    assert "which bob does not have. Next: find out why" in refused
    assert team.carol.changes(path, {"releaseFromQuarantine": release("carol")}) == ""

    assert team.bob.ask("PATCH", path, {"metadata": {"labels": {"shelf": "3"}}}) == "", "what is there hinders nobody"
    assert team.bob.changes(path, {"suspended": True}) == "", "anybody who may write it may hold it"
    assert team.bob.changes(path, {"releaseFromQuarantine": None}, dry=True) == "", "and take a release back"
    assert "denied request: spec.releaseFromQuarantine" in team.bob.changes(
        path, {"releaseFromQuarantine": {"at": "2027-01-01T00:00:00Z"}}
    )
    assert "denied request: spec.suspended: false takes a device back" in team.bob.changes(path, {"suspended": False})
    assert "denied request: spec.suspended" in team.bob.changes(path, {"suspended": None})
    assert team.carol.changes(path, {"suspended": False}) == ""


def test_a_right_for_one_device_is_none_for_another(team: Team) -> None:
    mine, other = device(suspended=True), device(suspended=True)
    for obj in (mine, other):
        assert team.bob.makes(obj) == ""
    name = mine["metadata"]["name"]
    rule = ("--verb=release-quarantine", "--resource=devices.flashjob.dev", f"--resource-name={name}")
    team.place.kubectl("create", "role", "one", *rule)
    team.place.kubectl("create", "rolebinding", "bob-one", "--role=one", "--user=bob")
    deadline = time.monotonic() + 10
    while not team.bob.may("release-quarantine", f"flashjob.dev/devices:{name}"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert team.bob.changes(path_of(mine), {"suspended": False}) == ""
    assert "release-quarantine" in team.bob.changes(path_of(other), {"suspended": False})


def test_enrolling_anew_is_no_way_out(team: Team) -> None:
    """As in the trust store: what began after the last release holds a device."""
    operator = Person(f"system:serviceaccount:{SYSTEM_NAMESPACE}:flashjob-operator", team.place)
    for spec, status, held in (
        ({}, {}, False),
        ({"suspended": True}, {}, True),
        ({}, {"quarantine": QUARANTINE}, True),
        ({}, {"attestation": TWIN}, True),
        ({}, {"attestation": {**TWIN, "code": "eat.channel"}}, False),
        ({"releaseFromQuarantine": release("carol", BEFORE)}, {"quarantine": QUARANTINE}, True),
        ({"releaseFromQuarantine": release("carol", LATER)}, {"quarantine": QUARANTINE}, False),
        ({"releaseFromQuarantine": release("carol", LATER)}, {"quarantine": QUARANTINE, "attestation": TWIN}, False),
    ):
        obj = device(**spec)
        assert team.carol.makes(obj) == ""
        assert operator.ask("PATCH", f"{path_of(obj)}/status", {"status": status}) == ""
        refused = team.bob.ask("DELETE", path_of(obj), dry=True)
        assert ("denied request: deleting a Device that is suspended or in quarantine" in refused) is held, (
            spec,
            status,
        )
        assert held or refused == ""
        assert team.carol.ask("DELETE", path_of(obj)) == ""


def test_a_namespace_goes_with_the_devices_that_are_withheld(world: World, leaving: str) -> None:
    world.sandbox.plane.kubectl("wait", "--for=delete", "-n", leaving, "device/held", "--timeout=30s")


# Roles for people


def test_roles_hold_what_they_say_and_no_more(team: Team) -> None:
    ours = [f"flashjob.dev/{kind}" for kind in ("flashjobs", "flashtasks", "devices", "attestationpolicies")]
    writes = ("create", "update", "patch", "delete")
    for person in (team.ann, team.carol):
        assert all(person.may(verb, kind) for kind in ours for verb in ("get", "list", "watch"))
        assert all(person.may(verb, "flashjob.dev/flashjobs") for verb in writes)
        assert not any(person.may(verb, "flashjob.dev/flashtasks") for verb in writes)
        assert not any(person.may("patch", f"{kind}/status") for kind in ours)
        assert not any(person.may(verb, f"/{kind}") for kind in ("secrets", "pods") for verb in writes)
        assert not person.may("get", "/secrets")
        assert person.may("create", "/serviceaccounts/token:flashjob-viewer")
        assert not person.may("create", "/serviceaccounts/token:flashjob-flasher")
        assert not person.may("get", "/configmaps:something-else")
    for kind in ("flashjob.dev/devices", "flashjob.dev/attestationpolicies"):
        assert not any(team.ann.may(verb, kind) for verb in writes)
        assert all(team.carol.may(verb, kind) for verb in writes)
    assert all(team.dora.may("watch", kind) for kind in ours)
    assert not any(team.dora.may(verb, kind) for kind in ours for verb in writes)
    for verb, kind in (("allow-unsafe", "flashjobs"), ("release-quarantine", "devices")):
        assert not team.ann.may(verb, f"flashjob.dev/{kind}")
        assert not team.bob.may(verb, f"flashjob.dev/{kind}")
        assert not team.dora.may(verb, f"flashjob.dev/{kind}")
        assert team.carol.may(verb, f"flashjob.dev/{kind}")


def test_a_user_starts_watches_and_cancels(world: World, team: Team) -> None:
    place = team.place
    place.start_fleet({"name": "yard", "chip": "esp32s3"})
    image = world.push(place.namespace, world.plans(("esp32s3",), NEW), signer=world.signer())
    team.carol.kubectl("apply", "-f", "-", stdin=json.dumps(place.device("yard", job="by-ann")))
    team.ann.kubectl("apply", "-f", "-", stdin=json.dumps(place.job("by-ann", image, paused=True)))
    with watching(team.ann, "by-ann") as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())  # it is there before the job goes on, and asks for per cent
        assert team.ann.changes("flashjobs/by-ann", {"paused": False}) == ""
        events = [first, *map(json.loads, watch.stdout)]
    assert watch.returncode == 0, events
    assert [event for event in events if event["event"] == "note"] == [], "trouble is told, and there was none"
    assert (events[0]["event"], events[-1]["event"]) == ("job", "end")
    assert "AllProven" in team.ann.kubectl("describe", "flashjob", "by-ann")

    later = place.job("later", image, devices={"selector": {"matchLabels": {"update": "by-ann"}}}, paused=True)
    team.ann.kubectl("apply", "-f", "-", stdin=json.dumps(later))
    place.until("flashtasks", lambda tasks: [t for t in tasks.values() if t["spec"]["job"]["name"] == "later"])
    team.ann.kubectl("delete", "flashjob", "later", "--timeout=30s")
    assert "later" not in [found["metadata"]["name"] for found in place.items("flashjobs")]


def watching(person: Person, job_name: str) -> subprocess.Popen[str]:
    """`flashjob watch` with a certificate of this person, as lines of JSON."""
    kubeconfig = person.place.world.sandbox.plane.user_kubeconfig(person.name, person.name)
    command = [sys.executable, "-m", "flashjob.cli", "watch", job_name, "--json", "-n", person.place.namespace]
    return subprocess.Popen([*command, "--kubeconfig", str(kubeconfig)], stdout=subprocess.PIPE, text=True)
