# SPDX-License-Identifier: Apache-2.0
"""Act 2: the cluster. Brings up FlashJob on the sandbox with a fleet of enrolled devices, the way a user would."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from flashjob.cluster.kubeapi import KubeApi
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import INSTANCES, Obj, Resource
from flashjob.errors import FlashJobError
from flashjob.sandbox.main import Sandbox
from flashjob.sandbox.registry import Login
from flashjob.sandbox.stack import Stack

from .fleet_process import FleetProcess
from .materials import APP_A, APP_B, APP_OFFSET, DemoDevice, Materials
from .real_firmware import RealImage

NAMESPACE: Final = "default"
PULL_SECRET: Final = "registry-login"
NEW: Final = "2.0.0"
"""The version of which there may be real images."""
LISTED_SECONDS: Final = 60.0


@dataclass(slots=True)
class Stage:
    """Everything that plays: sandbox, FlashJob's processes, fleet, registry login. Made by `Stage.set`.

    Args:
        directory: all state.
        console: where the demo speaks.
    """

    directory: Path
    console: Console
    materials: Materials
    devices: tuple[DemoDevice, ...]
    sandbox: Sandbox
    stack: Stack
    fleet: FleetProcess
    login: Login
    firmware: Mapping[str, RealImage] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def chips(self) -> list[str]:
        """Chips in the cast."""
        return sorted({device.chip for device in self.devices})

    @property
    def registry(self) -> str:
        """Host and port of the registry."""
        return self.sandbox.registry.host

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def shell(self, command: str) -> None:
        """Show what a user would type."""
        self.say(f"[dim]$[/] [bold]{command}[/]")

    async def enroll(self) -> None:
        """Policies, then every device by `flashjob device enroll`, side by side."""
        policies = (self.materials.policy(name, self.chips) for name in ("field", "bench"))
        self.stack.apply(
            *(
                _object("flashjob.dev/v1alpha1", "AttestationPolicy", name, spec=spec)
                for name, spec in zip(("field", "bench"), policies, strict=True)
            )
        )
        self.shell("flashjob device enroll NAME --anchor KEY --policy POLICY --root-of-trust TIER ...")
        await asyncio.gather(*(asyncio.to_thread(self._enroll, device) for device in self.devices))

    def _enroll(self, device: DemoDevice) -> None:
        ready = self.fleet.devices[device.name]
        match = ["--match", f"UDEV_DEVPATH=/virtual/{device.name}"]
        way = ["--port", ready.link, *match] if ready.link else ["--host", ready.address]
        labels = ["--label", "site=berlin", "--label", f"device={device.name}"]
        arguments = ["device", "enroll", device.name, "--anchor", ready.public_key, "--policy", device.policy]
        arguments += ["--root-of-trust", device.tier, "--kubeconfig", str(self.sandbox.plane.kubeconfig), *labels, *way]
        self._run("flashjob.cli", arguments)

    def _run(self, module: str, arguments: Iterable[str]) -> str:
        lifeline = self.sandbox.plane.lifeline
        done = subprocess.run(
            lifeline.command([sys.executable, "-m", module, *arguments]),
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(lifeline.descriptor,),
            env={**os.environ, "DOCKER_CONFIG": str(self.directory / "docker")},
        )
        if done.returncode:
            raise FlashJobError("CommandFailed", f"{module} {' '.join(arguments)[:200]}: {done.stderr.strip()[-800:]}")
        return done.stdout

    def configurations(self) -> None:
        """What Akri shall look for: ports; devices running application A or B, on serial lines and on the network.

        A device is listed by the name that it certifies. Real firmware certifies its own, so that is looked for, too.
        """
        ports = {"ports": [f"{self.directory / 'fleet'}/*"]}
        static = {"static": [self.fleet.devices[d.name].address for d in self.devices if d.transport == "network"]}
        wanted = {
            "ports": ("flashjob-serial", {"list": "Ports", "serial": ports}),
            "porch": ("flashjob-serial", {"list": "Devices", "serial": ports, "applications": [APP_A]}),
            "yard": ("flashjob-network", {"list": "Devices", "network": static, "applications": [APP_A]}),
            "cellar": ("flashjob-network", {"list": "Devices", "network": static, "applications": [APP_B]}),
        }
        if named := sorted({image.name for image in self.firmware.values()} - {APP_A, APP_B}):
            wanted["real-serial"] = ("flashjob-serial", {"list": "Devices", "serial": ports, "applications": named})
            wanted["real-network"] = ("flashjob-network", {"list": "Devices", "network": static, "applications": named})
        self.stack.apply(
            *(
                _object(
                    "akri.sh/v0",
                    "Configuration",
                    name,
                    spec={
                        "discoveryHandler": {"name": handler, "discoveryDetails": json.dumps(details)},
                        "capacity": 1,
                    },
                )
                for name, (handler, details) in wanted.items()
            )
        )

    async def listed(self, api: KubeApi) -> None:
        """Wait until every port, and every device that can prove itself to its policy, is an Instance."""
        ports = sum(device.transport == "serial" for device in self.devices)
        provable = sum(not (d.policy == "field" and d.tier == "SelfReported") for d in self.devices)

        def complete(instances: Mapping[tuple[str, str], Obj]) -> bool:
            names = [one["spec"]["configurationName"] for one in instances.values()]
            return names.count("ports") == ports and len(names) - ports == provable

        await until(api, INSTANCES, complete, LISTED_SECONDS, f"{ports} ports and {provable} devices as Instances")

    def push(self, name: str, version: str, sequence: int) -> str:
        """`firmware-pipeline push` for all chips; the index digest."""
        reference = f"{self.registry}/{name}:{version}"
        builds = [self._build(chip, name, version) for chip in self.chips]
        self.shell(
            f"firmware-pipeline push {len(builds)} builds {reference} --sign signer.key --release-key release.key"
        )
        keys = ["--sign", str(self.materials.key("signer")), "--release-key", str(self.materials.key("release"))]
        more = ["--sequence", str(sequence), "--plain-http", "--name", name, "--app-version", version]
        output = self._run("firmware_pipeline.cli", ["push", *chain.from_iterable(builds), reference, *keys, *more])
        pinned = output.strip().splitlines()[-1]
        self.digests[f"{name}:{version}"] = pinned.partition("@")[2]
        self.say(f"[cyan]{pinned}[/]")
        return self.digests[f"{name}:{version}"]

    def _build(self, chip: str, name: str, version: str) -> tuple[str, ...]:
        """Its files as `CHIP:OFFSET=FILE`. A real image was built for another partition table, so it names none."""
        if chip in self.firmware and (name, version) == (APP_A, NEW):
            return (f"{chip}:{APP_OFFSET:#x}={self.materials.real_image(self.firmware[chip].path, chip)}",)
        return self.materials.build(chip, self.materials.image(chip, name, version))

    def job(self, name: str, image: str, labels: Mapping[str, str], **more: Any) -> None:
        """`kubectl apply` of a FlashJob."""
        spec: dict[str, Any] = {
            "firmware": {
                "image": f"{self.registry}/{image}",
                "plainHTTP": True,
                "pullSecrets": [{"name": PULL_SECRET}],
            },
            "devices": {"selector": {"matchLabels": dict(labels)}},
            "strategy": {"retries": {"limit": 1, "backoffSeconds": 1}},
            **more,
        }
        job = _object("flashjob.dev/v1alpha1", "FlashJob", name, spec=spec)
        path = self.directory / f"{name}.yaml"
        path.write_text(json.dumps(job, indent=2))
        self.shell(f"kubectl apply -f {path.name}")
        self.sandbox.plane.kubectl("apply", "-f", str(path))

    def publish_login(self) -> None:
        """The registry's password: for the user's own push, and as a pull Secret for jobs."""
        token = base64.b64encode(f"{self.login.user}:{self.login.password}".encode()).decode()
        content = json.dumps({"auths": {self.registry: {"auth": token}}})
        folder = self.directory / "docker"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "config.json").write_text(content)
        secret = _object("v1", "Secret", PULL_SECRET, stringData={".dockerconfigjson": content})
        self.stack.apply({**secret, "type": "kubernetes.io/dockerconfigjson"})


async def until(
    api: KubeApi, resource: Resource, good: Any, seconds: float, what: str, namespace: str = NAMESPACE
) -> Mapping[tuple[str, str], Obj]:
    """Wait, by watching, until `good(objects by key)`; returns them. Raises FlashJobError with what was awaited."""
    changed = asyncio.Event()
    cache: Reflector[Obj] = Reflector(
        api, resource, namespace, project=lambda obj: obj, on_change=lambda *_: changed.set()
    )
    running = asyncio.create_task(cache.run())
    try:
        async with asyncio.timeout(seconds):
            await cache.synced.wait()
            while not good(dict(cache.items())):
                changed.clear()
                await changed.wait()
            return dict(cache.items())
    except TimeoutError as error:
        found = ", ".join(name for _, name in sorted(dict(cache.items())))
        raise FlashJobError(
            "DemoTimeout", f"waited {seconds:.0f} s for {what}; there are: {found or 'none'}", "see the logs"
        ) from error
    finally:
        running.cancel()


def _object(version: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, **rest}
