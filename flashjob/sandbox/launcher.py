# SPDX-License-Identifier: Apache-2.0
"""Start a real control plane on loopback, without root, and end it without leaving anything behind.

etcd is reached over UNIX sockets in a directory of mode 0700 and the controller manager and scheduler serve nothing, so
the API server's port is the only one. Authorization is RBAC; admission is the API server's own default set, with
ServiceAccount. Every identity has credentials of its own: `admin` a token, the components and nodes client
certificates, service accounts tokens from TokenRequest.

Order: etcd and API server start; once the server is ready, controller manager and scheduler. The
three clients of etcd stop before etcd, because an API server whose etcd is gone does not end.
"""

from __future__ import annotations

import datetime
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import requests

from flashjob.errors import FlashJobError

from .identities import KUBELET_CLIENT
from .kubeconfig import write_kubeconfig
from .pki import Authority, write_private
from .ports import ADDRESS_IN_USE, PORT_ATTEMPTS, free_port
from .process import Lifeline, Program

READY_SECONDS: Final = 60.0
SERVICE_CIDR: Final = "10.96.0.0/16"

AUDIENCE: Final = "https://kubernetes.default.svc.cluster.local"
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_CONTROLLERS: Final = (
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "taint-eviction-controller",
    "validatingadmissionpolicy-status-controller",
)
_AUDIT_POLICY: Final = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [watch]
- level: Metadata
"""


class ControlPlane:
    """A running control plane. Make one with `start`; end it with `stop` or as a context manager."""

    def __init__(self, state_dir: Path, binary: Path, authority: Authority, admin_token: str, url: str) -> None:
        self.state_dir = state_dir
        self.binary = binary
        self.authority = authority
        self.admin_token = admin_token
        self.url = url
        self.ca = authority.certificate_file
        self.lifeline = Lifeline()
        self.programs: list[Program] = []
        self._session = requests.Session()
        self._session.verify = str(self.ca)
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {admin_token}"
        self.kubeconfig = write_kubeconfig(
            state_dir / "kubeconfig" / "admin.yaml", url=url, ca=self.ca, token=admin_token
        )

    @classmethod
    def start(
        cls,
        state_dir: Path,
        *,
        binary: Path,
        audit_log: Path | None = None,
        apiserver_arguments: Sequence[str] = (),
        ready_seconds: float = READY_SECONDS,
    ) -> ControlPlane:
        """Start everything and return when the API server is ready and the first controllers have worked.

        Args:
            state_dir: where etcd's data, keys, kubeconfigs and logs are kept (mode 0700); an earlier state is continued.
            binary: the multi-call program (`toolchain.build(programs.CONTROL_PLANE, ...)`).
            audit_log: where to write one line of metadata per API request; None writes none.
            apiserver_arguments: further arguments of kube-apiserver.
            ready_seconds: how long to wait.

        Raises:
            FlashJobError: `ControlPlaneNotReady` or `ProgramEnded`, with the end of the log that says why.
        """
        state_dir = state_dir.resolve()
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (state_dir / "etcd").mkdir(mode=0o700, exist_ok=True)
        authority = Authority(state_dir / "pki", datetime.datetime.now(datetime.UTC))
        authority.issue("apiserver", "kube-apiserver", hosts=("127.0.0.1", "localhost"), server=True)
        token = secrets.token_urlsafe(32)
        write_private(state_dir / "pki" / "tokens.csv", f'{token},admin,admin,"system:masters"\n'.encode())
        for attempt in range(PORT_ATTEMPTS):
            port = free_port()
            plane = cls(state_dir, binary, authority, token, f"https://127.0.0.1:{port}")
            try:
                deadline = time.monotonic() + ready_seconds
                plane._launch_server(port, audit_log, apiserver_arguments)
                plane._wait_for("/readyz", "ok", deadline)
                # Not before: the controller manager gives up when no API server is healthy within ten seconds.
                plane._launch_controllers()
                plane._wait_for("/api/v1/namespaces/default/serviceaccounts/default", "", deadline)
            except FlashJobError as error:
                plane.stop()
                if attempt + 1 == PORT_ATTEMPTS or ADDRESS_IN_USE not in error.message:
                    raise
            except BaseException:
                plane.stop()
                raise
            else:
                return plane
        raise AssertionError("the last attempt returns or raises")

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self.binary), name, *arguments]
        log = self.state_dir / "logs" / f"{name}.log"
        log.unlink(missing_ok=True)
        self.programs.append(Program.start(name, command, self.lifeline, log=log, cwd=self.state_dir / "etcd"))

    def _launch_server(self, port: int, audit_log: Path | None, apiserver_arguments: Sequence[str]) -> None:
        pki = self.state_dir / "pki"
        kubelet_client = self.authority.issue("kubelet-client", KUBELET_CLIENT)
        public_key, private_key = self.authority.service_account_keys()
        for left_behind in ("client:1", "peer:1"):
            (self.state_dir / "etcd" / left_behind).unlink(missing_ok=True)
        # Socket names are relative to the working directory: no limit on the length of the state directory's path.
        self._run(
            "etcd",
            "--name=sandbox",
            "--data-dir=data",
            "--unsafe-no-fsync",
            "--listen-client-urls=unix://client:1",
            "--advertise-client-urls=unix://client:1",
            "--listen-peer-urls=unix://peer:1",
            "--initial-advertise-peer-urls=unix://peer:1",
            "--initial-cluster=sandbox=unix://peer:1",
            "--log-level=warn",
        )
        audit: list[str] = []
        if audit_log is not None:
            policy = self.state_dir / "audit-policy.yaml"
            policy.write_text(_AUDIT_POLICY, encoding="utf-8")
            audit = [f"--audit-policy-file={policy}", f"--audit-log-path={audit_log.resolve()}"]
        self._run(
            "kube-apiserver",
            "--etcd-servers=unix://client:1",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={pki}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={self.ca}",
            f"--token-auth-file={pki / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={AUDIENCE}",
            f"--service-account-jwks-uri={self.url}/openid/v1/jwks",
            f"--service-account-key-file={public_key}",
            f"--service-account-signing-key-file={private_key}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--kubelet-certificate-authority={self.ca}",
            f"--kubelet-client-certificate={kubelet_client[0]}",
            f"--kubelet-client-key={kubelet_client[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
            *audit,
            *apiserver_arguments,
        )

    def _launch_controllers(self) -> None:
        for name, user, arguments in (
            (
                "kube-controller-manager",
                "system:kube-controller-manager",
                (
                    f"--controllers={','.join(_CONTROLLERS)}",
                    "--use-service-account-credentials=true",
                    f"--root-ca-file={self.ca}",
                    "--kube-api-qps=200",
                    "--kube-api-burst=400",
                ),
            ),
            ("kube-scheduler", "system:kube-scheduler", ("--kube-api-qps=200", "--kube-api-burst=400")),
        ):
            kubeconfig = self.user_kubeconfig(name, user)
            self._run(
                name,
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                "--leader-elect=false",
                "--secure-port=0",
                "--profiling=false",
                *arguments,
            )

    def _wait_for(self, path: str, wanted: str, deadline: float) -> None:
        """Until a path is answered with success, and with `wanted` if that is not empty."""
        answer = "nothing yet"
        while True:
            self.require_running()
            try:
                response = self._session.get(self.url + path, timeout=5)
                answer = response.text
                if response.ok and (not wanted or answer == wanted):
                    return
            except requests.RequestException as error:
                answer = str(error)
            if time.monotonic() > deadline:
                raise FlashJobError(
                    "ControlPlaneNotReady",
                    f"GET {path} was not answered as expected in time; last answer: {answer[:500]}",
                    f"read the logs in {self.state_dir / 'logs'}",
                )
            time.sleep(_POLL_SECONDS)

    def require_running(self) -> None:
        """Raise `ProgramEnded` if any component has ended by itself."""
        for program in self.programs:
            program.require_running()

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """One request as admin; returns the decoded JSON.

        Raises:
            FlashJobError: `ApiRefused`, with the API server's own message.
        """
        response = self._session.request(
            method, self.url + path, json=body, headers={"Content-Type": content_type}, timeout=30
        )
        if not response.ok:
            raise FlashJobError(
                "ApiRefused",
                f"{method} {path}: {response.status_code} {response.text[:500]}",
                "correct the request; the API server's message names the field",
            )
        return response.json()

    def user_kubeconfig(self, name: str, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig with a client certificate for `user` in `groups`."""
        certificate = self.authority.issue(name, user, organizations=groups)
        path = self.state_dir / "kubeconfig" / f"{name}.yaml"
        return write_kubeconfig(path, url=self.url, ca=self.ca, client_certificate=certificate)

    def service_account_token(
        self, namespace: str, name: str, seconds: int = 86400, audience: str | None = None
    ) -> str:
        """A TokenRequest token of an existing service account, good for `seconds` (at least 600)."""
        spec: dict[str, Any] = {"expirationSeconds": seconds}
        if audience is not None:
            spec["audiences"] = [audience]
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.request("POST", path, body)["status"]["token"])

    def service_account_kubeconfig(self, namespace: str, name: str, seconds: int = 86400) -> Path:
        """A kubeconfig that acts as an existing service account."""
        token = self.service_account_token(namespace, name, seconds)
        path = self.state_dir / "kubeconfig" / f"{namespace}.{name}.yaml"
        return write_kubeconfig(path, url=self.url, ca=self.ca, token=token, namespace=namespace)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run the real kubectl as admin and return its output.

        Raises:
            FlashJobError: `KubectlFailed`, with kubectl's own message.
        """
        command = [str(self.binary), "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            raise FlashJobError(
                "KubectlFailed",
                f"kubectl {' '.join(arguments)}: {done.stderr.strip()}",
                "correct the manifest or command",
            )
        return done.stdout

    def stop(self) -> None:
        """Stop all components, etcd last; returns when they are gone. Does nothing the second time."""
        programs, self.programs = self.programs, []
        for clients_of_etcd in (True, False):
            chosen = [program for program in programs if (program.name != "etcd") is clients_of_etcd]
            for program in chosen:
                program.terminate()
            for program in reversed(chosen):
                program.stop(_STOP_SECONDS)
        self.lifeline.close()
        self._session.close()
