# SPDX-License-Identifier: Apache-2.0
"""Join several artifacts of one release into one index: what the jobs of a build matrix pushed, each for its chip. Pure.

Rules:
    1. No platform (chip and features) comes twice (InputDisagrees).
    2. All are of one application and one version (InputDisagrees).
    3. Annotations on which all agree are kept; the user's replace them; our own prefix is reserved.
    4. Entries are sorted by platform: the order of the children does not matter, the digest is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firmware_pipeline.artifact import INDEX_ARTIFACT_TYPE, PREFIX, ChipArtifact
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import Descriptor, Index, to_json


@dataclass(frozen=True, slots=True)
class Child:
    """One entry to be joined.

    Attributes:
        name: what the user called it, for messages.
        entry: as its own index describes it, with platform.
        chip: what it holds.
        annotations: of the index it comes from.
    """

    name: str
    entry: Descriptor
    chip: ChipArtifact
    annotations: Mapping[str, str]


def join(children: Sequence[Child], annotations: Mapping[str, str] | None = None) -> bytes:
    """The joined index.

    Args:
        children: at least one.
        annotations: the user's own.

    Raises:
        PipelineError: InputMissing, InputDisagrees.
    """
    if not children:
        raise PipelineError(Reason.InputMissing, "There is nothing to join.", "Name at least one pushed artifact.")
    places: dict[tuple[str, ...], Child] = {}
    for child in children:
        place = _place(child.entry)
        if place in places:
            raise _disagree(f"{places[place].name} and {child.name} both hold {' '.join(place)}")
        places[place] = child
    for what, values in (
        ("applications", {child.chip.config.app.project_name for child in children}),
        ("versions", {child.chip.config.app.version for child in children}),
    ):
        if len(values) > 1:
            raise _disagree(f"their {what} differ ({', '.join(sorted(values))})")
    if own := [key for key in annotations or {} if key.startswith(PREFIX)]:
        raise _disagree(f"the annotation {own[0]} uses the reserved prefix {PREFIX}")
    first = children[0].annotations
    common = {key: first[key] for key in first if all(child.annotations.get(key) == first[key] for child in children)}
    return to_json(
        Index(
            schema_version=2,
            artifact_type=INDEX_ARTIFACT_TYPE,
            manifests=[places[place].entry for place in sorted(places)],
            annotations={**common, **(annotations or {})},
        )
    )


def _place(entry: Descriptor) -> tuple[str, ...]:
    platform = entry.platform
    return (platform.variant or "", *sorted(platform.os_features)) if platform else ("",)


def _disagree(problem: str) -> PipelineError:
    return PipelineError(
        Reason.InputDisagrees,
        f"These artifacts cannot be joined: {problem}.",
        "Join artifacts of one release, each chip once; push other releases under a tag of their own.",
    )
