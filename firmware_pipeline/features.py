# SPDX-License-Identifier: Apache-2.0
"""Hardware features that a build demands: the platform's `os.features`, and who of several builds for a chip fits best.

Vocabulary: `psram-octal`, `psram-quad`, `psram>=NM`, `flash>=NM` (N MiB, 1 to 1024), `secure-boot-v2`. Pure.

Rules of `best`:
 1. A build fits if the device has every feature that it demands; a feature that nobody has read is not there.
 2. Of those that fit the most specific wins: the one whose features imply all features of each other (`flash>=8M` implies
    `flash>=4M`). None such = a tie.
"""

import re
from collections.abc import Iterable, Sequence

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import FEATURE_PATTERN

MAX_FEATURES = 8
_FEATURE = re.compile(FEATURE_PATTERN.removesuffix("$") + r"\Z")


def normalise_features(features: Iterable[str]) -> tuple[str, ...]:
    """The features in their one order, each once.

    Raises:
        PipelineError: FeatureMalformed.
    """
    found = sorted(set(features))
    for feature in found:
        if not _FEATURE.match(feature):
            raise PipelineError(
                Reason.FeatureMalformed,
                f"{feature[:60]!r} is no platform feature that a device could be asked for.",
                "Use psram-octal, psram-quad, psram>=8M, flash>=8M (any size) or secure-boot-v2.",
            )
    if len(found) > MAX_FEATURES:
        raise PipelineError(
            Reason.FeatureMalformed, f"{len(found)} platform features are too many.", f"Name at most {MAX_FEATURES}."
        )
    return tuple(found)


def _amount(feature: str) -> tuple[str, int]:
    """Kind, and bytes demanded; 0 for a feature that is there or not."""
    kind, _, amount = feature.partition(">=")
    return kind, int(amount[:-1]) << 20 if amount else 0


def has(feature: str, facts: HardwareFacts) -> bool | None:
    """Whether the device has the feature; None = nobody has read it. `feature` is one of the vocabulary."""
    kind, demanded = _amount(feature)
    if kind == "secure-boot-v2":
        return facts.secure_boot
    if kind == "flash":
        return None if facts.flash_size is None else facts.flash_size >= demanded
    if kind == "psram":
        return None if facts.psram_size is None else facts.psram_size >= demanded
    if facts.psram_size == 0:
        return False
    return None if facts.psram_mode is None else facts.psram_mode == kind.removeprefix("psram-")


def facts_of(features: Iterable[str]) -> HardwareFacts:
    """A device of which only these features are known.

    Raises:
        PipelineError: FeatureMalformed; also where no device has all of them.
    """
    known = normalise_features(features)
    modes = [feature.removeprefix("psram-") for feature in known if feature in ("psram-octal", "psram-quad")]
    if len(modes) > 1:
        raise PipelineError(
            Reason.FeatureMalformed,
            "No device has psram-octal and psram-quad: PSRAM is connected in one way.",
            "Name the one that the device has.",
        )
    sizes = dict(sorted(amount for feature in known if (amount := _amount(feature))[1]))
    return HardwareFacts.model_validate(
        {
            "psram_mode": modes[0] if modes else None,
            "psram_size": sizes.get("psram"),
            "flash_size": sizes.get("flash"),
            "secure_boot": True if "secure-boot-v2" in known else None,
        }
    )


def _implies(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether a device with all of mine has all of theirs."""
    amounts = [_amount(feature) for feature in mine]
    return all(any(k == kind and a >= b for k, a in amounts) for kind, b in (_amount(f) for f in theirs))


def best(builds: Sequence[Sequence[str]], facts: HardwareFacts) -> list[int]:
    """Positions of the builds that fit the device best: none, the one that wins (rule 2), or those that tie."""
    fitting = [n for n, features in enumerate(builds) if all(has(feature, facts) for feature in features)]
    winners = [n for n in fitting if all(_implies(builds[n], builds[other]) for other in fitting)]
    return winners or fitting
