# SPDX-License-Identifier: Apache-2.0
"""`inspect`: what an artifact holds."""

import json
from collections.abc import Iterator

import typer

from firmware_pipeline.cli.options import AsJson, Login, Ref
from firmware_pipeline.cli.running import client_options, verb
from firmware_pipeline.esp.chips import format_revision
from firmware_pipeline.inspection import ChipReport, ReferrerReport, SignatureReport, inspect
from firmware_pipeline.opening import locate

ALGORITHMS = {-16: "sha256", -44: "sha512"}


@verb
def command(reference: Ref, login: Login, as_json: AsJson = False) -> None:
    """Show everything an artifact holds. Digests are checked, signatures only listed: `verify` judges them."""
    where = locate(reference)
    found = inspect(where, options=client_options(login, where))
    if as_json:
        typer.echo(json.dumps(found.to_json(), sort_keys=True))
        return
    typer.echo(found.reference)
    for key, value in sorted(found.annotations.items()):
        typer.echo(f"  {key}: {value}")
    for line in _attached(found.signatures, found.referrers):
        typer.echo(f"  {line}")
    for chip in found.chips:
        for line in _chip(chip):
            typer.echo(line)


def _chip(chip: ChipReport) -> Iterator[str]:
    sequence = chip.release.sequence if chip.release else "none"
    yield f"  {chip.chip}: {chip.project_name} {chip.version}, release sequence {sequence}"
    highest = f" to {format_revision(chip.max_revision)}" if chip.max_revision is not None else " or later"
    features = "".join(f", {feature}" for feature in chip.platform.get("os.features", ()))
    yield (
        f"    needs {chip.config.flash.size} flash, chip revision {format_revision(chip.min_revision)}{highest}"
        f"{features}; secure version {chip.secure_version}"
    )
    yield f"    manifest {chip.manifest}"
    yield f"    config   {chip.config_digest}"
    for line in _attached(chip.signatures, chip.referrers):
        yield f"    {line}"
    for image in chip.images:
        marks = f"{', to be encrypted' if image.encrypt else ''}{'' if image.required else ', optional'}"
        yield f"    {image.offset:#010x} {image.size:>9} {image.role.value:<16} {image.digest}{marks}"
        for entry in image.measurements:
            yield f"      measurement {entry.scheme} {ALGORITHMS[entry.alg]}: {entry.value}"
    for row in chip.config.partitions:
        kind = row.to_partition().type_name
        yield f"    partition {row.name:<16} {kind:<5} {row.offset:#010x} {row.size:>9}"
    if chip.config.secure_boot:
        yield f"    secure boot v2, keys {', '.join(chip.config.secure_boot.key_digests)}"


def _attached(signatures: tuple[SignatureReport, ...], referrers: tuple[ReferrerReport, ...]) -> Iterator[str]:
    yield f"signatures: {len(signatures)} (not judged)"
    for signature in signatures:
        if signature.key:
            yield f"  claims key {signature.key}"
    for referrer in referrers:
        yield f"attached: {referrer.artifact_type} {referrer.size} bytes {referrer.digest}"
