# SPDX-License-Identifier: Apache-2.0
"""What a flashing attempt asks of its judge: the gateway, or the same rules in this process at a bench.

Every method raises `FlashJobError` (`wire.refusal.Refused` where the judge itself said no) and nothing else.
"""

from __future__ import annotations

from typing import Protocol

from flashjob.wire.gateway import (
    ConfirmRequest,
    DeviceResult,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    NonceRequest,
    PermitReply,
    PermitRequest,
    Progress,
    RevertReply,
    RevertRequest,
    VerdictReply,
)


class Judge(Protocol):
    """The judge of one task; it alone knows what success is."""

    async def nonce(self, request: NonceRequest) -> NonceReply:
        """A fresh nonce for evidence."""
        ...

    async def permit(self, request: PermitRequest) -> PermitReply:
        """Asked just before byte 1."""
        ...

    async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
        """Hand in evidence taken after the reboot; earns a confirm grant."""
        ...

    async def confirm(self, request: ConfirmRequest) -> VerdictReply:
        """Hand in evidence that says VALID; earns the verdict."""
        ...

    async def revert(self, request: RevertRequest) -> RevertReply:
        """After a verdict that refuses the installation: the order to give it up."""
        ...

    async def progress(self, progress: Progress) -> None:
        """Tell how far the attempt is; never fails the attempt."""
        ...

    async def result(self, result: DeviceResult) -> None:
        """Tell how the attempt ended, as this side sees it."""
        ...

    async def address(self) -> str | None:
        """host:port where the device was last seen, if that is known to have changed."""
        ...
