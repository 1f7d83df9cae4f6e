# SPDX-License-Identifier: Apache-2.0
"""The evidence of every verdict, signed, in a directory: judged again years later by `attest reappraise`.

Rules (tests name them):

1. A verdict is recorded after it was written to the task, so that the directory never claims what the task does not say.
2. A record that cannot be kept is logged and counted, and changes no verdict.
3. Findings without evidence, or whose evidence answered no nonce of ours, have nothing to judge again and leave none.
"""

import asyncio
import logging
from pathlib import Path

from attestation import evidence
from attestation.errors import Reject
from attestation.evidence_store import EvidenceStore, verifier_build
from attestation.keys import PrivateKey

from .case import Case
from .ruling import Finding

log = logging.getLogger(__name__)


class DirectorySink:
    """Implements service.EvidenceSink.

    Args:
        root: the directory; made where it is missing.
        key: signs the records.

    Raises:
        Reject: ``store.unavailable``.
    """

    def __init__(self, root: Path, key: PrivateKey) -> None:
        self._store, self._key = EvidenceStore(root, create=True), key
        self._build = verifier_build()
        self.lost = 0
        """Records that could not be kept."""

    async def keep(self, case: Case, finding: Finding) -> None:
        """See EvidenceSink."""
        judged = finding.judged
        if judged is None:
            return
        payload = evidence.record(
            judged.evidence,
            judged.context,
            judged.verdict,
            verifier=self._build,
            about={
                "task": f"{case.namespace}/{case.task}",
                "attempt": str(case.attempt),
                "outcome": str(finding.outcome),
                "reason": str(finding.reason),
                "artifact": f"{case.target.repository}@{case.target.index_digest}",
            },
        )
        if payload is None:
            return
        try:
            await asyncio.to_thread(self._store.add, payload, self._key)
        except Reject as reject:
            self.lost += 1
            log.error("the evidence of %s/%s is not on record: %s", case.namespace, case.task, reject)
