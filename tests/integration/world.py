# SPDX-License-Identifier: Apache-2.0
"""The whole product on real parts, and what people do with it: enroll, push, apply, watch.

A `World` is one sandbox with gateway, operator and discovery handlers, each a process under its own account. A `Place`
is a namespace in it with a fleet of its own. Nothing here waits by the clock: what is awaited is watched.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import requests

from attestation import keys
from firmware_pipeline import api
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.signing.keys import Signer, load_signer
from firmware_pipeline.signing.release import load_release_key
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import APP_A, MAKER_SECRET, Materials
from flashjob.errors import FlashJobError
from flashjob.sandbox.apply import apply_job_namespace
from flashjob.sandbox.main import NODE_NAME, Sandbox
from flashjob.sandbox.registry import Login
from flashjob.sandbox.stack import Stack
from flashjob.virtual.fleet import ReadyDevice
from flashjob.wire.base import b64url

Obj = dict[str, Any]
T = TypeVar("T")
API: Final = "flashjob.dev/v1alpha1"
CHIPS: Final = ("esp32", "esp32c3", "esp32s2", "esp32s3")
OLD, NEW = "1.0.0", "2.0.0"
TIMEOUTS: Final = {
    "startSeconds": 90, "fetchSeconds": 30, "writeSeconds": 60, "bootSeconds": 8, "attestSeconds": 8,
    "confirmSeconds": 20, "rediscoverSeconds": 45,
}  # fmt: skip
_PATHS: Final = {
    "pods": "/api/v1", "secrets": "/api/v1", "configmaps": "/api/v1", "events": "/api/v1",
    "instances": "/apis/akri.sh/v0", "configurations": "/apis/akri.sh/v0",
}  # fmt: skip


@dataclass(slots=True)
class World:
    """One sandbox with the stack on it."""

    root: Path
    sandbox: Sandbox
    stack: Stack
    materials: Materials
    _places: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def up(cls, root: Path, environ: Mapping[str, str]) -> World:
        """Start everything."""
        materials = Materials.make(root / "materials")
        sandbox = Sandbox.up(root / "sandbox", environ, login=Login(), audit_log=root / "audit.log")
        # The same name in the leader's Lease for every operator process, as in a Deployment's restarted container.
        who = {"POD_UID": "operator-of-the-tests"}
        stack = Stack(sandbox, materials.key("grant"), materials.key("listing"), extra_env=who)
        world = cls(root, sandbox, stack, materials)
        try:
            stack.up()
        except BaseException:
            sandbox.down()
            raise
        return world

    def down(self) -> None:
        """End everything."""
        self.sandbox.down()

    def place(self) -> Place:
        """A fresh namespace that may hold jobs, with policies, pull secret and the gateway's public parts."""
        name = f"t{next(self._places)}"
        apply_job_namespace(self.sandbox.plane, name)
        place = Place(self, name, self.root / name)
        place.directory.mkdir()
        url = self.stack.gateway_url
        login = self.sandbox.registry.docker_config(self.root / "docker" / "config.json").read_text()
        place.apply(
            place.object("v1", "ConfigMap", "flashjob-gateway", data={"url": url}),
            place.object("v1", "ConfigMap", "flashjob-gateway-ca", data={"ca.crt": self.stack.gateway_ca.read_text()}),
            place.object(
                "v1",
                "Secret",
                "registry-login",
                type="kubernetes.io/dockerconfigjson",
                stringData={".dockerconfigjson": login},
            ),
            *(place.policy(tier, self.materials.policy(tier, CHIPS)) for tier in ("field", "bench")),
        )
        return place

    @property
    def registry_options(self) -> ClientOptions:
        """How the person at the keyboard reaches the registry."""
        docker = self.sandbox.registry.docker_config(self.root / "docker" / "config.json").parent
        return ClientOptions(credentials=load_credentials({"DOCKER_CONFIG": str(docker)}), plain_http=True)

    def signer(self, name: str = "ci") -> Signer:
        """The owner's signer."""
        return load_signer(self.materials.key("signer").read_bytes(), name)

    def plans(self, chips: Iterable[str], version: str, name: str = APP_A) -> list[BuildPlan]:
        """Checked builds, one for each chip."""
        builds = (self.materials.build(chip, self.materials.image(chip, name, version)) for chip in chips)
        return load_builds([*itertools.chain.from_iterable(builds)])

    def push(
        self,
        repository: str,
        plans: Sequence[BuildPlan],
        *,
        tag: str = NEW,
        sequence: int = 2,
        signer: Signer | None,
    ) -> str:
        """Push a release with its statement; the reference by tag."""
        release = api.Release(load_release_key(self.materials.key("release").read_bytes(), "owner"), sequence)
        where = f"{self.sandbox.registry.host}/{repository}:{tag}"
        api.push(plans, where, signer=signer, release=release, options=self.registry_options)
        return where

    def restart_operator(self) -> None:
        """Start a new operator process; the old one has ended."""
        if self.stack.operator is not None:
            self.sandbox.forget(self.stack.operator)
        self.stack.start_operator()

    def log(self, program: str) -> str:
        """The end of a process's log, for messages."""
        path = self.sandbox.log_directory / f"{program}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else f"(no {path})"


