# SPDX-License-Identifier: Apache-2.0
"""The revert: whether a device is told to give up an installation that was refused. Rule 16 of judge.py. Pure."""

from attestation import grants
from attestation.statement import Digest
from flashjob.wire.gateway import RevertReply, RevertRequest
from flashjob.wire.reasons import Reason

from .case import Case, Keys
from .ruling import Refused


def revert(case: Case, request: RevertRequest, keys: Keys) -> RevertReply:
    """The grant that ends a refused installation before the device's own deadline does. Nothing is recorded for it:
    the verdict that it rests on is, and the device takes it once, over its own nonce.

    Args:
        case: the attempt, with what it was refused for.
        request: the device's revert nonce.
        keys: the gateway's keys.

    Raises:
        Refused: NothingToRevert (rule 16).
    """
    refused = case.refused
    if refused is None:
        raise _nothing(f"attempt {case.attempt} of {case.task} has no verdict that refuses what the device proved")
    if refused.boot_id not in case.grant_ids:
        raise _nothing(f"boot id {refused.boot_id.hex()} is no installation of {case.task}")
    before = next((p.before for p in reversed(case.permits) if p.before is not None), None)
    if before is None:
        raise _nothing("the device had proved nothing before the write: there may be nothing to go back to")
    grant = grants.RevertGrant(
        ueid=case.subject.id,
        device_nonce=request.device_nonce,
        grant_id=refused.boot_id,
        fence=max(p.fence for p in case.permits),
        result=Digest.model_validate({"alg": before.measurement.alg, "value": before.measurement.value}),
    )
    return RevertReply(revert_grant=grants.mint(grant, keys.grant))


def _nothing(message: str) -> Refused:
    return Refused(Reason.NOTHING_TO_REVERT, message)
