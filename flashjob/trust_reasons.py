# SPDX-License-Identifier: Apache-2.0
"""What attestation refuses at a bench, in the product's own reasons: what is wrong may be the trust directory alone."""

from pathlib import Path
from typing import Final

from attestation.errors import Code, Reject
from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason

_TRUST: Final = frozenset({Code.STORE_INVALID, Code.STORE_UNAVAILABLE})
_POLICY: Final = frozenset({Code.POLICY_INVALID, Code.POLICY_MISSING})


def bench_error(error: Reject, trust: Path) -> FlashJobError:
    """The failure that a Reject is, of a program that judges by the trust directory `trust`."""
    if error.code in _TRUST:
        return FlashJobError(Reason.TRUST_UNUSABLE, error.message, Reason.TRUST_UNUSABLE.next_step)
    if error.code in _POLICY:
        return FlashJobError(Reason.POLICY_MISSING, error.message, f"correct the policy in {trust / 'policies'}")
    if error.code is Code.ENROL_KNOWN:
        step = f"see {trust / 'devices'}; remove its file there if it is really to be enrolled anew"
        return FlashJobError(Reason.ALREADY_ENROLLED, error.message, step)
    return FlashJobError(Reason.EVIDENCE_INVALID, str(error), Reason.EVIDENCE_INVALID.next_step)
