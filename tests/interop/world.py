# SPDX-License-Identifier: Apache-2.0
"""What every cell of the matrix works with: registries, an artifact of ours in them, and a key pair of cosign's."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from firmware_pipeline import api
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.reference import Reference
from firmware_pipeline.signing.keys import LocalSigner, TrustedKey, load_trusted_key, public_pem
from firmware_pipeline.store import ArtifactStore
from flashjob.sandbox.registry import Registry
from tests.interop.tools import Missing, Tool
from tests.unit.firmware import builds

PLATFORMS = {"esp32c3": "espidf/riscv32/esp32c3", "esp32s3": "espidf/xtensa/esp32s3"}
OPTIONS = ClientOptions(plain_http=True)
PASSWORD = {"COSIGN_PASSWORD": "interop", "COSIGN_YES": "true"}


class Wrong(Exception):
    """A cell's result is not what it has to be."""


@dataclass
class World:
    """Registries by name, and the artifact `team/porch:2.1.0` in each, signed by us.

    Attributes:
        folder: for whatever a cell writes.
        files: chip -> file name -> bytes, as they were pushed.
        layout: the same artifact, signatures included, as an OCI layout directory.
        key: our public key as a file.
    """

    folder: Path
    registries: dict[str, Registry | Missing]
    digest: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    plans: list[BuildPlan] = field(default_factory=list)
    release: api.Release = field(default_factory=lambda: api.Release(ed25519.Ed25519PrivateKey.generate(), 21))
    numbers: Iterator[int] = field(default_factory=count)
    signer: LocalSigner = field(default_factory=lambda: LocalSigner(ec.generate_private_key(ec.SECP256R1())))

    @property
    def layout(self) -> Path:
        return self.folder / "layout"

    @property
    def key(self) -> Path:
        return self.folder / "ours.pub"

    @property
    def trusted(self) -> TrustedKey:
        return TrustedKey("ours", self.signer.public_key)

    @property
    def running(self) -> list[str]:
        """Names of the registries that run."""
        return [name for name, found in self.registries.items() if not isinstance(found, Missing)]

    def host(self, registry: str) -> str:
        """host:port of a registry that runs."""
        found = self.registries[registry]
        if isinstance(found, Missing):
            raise Wrong(found.why)
        return found.host

    def reference(self, registry: str) -> str:
        return f"{self.host(registry)}/team/porch:2.1.0"

    def fresh(self, registry: str) -> str:
        """A repository that nobody has used."""
        return f"{self.host(registry)}/copies/number{next(self.numbers)}"

    def room(self) -> Path:
        """An empty directory."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def prepare(self) -> None:
        """Push our artifact everywhere, and keep it as a layout."""
        self.key.write_bytes(public_pem(self.signer.public_key))
        for chip in PLATFORMS:
            plan = builds.plan(self.room(), chip)
            self.plans.append(plan)
            self.files[chip] = {file.name: file.data for file in plan.files}
        targets = [self.reference(name) for name in self.running]
        for where in [f"oci:{self.layout}:2.1.0", *targets]:
            self._push(where, self.signer)

    def unsigned(self, registry: str) -> str:
        """The same artifact in a repository of its own, signed by nobody; pinned."""
        return str(self._push(f"{self.fresh(registry)}:2.1.0", None))

    def _push(self, where: str, signer: LocalSigner | None) -> Reference:
        pushed = api.push(self.plans, where, signer=signer, release=self.release, options=OPTIONS)
        if self.digest not in ("", pushed.index_digest):
            raise Wrong(f"{where} holds {pushed.index_digest}, not {self.digest}")
        self.digest = pushed.index_digest
        return pushed.reference

    def store(self, reference: str, *, push: bool = False) -> ArtifactStore:
        return api.open_store(reference, OPTIONS, push=push)

    def holds(self, reference: str, *, keys: list[TrustedKey] | None = None) -> None:
        """Pull every chip from there with our own client, and compare every byte; judge the signatures if keys are given."""
        store = self.store(reference)
        digest = api.resolve(store, reference)
        if digest != self.digest:
            raise Wrong(f"the digest became {digest}")
        if keys is not None:
            api.verify(store, digest, keys)
        for chip, files in self.files.items():
            for layer in api.open_chip(store, digest, chip).layers:
                if api.read_layer(store, layer) != files[Path(layer.title).name]:
                    raise Wrong(f"{layer.title} is not what was pushed")


def cosign_key(tool: Tool, folder: Path) -> TrustedKey:
    """A key pair that cosign made, `cosign.key` and `cosign.pub`, in `folder`."""
    tool.run("generate-key-pair", env=PASSWORD, cwd=folder)
    return load_trusted_key((folder / "cosign.pub").read_bytes(), tool.name)


@contextmanager
def world(programs: dict[str, Tool | Missing]) -> Iterator[World]:
    """A world with one registry per program, gone afterwards."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="flashjob-interop-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        running: dict[str, Registry | Missing] = {}
        for name, program in programs.items():
            if isinstance(program, Missing):
                running[name] = program
                continue
            binary = Path(program.command[0])
            running[name] = stack.enter_context(Registry.start(folder / name.replace(" ", "-"), binary=binary))
        made = World(folder, running)
        made.prepare()
        yield made
