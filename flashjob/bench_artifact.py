# SPDX-License-Identifier: Apache-2.0
"""The artifact that a call at a bench is about, however many devices it flashes.

Rules (tests name them):

1. The reference is resolved once: a tag that moves meanwhile does not make two devices of one call run different things.
2. A device's policy's required signers must have signed, and if the trust directory names signers, one of those as well.
   Nobody named anywhere: refused.
3. Each chip's layers are fetched once; the registry is asked by one thread at a time.
"""

import os
import threading
from pathlib import Path

from attestation.directory import TrustDirectory
from attestation.policy import AttestationPolicySpec
from firmware_pipeline import api
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.plan import Role
from firmware_pipeline.signing.keys import load_trusted_key
from firmware_pipeline.store import ArtifactStore
from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Firmware
from flashjob.pinning import pin, verification_policy
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target


class Artifact:
    """One artifact, opened when the first device asks for it. Safe to be asked from several threads.

    Args:
        reference: of a registry, or an OCI layout directory.
        folder: an existing directory for the layers.
        plain_http: speak to the registry without TLS.
    """

    def __init__(self, reference: str, folder: Path, *, plain_http: bool = False) -> None:
        self._reference, self._folder, self._plain_http = reference, folder, plain_http
        self._lock = threading.Lock()
        self._opened: tuple[ArtifactStore, str] | None = None
        self._fetched: dict[tuple[str, frozenset[Role]], Firmware] = {}

    def firmware(
        self,
        chip: str,
        trust: TrustDirectory,
        policy_name: str,
        policy: AttestationPolicySpec,
        roles: frozenset[Role] = frozenset(),
    ) -> tuple[Target, Firmware]:
        """What a device of this chip and policy is to run: verified, pinned, fetched. Synchronous.

        Args:
            chip: IDF target, as esp32s3.
            trust: may name signers of its own.
            policy_name, policy: that judge the device.
            roles: of images to be fetched beside the application.

        Raises:
            FlashJobError: SignersNotConfigured, or what fetching ended with.
            PipelineError: of the registry, or a signature that is missing or wrong.
        """
        with self._lock:
            store, digest = self._opened = self._opened or self._open()
            _verify(store, digest, trust, policy_name, policy)
            target = pin(store.name, digest, api.open_chip(store, digest, chip), plain_http=self._plain_http)
            if (chip, roles) not in self._fetched:
                self._fetched[chip, roles] = fetch(store, target, self._folder, roles=roles)
            return target, self._fetched[chip, roles]

    def _open(self) -> tuple[ArtifactStore, str]:
        where = api.locate(self._reference)
        options = api.ClientOptions(credentials=load_credentials(os.environ), plain_http=self._plain_http)
        store = api.open_store(where, options)
        return store, api.resolve(store, where)


def _verify(
    store: ArtifactStore, digest: str, trust: TrustDirectory, policy_name: str, policy: AttestationPolicySpec
) -> None:
    """Rule 2."""
    own = [load_trusted_key(pem.encode(), name) for name, pem in trust.signers().items()]
    if policy.required_signers is None and not own:
        raise FlashJobError(
            Reason.SIGNERS_NOT_CONFIGURED,
            f"neither policy {policy_name} nor {trust.root}/signers names a signer",
            Reason.SIGNERS_NOT_CONFIGURED.next_step,
        )
    if policy.required_signers is not None:
        api.verify_policy(store, digest, verification_policy(policy.required_signers))
    if own:
        api.verify(store, digest, own)
