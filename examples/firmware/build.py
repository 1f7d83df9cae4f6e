# SPDX-License-Identifier: Apache-2.0
"""Build one application for the ESP32-C3 from C, without ESP-IDF: `python examples/firmware/build.py APP VERSION FOLDER`.

FOLDER becomes what `idf.py build` would leave: application, bootloader and partition table as the chip boots them,
`flasher_args.json` and `project_description.json`. The same sources give the same bytes, in any folder, on any day.
Needs Debian's gcc-riscv64-unknown-elf and esptool, which both run as programs. Exit codes: 0 built; 1 the compiler or
esptool refused, with its own words; 2 wrong usage; 69 a program is missing, with the command that installs it.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

try:
    from firmware_pipeline.esp.builder import default_partitions
    from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET, build_table
except ModuleNotFoundError as error:
    sys.stderr.write(f"build.py: {error}; run it with the Python of this repository: .venv/bin/python (make setup)\n")
    raise SystemExit(69) from None

HERE = Path(__file__).resolve().parent
APPS = ("thermostat", "doorlock")
COMPILER = "riscv64-unknown-elf-gcc"
UNAVAILABLE = 69
FLAGS = (
    "-march=rv32imc_zicsr", "-mabi=ilp32", "-Os", "-std=c11", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
    "-nostdlib", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,--build-id=none",
    "-Wl,--no-warn-rwx-segments", f"-ffile-prefix-map={HERE}=.",
)  # fmt: skip
FLASH = ("--flash-mode", "dio", "--flash-freq", "80m", "--flash-size", "4MB")
APP_DESC_ELF_SHA256 = 0xB0
MIN_REV, MAX_REV = 3, 199


def end(code: int, message: str) -> NoReturn:
    """Say why on standard error and leave."""
    sys.stderr.write(f"build.py: {message}\n")
    raise SystemExit(code)


def run(*command: str | Path) -> None:
    """Run a program; its words are shown only if it fails."""
    environment = {**os.environ, "LC_ALL": "C", "ESPTOOL_CFGFILE": os.devnull}
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        end(1, f"{' '.join(map(str, command[:4]))} ... ended with {done.returncode}:\n{done.stdout}")


def compile_image(name: str, sources: list[str], defines: dict[str, str | int], folder: Path, extra: list[str]) -> Path:
    """Compile `sources` with the linker script of their kind, and make the chip's image of the ELF file."""
    elf, image = folder / f"{name}.elf", folder / f"{name}.bin"
    script = HERE / ("bootloader.ld" if name == "bootloader" else "app.ld")
    macros = [f"-D{key}={value}" for key, value in defines.items()]
    run(COMPILER, *FLAGS, *macros, "-T", script, *(HERE / source for source in sources), "-o", elf)
    run(sys.executable, "-m", "esptool", "--chip", "esp32c3", "elf2image", *FLASH, *extra, "-o", image, elf)
    return image


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Build one application for the ESP32-C3.")
    parser.add_argument("app", choices=APPS)
    parser.add_argument("version", help="MAJOR.MINOR.PATCH")
    parser.add_argument("folder", type=Path, help="made if need be")
    parser.add_argument("--secure-version", type=int, default=0, help="anti-rollback counter that the image demands")
    wanted = parser.parse_args()
    if not (parts := re.fullmatch(r"(\d{1,3})\.(\d{1,2})\.(\d{1,2})", wanted.version)):
        parser.error(f"{wanted.version!r} is not MAJOR.MINOR.PATCH")
    if not 0 <= wanted.secure_version <= 16:
        parser.error("the ESP32-C3 counts secure versions from 0 to 16")
    if shutil.which(COMPILER) is None:
        end(UNAVAILABLE, f"{COMPILER} is not installed: apt-get install gcc-riscv64-unknown-elf")
    if importlib.util.find_spec("esptool") is None:
        end(UNAVAILABLE, "esptool is not installed: pip install 'flashjob[serial]'")
    folder: Path = wanted.folder
    folder.mkdir(parents=True, exist_ok=True)
    major, minor, patch = map(int, parts.groups())
    table = default_partitions()
    otadata, (first, second) = table.otadata, table.ota_slots
    assert otadata is not None, "the default table has OTA data"
    compile_image(
        wanted.app,
        ["start.S", "app.c", f"{wanted.app}.c"],
        {
            "APP_NAME": f'"{wanted.app}"',
            "APP_VERSION": f'"{wanted.version}"',
            "APP_RELEASE": major * 10000 + minor * 100 + patch,
            "SECURE_VERSION": wanted.secure_version,
        },
        folder,
        [
            "--elf-sha256-offset", hex(APP_DESC_ELF_SHA256), "--secure-pad-v2",
            "--min-rev-full", str(MIN_REV), "--max-rev-full", str(MAX_REV),
        ],
    )  # fmt: skip
    compile_image(
        "bootloader",
        ["start.S", "bootloader.c"],
        {"OTADATA_AT": hex(otadata.offset), "SLOT_0_AT": hex(first.offset), "SLOT_1_AT": hex(second.offset)},
        folder,
        [],
    )
    (folder / "partition-table.bin").write_bytes(build_table(table))
    files = {
        "bootloader": (0, "bootloader.bin"),
        "partition-table": (DEFAULT_TABLE_OFFSET, "partition-table.bin"),
        "app": (first.offset, f"{wanted.app}.bin"),
    }
    arguments = {
        "flash_settings": {"flash_mode": "dio", "flash_size": "4MB", "flash_freq": "80m"},
        "flash_files": {hex(offset): name for offset, name in files.values()},
        **{part: {"offset": hex(offset), "file": name, "encrypted": "false"} for part, (offset, name) in files.items()},
        "extra_esptool_args": {"chip": "esp32c3", "before": "default-reset", "after": "hard-reset", "stub": True},
    }
    description = {
        "project_name": wanted.app,
        "project_version": wanted.version,
        "target": "esp32c3",
        "app_bin": f"{wanted.app}.bin",
        "min_rev": str(MIN_REV),
        "max_rev": str(MAX_REV),
    }
    for name, content in (("flasher_args.json", arguments), ("project_description.json", description)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
