# SPDX-License-Identifier: Apache-2.0
"""What an application image says of itself, whatever its format, held against claims and the user's word. Pure.

| format | name and version | secure version | chip revisions | measured |
|---|---|---|---|---|
| ESP image with descriptor | the descriptor | the descriptor | the header | scheme esp-image |
| ESP image without (Zephyr without MCUboot: the ROM starts it) | claimed or given | 0 | the header | scheme esp-image |
| MCUboot image | claimed or given; its header | its security counter | the bootloader's header | scheme mcuboot |

Where a format has a field, an empty one is refused unless the user gives a value (AppNameMissing, AppVersionMissing), and
a claim must agree with it (InputDisagrees). Where it has none, the claim counts.
"""

from dataclasses import dataclass

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import Chip
from firmware_pipeline.esp.image import ImageInfo
from firmware_pipeline.esp.mcuboot import McubootInfo
from firmware_pipeline.esp.measurement import Measurement, measure_image, measure_mcuboot
from firmware_pipeline.esp.signature import find_signatures
from firmware_pipeline.inputs.claims import Claims, Overrides, RawFile, compare, disagrees
from firmware_pipeline.plan import AppInfo, SecureBoot

_DESCRIPTOR_TEXT = 31


@dataclass(frozen=True, slots=True)
class Application:
    """The outcome: what goes into the plan, and warnings for people."""

    info: AppInfo
    min_rev: int
    max_rev: int | None
    measurements: tuple[Measurement, ...]
    secure_boot: SecureBoot | None
    warnings: tuple[str, ...]


def esp_application(file: RawFile, image: ImageInfo, claims: Claims, overrides: Overrides) -> Application:
    """Judge an ESP image.

    Raises:
        PipelineError: InputDisagrees, AppNameMissing, AppVersionMissing, SecureBootSignatureMalformed.
    """
    app = image.app
    name, name_warnings = _text(
        "project name", app.project_name if app else None, claims.project_name, overrides.name, claims.source
    )
    version, version_warnings = _text(
        "version", app.version if app else None, claims.version, overrides.version, claims.source
    )
    secure_version = app.secure_version if app else 0
    compare("secure version", claims.secure_version, secure_version, claims.source)
    compare("minimum chip revision", claims.min_rev, image.min_rev, claims.source)
    if image.max_rev is not None:
        compare("maximum chip revision", claims.max_rev, image.max_rev, claims.source)
    signatures = find_signatures(file.data, image.image_length)
    return Application(
        AppInfo(
            project_name=name,
            version=version,
            secure_version=secure_version,
            idf_version=(app.idf_version if app else None) or None,
            elf_sha256=app.elf_sha256.hex() if app and any(app.elf_sha256) else None,
        ),
        image.min_rev,
        image.max_rev,
        measure_image(file.data, image),
        SecureBoot(key_digests=tuple(s.key_digest.hex() for s in signatures)) if signatures else None,
        (*name_warnings, *version_warnings, *_tail(file, image, signed=bool(signatures))),
    )


def mcuboot_application(
    file: RawFile, image: McubootInfo, chip: Chip, bootloader: ImageInfo | None, claims: Claims, overrides: Overrides
) -> Application:
    """Judge an MCUboot image that is to run on `chip`.

    Args:
        bootloader: MCUboot itself, an ESP image whose header limits the chip revisions; None if it is not part of the build.

    Raises:
        PipelineError: InputDisagrees, AppNameMissing.
    """
    if not image.runs_on(chip):
        raise disagrees(
            f"{file.name} is loaded to addresses that are not {chip.display}'s RAM: it was built for another chip."
        )
    name, name_warnings = _text("project name", None, claims.project_name, overrides.name, claims.source)
    version, version_warnings = _text("version", image.version, claims.version, overrides.version, claims.source)
    compare("secure version", claims.secure_version, image.security_counter, claims.source)
    unsigned = f"{file.name} carries no MCUboot signature; a bootloader that checks signatures refuses it."
    return Application(
        AppInfo(project_name=name, version=version, secure_version=image.security_counter),
        bootloader.min_rev if bootloader else 0,
        bootloader.max_rev if bootloader else None,
        measure_mcuboot(file.data, image),
        None,
        (*name_warnings, *version_warnings, *(() if image.signed else (unsigned,))),
    )


def _text(
    what: str, found: str | None, claimed: str | None, given: str | None, source: str
) -> tuple[str, tuple[str, ...]]:
    """The value and a warning; `found` None = the format has no such field."""
    reason, option = {
        "project name": (Reason.AppNameMissing, "--name"),
        "version": (Reason.AppVersionMissing, "--app-version"),
    }[what]
    if claimed is not None and found:
        compare(what, claimed.encode()[:_DESCRIPTOR_TEXT].decode(errors="ignore"), found, source)
    value = given or (claimed if found is None else found)
    if not value:
        raise PipelineError(
            reason,
            f"The application image holds no {what}; an artifact without one could not be told apart.",
            f"Set it in the build, or give it with {option}.",
        )
    if given and found and given != found:
        return value, (f"The artifact's {what} is {given!r}, but the device will report {found!r}.",)
    return value, ()


def _tail(file: RawFile, image: ImageInfo, *, signed: bool) -> tuple[str, ...]:
    warnings: list[str] = []
    if not image.fills_pages:
        rest = -image.image_length % image.mmu_page_size
        warnings.append(
            f"{file.name} leaves {rest} bytes of its last {image.mmu_page_size // 1024} KiB page mapped but unmeasured; "
            "build with padding to the MMU page to close the gap."
        )
    if not signed and file.data[image.image_length :].strip(b"\xff"):
        warnings.append(
            f"{file.name} has {len(file.data) - image.image_length} bytes behind the image that nothing measures."
        )
    return tuple(warnings)
