# SPDX-License-Identifier: Apache-2.0
"""Whether firmware would take a device back: pure, the one home of this rule.

What the device has is what the caller says it has (a recorded status, a live answer, an option). Rules, in this order:
 1. secure_version is not below the device's eFuse counter (SecurityVersionTooLow). Nothing lifts this rule: such an
    image never starts.
 2. The release sequence is not below the device's (DowngradeNotAllowed). The owner signs it and it only grows, so where
    both sides have one, it decides and rule 3 is not asked.
 3. The version is not below that of the same application on the device (DowngradeNotAllowed).
`allow_downgrade` lifts rules 2 and 3. A rule that lacks a fact is undecided: it neither accepts nor refuses.

Order of versions. Projects write `1.4.0`, `v1.4.0-12-gabc1234-dirty` (git describe, ESP-IDF's default) or `1.4.0-rc.1`
(SemVer), and the two kinds of suffix mean opposite things: after 1.4.0, and before it. So only the dotted numbers are
compared, missing ones count as 0, and a leading `v` does not matter. Where the numbers are equal, equal texts are equal
and any other suffix makes the order undecided. Texts without dotted numbers are never ordered. Nothing is guessed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason

_VERSION: Final = re.compile(r"v?([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})((?:[-+~.][0-9A-Za-z.+~_-]*)?)\Z")


class Outcome(StrEnum):
    """What one rule says."""

    PASSED = "passed"
    REFUSED = "refused"
    ALLOWED = "allowed"  # refused by the rule, lifted by allow_downgrade
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Installed:
    """What a device has; None = not known."""

    secure_version: int | None = None
    sequence: int | None = None
    version: str | None = None
    application: str | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """What would be written; `sequence` is None without a release statement."""

    secure_version: int
    sequence: int | None
    version: str
    application: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's answer: its number in the module's list, its name, what was compared."""

    rule: int
    name: str
    outcome: Outcome
    reason: Reason
    message: str

    def to_error(self) -> PipelineError | None:
        """The error of a refusal, else None."""
        if self.outcome is not Outcome.REFUSED:
            return None
        return PipelineError(self.reason, f"This would be a downgrade: {self.message}", _STEPS[self.reason])


_STEPS: Final = {
    Reason.SecurityVersionTooLow: "Build with a secure_version that is not below the device's; it would never start.",
    Reason.DowngradeNotAllowed: "Push a newer release, or permit downgrades explicitly if that is meant.",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules' answers, in order."""

    findings: tuple[Finding, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.outcome is Outcome.REFUSED)

    @property
    def decided(self) -> bool:
        """Whether sequence or version could be compared: if not, nobody knows whether it is a downgrade."""
        return any(finding.rule != 1 and finding.outcome is not Outcome.UNDECIDED for finding in self.findings)


def judge(offered: Offered, installed: Installed, *, allow_downgrade: bool = False) -> Verdict:
    """Apply the rules.

    Args:
        offered: from the signed config and the release statement.
        installed: what the caller says the device has.
        allow_downgrade: lifts rules 2 and 3.
    """
    return Verdict(tuple(_judge(offered, installed, allow_downgrade)))


def _judge(offered: Offered, installed: Installed, allow_downgrade: bool) -> Iterator[Finding]:
    known = installed.secure_version
    yield Finding(
        1,
        "secure version",
        _outcome(None if known is None else offered.secure_version >= known, lifted=False),
        Reason.SecurityVersionTooLow,
        f"secure_version {offered.secure_version}, the device has {_said(known)}.",
    )
    lifted = allow_downgrade
    both = offered.sequence is not None and installed.sequence is not None
    yield Finding(
        2,
        "release sequence",
        _outcome((offered.sequence or 0) >= (installed.sequence or 0) if both else None, lifted=lifted),
        Reason.DowngradeNotAllowed,
        f"release {_said(offered.sequence, 'without a sequence')}, the device has {_said(installed.sequence)}.",
    )
    if both:
        upward, why = None, "the release sequence has decided"
    elif installed.application is not None and installed.application != offered.application:
        upward, why = None, f"the device runs another application, {installed.application!r}"
    elif installed.version is None:
        upward, why = None, "the device's is unknown"
    else:
        order = compare_versions(offered.version, installed.version)
        upward = None if order is None else order >= 0
        why = f"the device has {installed.version!r}" + ("; their order is not certain" if order is None else "")
    yield Finding(
        3,
        "version",
        _outcome(upward, lifted=lifted),
        Reason.DowngradeNotAllowed,
        f"version {offered.version!r}: {why}.",
    )


def _outcome(holds: bool | None, *, lifted: bool) -> Outcome:
    if holds is None:
        return Outcome.UNDECIDED
    if holds:
        return Outcome.PASSED
    return Outcome.ALLOWED if lifted else Outcome.REFUSED


def _said(value: int | None, absent: str = "an unknown one") -> str:
    return absent if value is None else str(value)


def compare_versions(one: str, other: str) -> int | None:
    """-1, 0 or 1 as `one` is older than, equal to or newer than `other`; None when that is not certain."""
    if one == other:
        return 0
    first, second = _VERSION.match(one), _VERSION.match(other)
    if first is None or second is None:
        return None
    numbers = zip_longest(_numbers(first[1]), _numbers(second[1]), fillvalue=0)
    for left, right in numbers:
        if left != right:
            return -1 if left < right else 1
    return 0 if not first[2] and not second[2] else None


def _numbers(dotted: str) -> list[int]:
    return [int(part) for part in dotted.split(".")]
