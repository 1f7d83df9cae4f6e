# SPDX-License-Identifier: Apache-2.0
"""A small world for the operator: API server in memory, real artifacts, and simulated nodes, gateway, devices, handler.

The simulated parties keep the rules of their real models: the gateway serves only the pod that the Lease names and
writes only `status.report`; a device is written once per installation and tells what it really runs; the handler lists
what it saw. Everything happens in ticks of a hand-driven clock.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.discovery.listing import FLASHJOB_LISTING, Listing, encode_token, mint_listing
from attestation.keys import to_pem
from attestation.policy import Measurement as Measured
from attestation.policy import RootOfTrust
from firmware_pipeline.layout import LayoutStore
from flashjob.api.meta import FINALIZER
from flashjob.cluster import resources as r
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.faults import Crash
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.lease import lease_name
from flashjob.cluster.resources import Obj
from flashjob.errors import FlashJobError
from flashjob.operator.admit import Admitter
from flashjob.operator.apply import Applier
from flashjob.operator.artifacts import Artifact, PipelineArtifact, Refused
from flashjob.operator.caches import Caches
from flashjob.operator.metrics import Metrics
from flashjob.operator.reconcile import Controller
from flashjob.planning.messages import refuse
from flashjob.planning.state import Key, Refusal
from flashjob.wire.clock import stamp
from flashjob.wire.pod import ANNOTATION_ASSIGNMENTS, ENV_ASSIGNMENTS
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Measurement
from flashjob.workloads.pod import PodSettings

NS, SYSTEM = "farm", "flashjob-system"
HOST = "registry.example"
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
OLD = "ab" * 32
CRDS = Path(__file__).parents[2] / "crds"


@dataclass
class Shop:
    """Artifacts in layout directories under registry names; `down` makes the registry silent."""

    folders: dict[str, Path] = field(default_factory=dict)
    down: bool = False
    opened: int = 0

    def open(self, image: str, *, plain_http: bool, docker_config: bytes | None) -> Artifact:
        self.opened += 1
        if self.down:
            raise Refused(refuse(Reason.REGISTRY_UNAVAILABLE, f"{HOST} does not answer"))
        repository = image.rsplit(":", 1)[0].split("@")[0]
        folder = self.folders.get(repository)
        if folder is None:
            raise Refused(refuse(Reason.IMAGE_NOT_FOUND, f"{repository} is unknown"))
        return PipelineArtifact(image, plain_http, LayoutStore(folder))


@dataclass
class Board:
    """A simulated device: what it does in each attempt, and what really happened to it."""

    name: str
    id: str
    serial: bool
    chip: str
    script: list[str] = field(default_factory=list)
    running: Measurement = field(default_factory=lambda: Measurement(scheme="esp-image", alg=-16, value=OLD))
    boot_id: str = "00" * 16
    listed: bool = True
    writes: int = 0
    writers: set[str] = field(default_factory=set)
    mac: str = "02:00:00:00:00:01"

    def act(self, attempt: int) -> str:
        return self.script[attempt - 1] if attempt <= len(self.script) else "good"


@dataclass
class Probe:
    """The gateway's readiness as the operator sees it."""

    trouble: Refusal | None = None


class Mortal:
    """The API as the operator has it: the operator dies at a chosen write of its own, before or after it took effect."""

    def __init__(self, api: FakeCluster) -> None:
        self._api = api
        self.writes = 0
        self.die_at: int | None = None
        self.die_after = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._api, name)
        if name not in ("create", "replace", "patch", "patch_status", "delete"):
            return call

        async def write(*args: Any, **kwargs: Any) -> Any:
            self.writes += 1
            dies = self.writes == self.die_at
            if dies and not self.die_after:
                raise Crash
            answer = await call(*args, **kwargs)
            if dies:
                raise Crash
            return answer

        return write


