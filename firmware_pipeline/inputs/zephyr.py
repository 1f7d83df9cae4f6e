# SPDX-License-Identifier: Apache-2.0
"""Input: a Zephyr build folder for an ESP chip, with sysbuild or without, with MCUboot or without.

| build | files |
|---|---|
| sysbuild (`domains.yaml`) with MCUboot | `mcuboot/zephyr/zephyr.bin` where the ROM looks, `<app>/zephyr/zephyr.signed.bin` |
| with MCUboot, application alone | `zephyr/zephyr.signed.bin` |
| without MCUboot (simple boot) | `zephyr/zephyr.bin`, an ESP image that the ROM itself starts |

`zephyr/.config` says chip, boot loader and slot size, `zephyr/runners.yaml` the application's offset and flash settings
(the esp32 runner's arguments). The application is named after its sysbuild domain, else by the user.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import Chip, by_target
from firmware_pipeline.inputs.claims import Claims, Overrides, RawFile
from firmware_pipeline.inputs.files import read_inside
from firmware_pipeline.inputs.foreign import Foreign, flash_offset, malformed, read_text, read_yaml, validate
from firmware_pipeline.inputs.reconcile import reconcile
from firmware_pipeline.plan import BuildPlan, Role

DOMAINS, CONFIG, RUNNERS = "domains.yaml", "zephyr/.config", "zephyr/runners.yaml"
MCUBOOT = "mcuboot"
_SETTING = re.compile(r"^CONFIG_([A-Z0-9_]+)=(.*)$", re.MULTILINE)
_DomainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]


class _Domain(Foreign):
    name: _DomainName


class _Domains(Foreign):
    default: _DomainName
    domains: Annotated[list[_Domain], Field(min_length=1, max_length=16)]


class _RunnerArgs(Foreign):
    esp32: tuple[str, ...] = Field(default=(), strict=False)


class _Runners(Foreign):
    args: _RunnerArgs = _RunnerArgs()


@dataclass(frozen=True, slots=True)
class _Build:
    """One Zephyr build: its folder relative to the root ("" or "app/"), Kconfig values, the runner's arguments."""

    root: Path
    at: str
    config: dict[str, str]
    runner: dict[str, str]

    @classmethod
    def read(cls, root: Path, at: str) -> "_Build":
        config = dict(_SETTING.findall(read_inside(root, at + CONFIG).decode(errors="replace")))
        path = root / at / RUNNERS
        args = validate(_Runners, read_yaml(path), path).args.esp32 if path.exists() else []
        words = [argument.removeprefix("--esp-").partition("=") for argument in args]
        return cls(root, at, {k: v.strip('"') for k, v in config.items()}, {k: v for k, _, v in words})

    @property
    def chip(self) -> Chip:
        name = self.config.get("SOC_SERIES") or self.config.get("SOC")
        if not name:
            raise malformed(self.root / self.at / CONFIG, "CONFIG_SOC_SERIES is missing")
        return by_target(name)

    def file(self, offset: int, name: str, role: Role) -> RawFile:
        return RawFile(offset, Path(name).name, read_inside(self.root, f"{self.at}zephyr/{name}"), role)


class ZephyrInput:
    """Recognises and loads a Zephyr build."""

    name = "zephyr"

    def detect(self, path: Path) -> bool:
        """Whether `path` is a build folder of west."""
        return path.is_dir() and ((path / DOMAINS).is_file() or (path / CONFIG).is_file())

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Reduce the build to a plan.

        Raises:
            PipelineError: Input*, App*, UnknownChip, and whatever the parsers of `esp` refuse.
        """
        name: str | None = None
        domains: list[str] = []
        if (path / DOMAINS).exists():
            found = validate(_Domains, read_yaml(path / DOMAINS), path / DOMAINS)
            name, domains = found.default, [domain.name for domain in found.domains]
        others = set(domains) - {MCUBOOT, name}
        if others or (domains and name not in domains) or name == MCUBOOT:
            raise PipelineError(
                Reason.AppAmbiguous,
                f"The build has the domains {', '.join(sorted(domains))}; one artifact updates one application.",
                "Name the files with their offsets instead.",
            )
        app = _Build.read(path, f"{name}/" if name else "")
        chip = app.chip
        bare = app.config.get("BOOTLOADER_MCUBOOT") != "y"
        if bare:
            files = [app.file(chip.bootloader_offset, "zephyr.bin", Role.APP)]
        else:
            files = [app.file(_offset(app), "zephyr.signed.bin", Role.APP)]
        if MCUBOOT in domains:
            boot = _Build.read(path, f"{MCUBOOT}/")
            if boot.chip != chip or bare:
                raise PipelineError(
                    Reason.InputDisagrees,
                    f"The domains {MCUBOOT} (for {boot.chip.target}) and {name} (for {chip.target}, "
                    f"{'without' if bare else 'with'} MCUboot) do not belong together.",
                    "Build both again with `west build --sysbuild`.",
                )
            files.append(boot.file(chip.bootloader_offset, "zephyr.bin", Role.BOOTLOADER))
        size = flash_offset(app.config.get("FLASH_LOAD_SIZE", "0"), path / app.at / CONFIG)
        claims = Claims(
            source="the Zephyr build",
            chip=chip.target,
            flash_mode=app.runner.get("flash-mode") or app.config.get("ESPTOOLPY_FLASHMODE"),
            flash_freq=app.runner.get("flash-freq") or app.config.get("ESPTOOLPY_FLASHFREQ"),
            flash_size=app.runner.get("flash-size") or app.config.get("ESPTOOLPY_FLASHSIZE"),
            project_name=name,
            version=_version(path / app.at),
            slot_size=size or None,
            bare_application=bare,
            framework="zephyr",
        )
        return reconcile(files, claims, overrides or Overrides())


def _offset(app: _Build) -> int:
    text = app.runner.get("app-address")
    if text is None:
        raise PipelineError(
            Reason.InputMissing,
            f"{app.root / app.at / RUNNERS} does not say where the application goes (--esp-app-address).",
            "Build again with west, or name the files with their offsets.",
        )
    return flash_offset(text, app.root / app.at / RUNNERS)


def _version(folder: Path) -> str | None:
    """APP_VERSION_EXTENDED_STRING of the application's VERSION file, which not every application has."""
    header = folder / "zephyr/include/generated/zephyr/app_version.h"
    if not header.exists():
        return None
    found = re.search(r'^#define APP_VERSION_STRING\s+"([^"]+)"', read_text(header), re.MULTILINE)
    return found[1] if found else None