@dataclass(slots=True)
class Place:
    """A namespace and what lives in it. Names of devices carry the namespace's: they are unique in the world."""

    world: World
    namespace: str
    directory: Path
    fleet: FleetProcess | None = None
    _session: requests.Session = field(default_factory=requests.Session)

    # --- what people write ---------------------------------------------------------------------------------------

    def object(self, version: str, kind: str, name: str, **rest: Any) -> Obj:
        """An object in this namespace."""
        metadata = {"name": name, "namespace": self.namespace, **rest.pop("metadata", {})}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}

    def policy(self, name: str, spec: Mapping[str, Any]) -> Obj:
        """An AttestationPolicy."""
        return self.object(API, "AttestationPolicy", name, spec=dict(spec))

    def apply(self, *objects: Obj) -> None:
        """`kubectl apply` as the person at the keyboard."""
        self.world.stack.apply(*objects)

    def kubectl(self, *arguments: str) -> str:
        """Real kubectl, as the person at the keyboard, in this namespace."""
        return self.world.sandbox.plane.kubectl("-n", self.namespace, *arguments)

    def start_fleet(self, *devices: Mapping[str, Any]) -> None:
        """Plug in devices (entries of a fleet's spec; name, chip and transport at least), running OLD."""
        folder = self.directory / "ports"
        folder.mkdir()
        entries = []
        for device in devices:
            serial = device.get("transport", "network") == "serial"
            entry = {"tier": "SelfReported" if serial else "SignedBoot", "transport": "network", **device}
            entry["name"] = self.full(entry["name"])
            entry.setdefault("app", str(self.world.materials.image(entry["chip"], APP_A, OLD)))
            entries.append(entry)
        spec = {
            "directory": str(folder),
            "control": str(self.directory / "control"),
            "secret": MAKER_SECRET,
            "grantKeys": [self.world.materials.public("grant").read_text()],
            "releaseKeys": [self.world.materials.public("release").read_text()],
            "followStdin": True,
            "devices": entries,
        }
        self.fleet = FleetProcess(spec, self.directory)
        if any(entry["transport"] == "serial" for entry in entries):
            self.list_ports(f"{folder}/*")

    def full(self, name: str) -> str:
        """A device's name as the world knows it."""
        return f"{self.namespace}-{name}"

    def list_ports(self, glob: str) -> None:
        """Have the serial handler list these ports."""
        self.apply(self.configuration("ports", "serial", {"list": "Ports", "serial": {"ports": [glob]}}))

    def configuration(self, name: str, role: str, details: Mapping[str, Any]) -> Obj:
        """An Akri Configuration of one of our handlers."""
        handler = {"name": f"flashjob-{role}", "discoveryDetails": json.dumps(details)}
        spec = {"discoveryHandler": handler, "capacity": 1}
        return self.object("akri.sh/v0", "Configuration", f"{self.namespace}-{name}", spec=spec)

    def device(self, name: str, *, job: str = "", policy: str = "", **changes: Any) -> Obj:
        """The Device of one of the fleet, as the maker's list and the nameplate say; `job` selects it."""
        ready = self.ready(name)
        serial = ready.transport == "serial"
        match = {"UDEV_DEVPATH": f"/virtual/{ready.name}"}
        spec = {
            "id": ready.ueid,
            "trustAnchor": {"coseKey": b64url(bytes.fromhex(ready.public_key))},
            "rootOfTrust": ready.tier,
            "policyRef": {"name": policy or ("bench" if ready.tier == "SelfReported" else "field")},
            "connection": {"serial": {"match": match}} if serial else {"network": {"address": ready.address}},
            "hardware": {"chip": ready.chip, "revision": ready.revision, "flashSize": ready.flash_size,
                         "mac": ready.mac},
            **changes,
        }  # fmt: skip
        labels = {"labels": {"update": job}} if job else {}
        return self.object(API, "Device", ready.name, metadata=labels, spec=spec)

    def job(self, name: str, image: str, **spec: Any) -> Obj:
        """A FlashJob for the Devices labelled with its name: impatient, and without re-discovery unless asked."""
        return self.object(
            API,
            "FlashJob",
            name,
            spec={
                "firmware": {"image": image, "plainHTTP": True, "pullSecrets": [{"name": "registry-login"}]},
                "devices": {"selector": {"matchLabels": {"update": name}}},
                "strategy": {"retries": {"limit": 1, "backoffSeconds": 0}},
                "timeouts": TIMEOUTS,
                "rediscovery": "Skip",
                **spec,
            },
        )

    # --- what really happened ------------------------------------------------------------------------------------

    def ready(self, name: str) -> ReadyDevice:
        """How a device of the fleet was when it started."""
        return self._fleet.devices[self.full(name)]

    def installs(self, name: str) -> int:
        """How many images a device's slots have begun to take, by its own counter."""
        return int(self.counters(name)["installs"])

    def untouched(self, name: str) -> bool:
        """Whether not one byte of a device's flash was erased or programmed beyond what booting marks by itself."""
        counters = self.counters(name)
        slots = [part for key, part in counters["partitions"].items() if key.startswith("ota_")]
        return all(part["erased"] == part["programmed"] == 0 for part in slots)

    def counters(self, name: str) -> Obj:
        """A device's own counters."""
        return self._fleet.counters(self.full(name))

    def ask(self, verb: str, name: str, **more: Any) -> Any:
        """A control request to the fleet about one device."""
        return self._fleet.ask(verb, self.full(name), **more)

    @property
    def _fleet(self) -> FleetProcess:
        assert self.fleet is not None, "start_fleet comes first"
        return self.fleet

    # --- watching ------------------------------------------------------------------------------------------------

    def until(self, kind: str, found: Callable[[dict[str, Obj]], T | None], seconds: float = 90.0) -> T:
        """Watch all objects of a kind until `found` (given them by name) returns something true; that thing."""
        group = _PATHS.get(kind, f"/apis/{API}")
        url = f"{self.world.sandbox.plane.url}{group}/namespaces/{self.namespace}/{kind}"
        deadline = time.monotonic() + seconds
        with self._session as session:
            session.trust_env = False
            session.verify = str(self.world.sandbox.plane.ca)
            session.headers["Authorization"] = f"Bearer {self.world.sandbox.plane.admin_token}"
            listed = session.get(url, timeout=10).json()
            objects = {item["metadata"]["name"]: item for item in listed["items"]}
            if value := found(objects):
                return value
            query: dict[str, str | int] = {
                "watch": 1,
                "resourceVersion": listed["metadata"]["resourceVersion"],
                "timeoutSeconds": max(1, int(deadline - time.monotonic())),
            }
            with session.get(url, params=query, stream=True, timeout=seconds + 10) as stream:
                for line in stream.iter_lines(chunk_size=None):
                    event = json.loads(line)
                    name = event["object"]["metadata"]["name"]
                    if event["type"] == "DELETED":
                        objects.pop(name, None)
                    else:
                        objects[name] = event["object"]
                    if value := found(objects):
                        return value
        self.world.sandbox.require_running()
        raise AssertionError(f"{kind} not as awaited within {seconds:.0f} s\n{self.story()}")

    def finished(self, job: str, seconds: float = 90.0) -> Obj:
        """The job at its end."""

        def over(jobs: dict[str, Obj]) -> Obj | None:
            found = jobs.get(job)
            return found if found and condition(found, "Finished").get("status") == "True" else None

        return self.until("flashjobs", over, seconds)

    def tasks(self, job: str) -> dict[str, Obj]:
        """The job's FlashTasks by the short name of their device."""
        own = [task for task in self.items("flashtasks") if task["spec"]["job"]["name"] == job]
        return {task["spec"]["device"]["name"].removeprefix(f"{self.namespace}-"): task for task in own}

    def items(self, kind: str, selector: str = "") -> list[Obj]:
        """All objects of a kind now."""
        found: list[Obj] = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return found

    def story(self) -> str:
        """All that helps to understand why something did not come."""
        parts = [self.kubectl("get", "flashjobs,flashtasks,pods,instances.akri.sh", "-o", "wide")]
        for kind in ("flashjobs", "flashtasks"):
            for item in self.items(kind):
                parts.append(f"{kind} {item['metadata']['name']}: {json.dumps(item.get('status', {}))[:3000]}")
        for pod in self.items("pods"):
            try:
                parts.append(self.kubectl("logs", pod["metadata"]["name"], "--tail=15"))
            except FlashJobError as error:
                parts.append(str(error))
        programs = ("operator", "gateway", "discovery-serial", "discovery-network", f"node-agent-{NODE_NAME}")
        parts += [f"--- {name}\n{self.world.log(name)}" for name in programs]
        return "\n".join(parts)

    def close(self) -> None:
        """Take the devices away and let the namespace go."""
        self.world.sandbox.plane.kubectl("delete", "namespace", self.namespace, "--wait=false")
        if self.fleet is not None:
            self.fleet.stop()

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def registry_down(world: World) -> Iterator[None]:
    """The registry is in maintenance meanwhile."""
    world.sandbox.registry.halt()
    try:
        yield
    finally:
        world.sandbox.registry.resume()


@contextmanager
def pods_held(world: World) -> Iterator[None]:
    """Pods are made, but reach no node meanwhile."""
    world.sandbox.plane.kubectl("cordon", NODE_NAME)
    try:
        yield
    finally:
        world.sandbox.plane.kubectl("uncordon", NODE_NAME)


def condition(obj: Obj, kind: str) -> Obj:
    """A condition of an object; empty where it has none."""
    conditions: list[Obj] = obj.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def end_of(task: Obj) -> tuple[str, str]:
    """(phase, reason)."""
    return task["status"]["phase"], task["status"]["reason"]


def stranger() -> Signer:
    """A signer whom nobody named."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return load_signer(keys.private_to_pem(ec.generate_private_key(ec.SECP256R1())), "stranger")