class World:
    """See the module. `await world.tick()` lets everybody act once; `run_until` ticks until something holds."""

    def __init__(self, folders: dict[str, Path], public_key: str) -> None:
        self.clock = START
        schemas = {
            kind: yaml.safe_load((CRDS / f"{kind.group}_{kind.plural}.yaml").read_text())["spec"]["versions"][0][
                "schema"
            ]["openAPIV3Schema"]
            for kind in (r.FLASHJOBS, r.FLASHTASKS, r.DEVICES, r.ATTESTATION_POLICIES)
        }
        self.api = FakeCluster(schemas=schemas, now=lambda: datetime.fromtimestamp(self.clock, UTC), collect=False)
        self.mortal = Mortal(self.api)
        self.shop = Shop(dict(folders))
        self.public_key = public_key
        self.boards: dict[str, Board] = {}
        self.probe = Probe()
        self.restarts = 0
        self.peak = 0
        self.overlaps: list[str] = []
        self._pods: dict[tuple[str, str], str] = {}
        self._results: dict[tuple[str, str], Obj] = {}
        self._ghosts: dict[str, float] = {}
        self._shown: dict[str, str] = {}
        self._due: dict[Key, float] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._draining: dict[str, asyncio.Task[None]] = {}

    # --- the operator under test

    async def publish_listing_key(self) -> None:
        body = {"metadata": {"name": "flashjob-listing-keys"}, "data": {"current.pub": LISTING_PEM}}
        await self.api.create(r.CONFIG_MAPS, SYSTEM, body)

    async def start_operator(self) -> None:
        api = cast("KubeApi", self.mortal)
        self.caches = Caches(api, SYSTEM, self._wake)
        settings = PodSettings(image="flasher:test", gateway_url="https://gateway.test:8443")
        applier = Applier(api, self.caches, SYSTEM, settings, lambda: self.clock)
        self.controller = Controller(
            api, self.caches, Admitter(api, self.shop), applier, self.probe, Metrics(), lambda: self.clock
        )
        self._tasks = [asyncio.create_task(self.caches.run())]
        await self.caches.synced()
        for job in self.caches.jobs.values():
            self._wake((job.namespace, job.name))

    async def kill_operator(self) -> None:
        for task in [*self._tasks, *self._draining.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._draining.values(), return_exceptions=True)
        self._draining.clear()
        self._due.clear()

    async def restart(self) -> None:
        self.restarts += 1
        await self.kill_operator()
        await self.start_operator()

    def _wake(self, key: Key) -> None:
        self._due[key] = 0.0

    async def operate(self) -> None:
        """Let the operator do everything that is due."""
        await self.calm()
        for _ in range(8):
            due = sorted(key for key, at in self._due.items() if at <= self.clock)
            if not due:
                return
            for key in due:
                del self._due[key]
                try:
                    again = await self.controller.reconcile(key)
                except (ApiError, FlashJobError):
                    again = 1.0
                except BaseException as error:
                    if not _crashed(error):
                        raise
                    await self.restart()
                    return
                if again is not None:
                    self._due[key] = min(self._due.get(key, self.clock + again), self.clock + again)
            await self.calm()

    async def calm(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    # --- objects

    async def policy(self, name: str = "lab", *, signers: bool = True, **demands: Any) -> None:
        spec: Obj = {"minRootOfTrust": "SignedBoot"}
        if signers:
            keys = [{"name": "ci", "publicKey": self.public_key}]
            spec["requiredSigners"] = {"keys": keys, "threshold": 1, **demands}
        await self._create(r.ATTESTATION_POLICIES, NS, name, spec)

    async def board(
        self, name: str, *, serial: bool = True, chip: str = "esp32s3", policy: str = "lab", **more: Any
    ) -> Board:
        made = Board(name, "01" + hashlib.sha256(name.encode()).hexdigest(), serial, chip, **more)
        made.mac = "02:" + ":".join(f"{b:02x}" for b in hashlib.sha256(name.encode()).digest()[:5])
        self.boards[made.id] = made
        path = f"/virtual/{name}"
        link: Obj = (
            {"serial": {"match": {"UDEV_DEVPATH": path}}} if serial else {"network": {"address": "127.0.0.1:80"}}
        )
        spec = {
            "id": made.id,
            "rootOfTrust": "SignedBoot",
            "policyRef": {"name": policy},
            "connection": link,
            "hardware": {"chip": chip, "mac": made.mac},
        }
        await self._create(r.DEVICES, NS, name, spec, labels={"site": "berlin"})
        if serial:
            await self.port(name)
        return made

    async def port(self, name: str, suffix: str = "") -> None:
        spec = {
            "configurationName": "ports",
            "cdiName": "akri.sh/ports",
            "capacity": 1,
            "shared": False,
            "nodes": ["node1"],
            "brokerProperties": {"UDEV_DEVPATH": f"/virtual/{name}"},
        }
        await self._create(r.INSTANCES, "akri", f"ports-{name}{suffix}", spec)

    async def job(self, name: str = "porch", image: str = f"{HOST}/good:2.1.0", **spec: Any) -> Obj:
        firmware = {"image": image, **spec.pop("firmware", {})}
        body = {
            "firmware": firmware,
            "devices": {"selector": {"matchLabels": {"site": "berlin"}}},
            "timeouts": {"startSeconds": 30, "fetchSeconds": 10, "writeSeconds": 30, "rediscoverSeconds": 20},
            "strategy": {"maxInFlight": 20, "retries": {"limit": 2, "backoffSeconds": 2}},
            **spec,
        }
        return await self._create(r.FLASHJOBS, NS, name, body, finalizers=[FINALIZER])

    async def _create(self, kind: r.Resource, namespace: str, name: str, spec: Obj, **metadata: Any) -> Obj:
        obj = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, **metadata}, "spec": spec}
        return await self.api.create(kind, namespace, obj)

    def get(self, kind: r.Resource, name: str, namespace: str = NS) -> Obj:
        return next(o for o in self.api.all(kind, namespace) if o["metadata"]["name"] == name)

    def tasks(self) -> list[Obj]:
        return self.api.all(r.FLASHTASKS, NS)

    def task_of(self, board: Board) -> Obj:
        return next(t for t in self.tasks() if t["spec"]["device"]["id"] == board.id)

    def device(self, board: Board) -> Obj:
        return self.get(r.DEVICES, board.name)

    def condition(self, kind: str, job: str = "porch") -> Obj:
        found = (self.get(r.FLASHJOBS, job).get("status") or {}).get("conditions") or []
        return next((c for c in found if c["type"] == kind), {"status": "Missing"})

    def finished(self, job: str = "porch") -> bool:
        return bool(self.condition("Finished", job)["status"] == "True")

    # --- time

    async def tick(self, seconds: float = 1.0) -> None:
        await self.operate()
        await self._parties()
        await self.operate()
        self._watch()
        self.clock += seconds

    async def run_until(self, holds: Callable[[], bool], ticks: int = 200) -> None:
        for _ in range(ticks):
            if holds():
                return
            await self.tick()
        status = [self.get(r.FLASHJOBS, j["metadata"]["name"]).get("status") for j in self.api.all(r.FLASHJOBS, NS)]
        raise AssertionError(
            f"not within {ticks} ticks: {json.dumps([status, [t['status'] for t in self.tasks()]], indent=1)}"
        )

    async def run_job(self, job: str = "porch", ticks: int = 200) -> None:
        await self.run_until(lambda: self.finished(job), ticks)

    # --- the other parties

    async def _parties(self) -> None:
        for pod in self.api.all(r.PODS, NS):
            if ANNOTATION_ASSIGNMENTS in pod["metadata"].get("annotations", {}):
                await self._pod(pod)
        await self._handler()
        for job in self.api.all(r.FLASHJOBS, NS):
            await self._kopf(job)

    async def _pod(self, pod: Obj) -> None:
        meta = pod["metadata"]
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            return
        items = json.loads(
            next(e["value"] for e in pod["spec"]["containers"][0]["env"] if e["name"] == ENV_ASSIGNMENTS)
        )
        seats = [(item, self.boards[item["device"]]) for item in items["items"]]
        if meta.get("deletionTimestamp"):
            for _, board in seats:
                board.writers.discard(meta["uid"])
            await self.api.delete(r.PODS, NS, meta["name"], grace_seconds=0)
            return
        if any(board.act(item["attempt"]) == "never starts" for item, board in seats):
            return
        for item, board in seats:
            seat = meta["uid"], item["task"]
            step = self._STEPS.get(self._pods.setdefault(seat, "new"))
            if step is not None:
                self._pods[seat] = await step(self, pod, item, board, board.act(item["attempt"]))
            if self._pods[seat] == "gone":
                return
        results = [self._results.get((meta["uid"], item["task"])) for item, _ in seats]
        if all(results):
            await self._ended(pod, results)

    async def _schedule(self, pod: Obj, item: Obj, board: Board, act: str) -> str:
        await self.api.patch(r.PODS, NS, pod["metadata"]["name"], {"spec": {"nodeName": "node1"}}, field_manager="s")
        await self._pod_status(pod, {"phase": "Running"})
        return "running"

    async def _permit(self, pod: Obj, item: Obj, board: Board, act: str) -> str:
        if act.startswith("fails "):
            return await self._exit(pod, item, act.removeprefix("fails "))
        task = self.get(r.FLASHTASKS, item["task"])
        report = task["status"].get("report") or {}
        permits = report.get("permits") or []
        lease = self.get(r.LEASES, lease_name(board.id), SYSTEM)
        over = (task["status"].get("lastAttempt") or {}).get("attempt", 0)
        if lease["spec"]["holderIdentity"] != f"{NS}/{item['task']}/{item['attempt']}" or over >= item["attempt"]:
            return await self._exit(pod, item, "NotAssigned")
        wanted = item["target"]["measurements"][0]["value"]
        if not permits and board.running.value == wanted:
            return await self._verdict(pod, item, board, "AlreadyRunning", "AlreadyRunning", board.boot_id)
        grant = hashlib.sha256(f"{item['task']}{item['attempt']}".encode()).hexdigest()[:32]
        permit = {
            "attempt": item["attempt"],
            "grantId": grant,
            "fence": lease["spec"]["leaseTransitions"],
            "at": stamp(self.clock),
        }
        await self._report(task, {**report, "permits": [*permits, permit]})
        if board.boot_id in {p["grantId"] for p in permits} and board.running.value == wanted:
            return "written"
        board.writers.add(pod["metadata"]["uid"])
        return "writing"

    async def _write(self, pod: Obj, item: Obj, board: Board, act: str) -> str:
        if act == "vanishes":
            self._ghosts[pod["metadata"]["uid"]] = self.clock + item["timeouts"]["writeSeconds"]
            await self.api.delete(r.PODS, NS, pod["metadata"]["name"], grace_seconds=0)
            return "gone"
        board.writers.discard(pod["metadata"]["uid"])
        if act.startswith("breaks "):
            return await self._exit(pod, item, act.removeprefix("breaks "))
        board.writes += 1
        board.listed = False
        if act != "lies":
            task = self.get(r.FLASHTASKS, item["task"])
            board.running = Measurement.parse(item["target"]["measurements"][0])
            board.boot_id = task["status"]["report"]["permits"][-1]["grantId"]
        return "written"

    async def _judge(self, pod: Obj, item: Obj, board: Board, act: str) -> str:
        if act == "says done":
            return await self._exit(pod, item, "Proven", ok=True)
        if act == "is judged and vanishes":
            await self._verdict(pod, item, board, "Proven", "Proven", board.boot_id, leave=False)
            await self.api.delete(r.PODS, NS, pod["metadata"]["name"], grace_seconds=0)
            return "gone"
        if act.startswith("rejected "):
            return await self._verdict(pod, item, board, "Rejected", act.removeprefix("rejected "), board.boot_id)
        if act == "lies":
            return await self._verdict(pod, item, board, "Rejected", "MeasurementMismatch", board.boot_id)
        if act == "weak":
            return await self._verdict(pod, item, board, "BelowPolicy", "RootOfTrustTooLow", board.boot_id)
        if act == "claims proven":
            return await self._verdict(pod, item, board, "Proven", "Proven", "77" * 16)
        return await self._verdict(pod, item, board, "Proven", "Proven", board.boot_id)

    async def _verdict(
        self, pod: Obj, item: Obj, board: Board, outcome: str, reason: str, boot_id: str, leave: bool = True
    ) -> str:
        task = self.get(r.FLASHTASKS, item["task"])
        report = task["status"].get("report") or {}
        verdict = {
            "attempt": item["attempt"],
            "outcome": outcome,
            "reason": reason,
            "measurement": board.running.dump(),
            "bootId": boot_id,
            "secureVersion": 0,
            "bootCount": 7,
            "rootOfTrust": "SignedBoot",
            "at": stamp(self.clock),
        }
        await self._report(task, {**report, "verdict": verdict})
        if outcome in ("Proven", "AlreadyRunning"):
            board.listed = board.act(item["attempt"]) != "stays away"
        return await self._exit(pod, item, reason, ok=True) if leave else "gone"

    async def _exit(self, pod: Obj, item: Obj, reason: str, ok: bool = False) -> str:
        result = {
            "task": item["task"],
            "attempt": item["attempt"],
            "stage": "Confirming" if ok else "Preflight",
            "ok": ok,
            "reason": reason,
            "message": "as simulated",
            "bytesWritten": 65536 if ok else 0,
            "seconds": {"Writing": 1.5},
            "hardware": {"chip": self.boards[item["device"]].chip, "revision": 2},
        }
        self._results[pod["metadata"]["uid"], item["task"]] = result
        return "over"

    async def _ended(self, pod: Obj, results: list[Obj | None]) -> None:
        ok = all(result and result["ok"] for result in results)
        ended = {
            "exitCode": 0 if ok else 1,
            "finishedAt": stamp(self.clock),
            "message": json.dumps({"items": results}),
        }
        await self._pod_status(
            pod,
            {
                "phase": "Succeeded" if ok else "Failed",
                "containerStatuses": [{"name": "flasher", "state": {"terminated": ended}}],
            },
        )

    _STEPS: ClassVar[dict[str, Callable[["World", Obj, Obj, Board, str], Awaitable[str]]]] = {
        "new": _schedule,
        "running": _permit,
        "writing": _write,
        "written": _judge,
    }

    async def _report(self, task: Obj, report: Obj) -> None:
        meta = task["metadata"]
        await self.api.patch_status(
            r.FLASHTASKS,
            NS,
            meta["name"],
            {"report": report},
            field_manager="g",
            resource_version=meta["resourceVersion"],
        )

    async def _pod_status(self, pod: Obj, status: Obj) -> None:
        await self.api.patch_status(r.PODS, NS, pod["metadata"]["name"], status, field_manager="kubelet")

    async def _handler(self) -> None:
        have = {o["metadata"]["name"]: o for o in self.api.all(r.INSTANCES, "akri")}
        for board in self.boards.values():
            name = f"app-{board.name}"
            shown = f"{board.running.value} {board.boot_id}"
            now = have.get(name)
            if now is not None and (not board.listed or self._shown[name] != shown):
                await self.api.delete(r.INSTANCES, "akri", name)
                now = None
            if now is None and board.listed:
                self._shown[name] = shown
                spec = {
                    "configurationName": "app",
                    "cdiName": "akri.sh/app",
                    "capacity": 1,
                    "shared": True,
                    "nodes": ["node1"],
                    "brokerProperties": {FLASHJOB_LISTING: token(board)},
                }
                await self._create(r.INSTANCES, "akri", name, spec)

    async def _kopf(self, job: Obj) -> None:
        meta = job["metadata"]
        if not meta.get("deletionTimestamp"):
            return
        if meta["uid"] not in self._draining:
            self._draining[meta["uid"]] = asyncio.create_task(self.controller.drained(meta["uid"]))
        elif self._draining[meta["uid"]].done():
            await self.api.patch(
                r.FLASHJOBS, NS, meta["name"], {"metadata": {"finalizers": None}}, field_manager="kopf"
            )

    def _watch(self) -> None:
        """Promises that hold at every moment."""
        for board in self.boards.values():
            board.writers -= {uid for uid, until in self._ghosts.items() if self.clock >= until}
        live = [p for p in self.api.all(r.PODS, NS) if p["status"]["phase"] in ("Pending", "Running")]
        ours = [p for p in live if ANNOTATION_ASSIGNMENTS in p["metadata"].get("annotations", {})]
        refs = [(p, ref) for p in ours for ref in json.loads(p["metadata"]["annotations"][ANNOTATION_ASSIGNMENTS])]
        self.peak = max(self.peak, sum((p["metadata"]["uid"], ref["task"]) not in self._results for p, ref in refs))
        self.overlaps += [b.name for b in self.boards.values() if len(b.writers) > 1]


LISTING_KEY = ec.derive_private_key(9, ec.SECP256R1())
LISTING_PEM = to_pem(LISTING_KEY.public_key())


def token(board: Board) -> str:
    """What the handler says about a device, signed."""
    listing = Listing(
        ueid=bytes.fromhex(board.id),
        measurement=Measured(board.running.alg, bytes.fromhex(board.running.value)),
        application="porch-sensor",
        version="2.1.0",
        boot_id=bytes.fromhex(board.boot_id),
        evidence_sha256=bytes(32),
        policy_hash=bytes(32),
        endpoint="127.0.0.1:80",
        tier=RootOfTrust.SIGNED_BOOT,
    )
    return encode_token(mint_listing(listing, LISTING_KEY))


def _crashed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_crashed(e) for e in error.exceptions)
    return isinstance(error, Crash)
