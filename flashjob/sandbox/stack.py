# SPDX-License-Identifier: Apache-2.0
"""FlashJob's own processes on a sandbox: gateway, operator, discovery handlers, each under its own ServiceAccount.

Rules:

1. Nobody but `kubectl` in a person's hand is admin: every process has the kubeconfig of its own account.
2. Private keys reach the one process that uses them, as files; what others need of them are public halves in
   ConfigMaps. The signer's and the release key never come near.
"""

import datetime
import json
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests

from attestation import keys
from flashjob.errors import FlashJobError

from .apply import SYSTEM_NAMESPACE
from .main import NODE_NAME, Sandbox
from .pki import Authority
from .ports import free_port
from .process import Program

_READY_SECONDS: Final = 40.0
_POLL_SECONDS: Final = 0.1
_FLASHER_IMAGE: Final = "flashjob/flasher"


@dataclass(slots=True)
class Stack:
    """FlashJob on a sandbox.

    Args:
        sandbox: a running one.
        grant_key, listing_key: PEM private keys.
        job_namespace: where jobs and devices are.
    """

    sandbox: Sandbox
    grant_key: Path
    listing_key: Path
    job_namespace: str = "default"
    extra_env: Mapping[str, str] = field(default_factory=dict)
    gateway: Program | None = None
    operator: Program | None = None
    handlers: dict[str, Program] = field(default_factory=dict)
    _gateway_port: int = 0
    _operator_port: int = 0
    _directory: Path = field(init=False)
    _authority: Authority = field(init=False)

    def __post_init__(self) -> None:
        self._directory = self.sandbox.state_dir.resolve() / "flashjob"
        (self._directory / "nonce").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._authority = Authority(self._directory / "pki", datetime.datetime.now(datetime.UTC))
        self._gateway_port, self._operator_port = free_port(), free_port()

    @property
    def gateway_url(self) -> str:
        """Where the gateway serves."""
        return f"https://127.0.0.1:{self._gateway_port}"

    @property
    def gateway_ca(self) -> Path:
        """PEM of the CA of the gateway's certificate."""
        return self._authority.certificate_file

    def up(self) -> None:
        """Publish the public parts, start everything, wait until gateway and operator are ready."""
        self.publish()
        self.start_gateway()
        self.start_operator()
        for role in ("network", "serial"):
            self.start_handler(role)
        self.wait_ready(f"{self.gateway_url}/readyz")
        self.wait_ready(f"http://127.0.0.1:{self._operator_port}/readyz")

    def publish(self) -> None:
        """ConfigMaps that people, pods and the operator read; see this module's rule 2."""
        grant = keys.to_pem(keys.private_from_pem(self.grant_key.read_bytes()).public_key())
        listing = keys.to_pem(keys.private_from_pem(self.listing_key.read_bytes()).public_key())
        for namespace in (self.job_namespace, SYSTEM_NAMESPACE):
            self.config_map(namespace, "flashjob-gateway", {"url": self.gateway_url, "grant.pub": grant})
            self.config_map(namespace, "flashjob-gateway-ca", {"ca.crt": self.gateway_ca.read_text()})
        self.config_map(SYSTEM_NAMESPACE, "flashjob-listing-keys", {"current.pub": listing})

    def config_map(self, namespace: str, name: str, data: Mapping[str, str]) -> None:
        """Apply a ConfigMap."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": namespace},
                "data": dict(data),
            }
        )

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply` of these objects, as the person at the keyboard."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.sandbox.plane.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def start_gateway(self) -> None:
        """Start it, at the same port as before."""
        nonce = self._directory / "nonce" / "0"
        if not nonce.exists():
            nonce.touch(mode=0o600)
            nonce.write_bytes(secrets.token_bytes(32))
        certificate, key = self._authority.issue(
            "gateway", "flashjob-gateway", hosts=["127.0.0.1", "localhost"], server=True
        )
        self.gateway = self._flashjob(
            "gateway",
            "gateway",
            ["--tls-cert", str(certificate), "--tls-key", str(key), "--grant-key", str(self.grant_key)],
            ["--nonce-keys", str(nonce.parent), "--listen", f"127.0.0.1:{self._gateway_port}"],
            ["--operator-namespace", SYSTEM_NAMESPACE],
        )

    def start_operator(self) -> None:
        """Start it, at the same port as before."""
        self.operator = self._flashjob(
            "operator",
            "operator",
            ["--namespace", SYSTEM_NAMESPACE, "--gateway-url", self.gateway_url, "--gateway-ca", str(self.gateway_ca)],
            ["--image", _FLASHER_IMAGE, "--listen", f"127.0.0.1:{self._operator_port}", "--identity", "sandbox"],
        )

    def start_handler(self, role: str, node: str = NODE_NAME) -> None:
        """Start the discovery handler for `network` or `serial`."""
        self.handlers[role] = self._flashjob(
            f"discovery-{role}",
            "discovery-handler",
            [
                "--role",
                role,
                "--directory",
                str(self.sandbox.akri_directory(node)),
                "--listing-key",
                str(self.listing_key),
            ],
            ["--node", node],
        )

    def stop(self, program: Program | None) -> None:
        """End one of the processes, as a node that fails would."""
        if program is not None:
            self.sandbox.forget(program)

    def _flashjob(self, name: str, command: str, *arguments: list[str]) -> Program:
        account = "discovery-handler" if command == "discovery-handler" else command
        kubeconfig = ["--kubeconfig", str(self.sandbox.identity(account))]
        flat = [argument for group in (*arguments, kubeconfig) for argument in group]
        return self.sandbox.spawn(name, [sys.executable, "-m", "flashjob.cli", command, *flat], env=self.extra_env)

    def wait_ready(self, url: str) -> None:
        """Return when a readiness probe says yes. Raises FlashJobError after 40 s, or when a process has ended."""
        deadline = time.monotonic() + _READY_SECONDS
        with requests.Session() as session:
            session.trust_env = False
            while True:
                self.sandbox.require_running()
                try:
                    reply = session.get(url, verify=str(self.gateway_ca), timeout=2)
                    if reply.status_code == 200:
                        return
                    last = f"{reply.status_code} {reply.text.strip()}"
                except requests.RequestException as error:
                    last = type(error).__name__
                if time.monotonic() > deadline:
                    raise FlashJobError("NotReady", f"{url}: {last}", f"read the logs in {self.sandbox.log_directory}")
                time.sleep(_POLL_SECONDS)
