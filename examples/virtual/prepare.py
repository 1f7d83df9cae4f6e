# SPDX-License-Identifier: Apache-2.0
"""What three virtual devices need: `python examples/virtual/prepare.py DIRECTORY`.

Keys below DIRECTORY/keys are used, and drawn where they are missing. Written beside them:

    images/CHIP-NAME-VERSION.bin    applications porch-sensor 1.0.0 and 2.0.0, cellar-sensor 2.0.0
    images/partition-table.bin      the table that the devices have, and the applications are built for
    policies/field.yaml, bench.yaml AttestationPolicies, for a cluster or for a trust directory
    configurations.yaml             Akri Configurations: ports, and devices that hold their attestation
    fleet.json                      for `flashjob virtual`
    yard-1.pub, porch-1.pub, liar-1.pub
                                    the devices' public keys, as their maker would hand them over
"""

import argparse
import json
from pathlib import Path
from typing import Final

import yaml

from attestation import keys
from flashjob.demo.materials import APP_A, APP_B, FACTORY_VERSION, MAKER_SECRET, DemoDevice, Materials, dump
from flashjob.virtual.profile import make_identity

DEVICES: Final = (
    DemoDevice("yard-1", "esp32s3", "network", "SignedBoot", "field"),
    DemoDevice("liar-1", "esp32s3", "network", "SignedBoot", "field"),
    DemoDevice("porch-1", "esp32c3", "serial", "SelfReported", "bench"),
)
LIAR: Final = "liar-1"
"""It takes a write, says done, and runs what it ran before."""


def prepare(root: Path, first_port: int) -> None:
    """Write everything named above; devices on the network answer at `first_port` and the ports after it."""
    materials = Materials.make(root)
    chips = sorted({device.chip for device in DEVICES})
    for folder in ("policies", "ports"):
        (root / folder).mkdir(exist_ok=True)
    for chip in chips:
        for name, version in ((APP_A, FACTORY_VERSION), (APP_A, "2.0.0"), (APP_B, "2.0.0")):
            materials.image(chip, name, version)
    materials.table()
    for name in ("field", "bench"):
        policy = _object("flashjob.dev/v1alpha1", "AttestationPolicy", name, materials.policy(name, chips))
        (root / "policies" / f"{name}.yaml").write_text(yaml.safe_dump(policy, sort_keys=False))
    (root / "configurations.yaml").write_text(yaml.safe_dump_all(_configurations(root), sort_keys=False))
    fleet = materials.fleet(DEVICES, root / "ports")
    devices = [
        entry
        | ({"port": first_port + number} if entry["transport"] == "network" else {})
        | ({"behaviour": "RunsOldImage"} if entry["name"] == LIAR else {})
        for number, entry in enumerate(fleet["devices"])
    ]
    dump(root / "fleet.json", {**fleet, "devices": devices, "control": str(root / "control"), "followStdin": False})
    for device in DEVICES:
        identity = make_identity(device.name, device.chip, tier=device.tier, secret=MAKER_SECRET.encode())
        (root / f"{device.name}.pub").write_text(keys.to_pem(identity.anchor))


def _configurations(root: Path) -> list[dict[str, object]]:
    ports = {"ports": [f"{root / 'ports'}/*"]}
    wanted = {
        "ports": ("flashjob-serial", {"list": "Ports", "serial": ports}),
        "porch": ("flashjob-serial", {"list": "Devices", "serial": ports}),
        "yard": ("flashjob-network", {"list": "Devices", "applications": [APP_A]}),
        "cellar": ("flashjob-network", {"list": "Devices", "applications": [APP_B]}),
    }
    return [
        _object(
            "akri.sh/v0",
            "Configuration",
            name,
            {"discoveryHandler": {"name": handler, "discoveryDetails": json.dumps(details)}, "capacity": 1},
        )
        for name, (handler, details) in wanted.items()
    ]


def _object(api_version: str, kind: str, name: str, spec: object) -> dict[str, object]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write what three virtual devices need.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--first-port", type=int, default=18081)
    options = parser.parse_args()
    prepare(options.directory.absolute(), options.first_port)
