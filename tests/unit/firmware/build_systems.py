# SPDX-License-Identifier: Apache-2.0
"""Small true builds as PlatformIO, Arduino, Zephyr and esptool's argument files leave them."""

import json
from pathlib import Path

from firmware_pipeline.esp.builder import assemble, build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.mcuboot import build_mcuboot
from firmware_pipeline.esp.partitions import build_table
from tests.unit.firmware.builds import PAYLOAD


def write_all(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def app(chip: str, name: str = "porch-sensor") -> bytes:
    return build_app(chip, name, "2.1.0", payload_size=PAYLOAD)


def write_platformio(folder: Path, chip: str = "esp32", *, idedata: bool = True) -> Path:
    """`.pio/build/<env>`, as `pio run` and `pio run -t idedata` leave it on another machine."""
    offset = hex(by_target(chip).bootloader_offset)
    far = "/home/someone/porch/.pio/build/board"
    package = "/home/someone/.platformio/packages/framework-arduinoespressif32/tools/partitions"
    images = [
        {"offset": offset, "path": f"{far}/bootloader.bin"},
        {"offset": "0x8000", "path": f"{far}/partitions.bin"},
        {"offset": "0xd000", "path": f"{package}/boot_app0.bin"},
    ]
    data = {
        "env_name": "board", "prog_path": f"{far}/firmware.elf", "defines": ["ESP32"],
        "extra": {"flash_images": images, "application_offset": "0x20000"},
    }  # fmt: skip
    write_all(
        folder,
        {
            "bootloader.bin": build_bootloader(chip, payload_size=8192),
            "partitions.bin": build_table(default_partitions()),
            "firmware.bin": app(chip),
            "firmware.elf": b"\x7fELF",
        },
    )
    return write_all(folder, {"idedata.json": json.dumps(data)}) if idedata else folder


def write_arduino(folder: Path, chip: str = "esp32s3", *, args: bool = True, name: str = "porch-sensor") -> Path:
    """The export folder of `Porch.ino`."""
    at = hex(by_target(chip).bootloader_offset)
    write_all(
        folder,
        {
            "Porch.ino.bootloader.bin": build_bootloader(chip, payload_size=8192),
            "Porch.ino.partitions.bin": build_table(default_partitions()),
            "Porch.ino.bin": app(chip, name),
            "Porch.ino.merged.bin": b"\xff" * 64,
            "boot_app0.bin": b"\xff" * 8192,
        },
    )
    lines = [
        "--flash-mode dio --flash-freq 80m --flash-size 4MB",
        f"{at} Porch.ino.bootloader.bin",
        "0x8000 Porch.ino.partitions.bin",
        "0xd000 boot_app0.bin",
        "0x20000 Porch.ino.bin",
    ]
    return write_all(folder, {"flash_args": "\n".join(lines)}) if args else folder


def write_flash_args(folder: Path, text: str | None = None, chip: str = "esp32c3") -> Path:
    """A folder with an application, a table and `flash_args`."""
    default = "--chip esp32c3 --flash_mode dio\n0x8000 t/table.bin 0x20000 'app image.bin'\n"
    return write_all(
        folder,
        {
            "t/table.bin": build_table(default_partitions()),
            "app image.bin": app(chip),
            "flash_args": default if text is None else text,
        },
    )


def mcuboot_app(chip: str = "esp32c3", *, counter: int | None = 1) -> bytes:
    return build_mcuboot(by_target(chip), b"zephyr" * 4096, (2, 1, 0, 0), security_counter=counter)


def zephyr_config(chip: str, **more: str) -> str:
    values = {"SOC_SERIES": f'"{chip}"', "ESPTOOLPY_FLASHSIZE": '"4MB"', "ESPTOOLPY_FLASHMODE": '"dio"'} | more
    return "# Zephyr\n" + "".join(f"CONFIG_{key}={value}\n" for key, value in values.items())


def runners(*arguments: str) -> str:
    return "flash-runner: esp32\nargs:\n  esp32:\n" + "".join(f"    - {argument}\n" for argument in arguments)


def write_zephyr_sysbuild(folder: Path, chip: str = "esp32c3") -> Path:
    """`west build --sysbuild` with MCUboot."""
    domains = (
        "default: porch\nbuild_dir: /home/someone/build\ndomains:\n"
        "  - name: porch\n    build_dir: /home/someone/build/porch\n"
        "  - name: mcuboot\n    build_dir: /home/someone/build/mcuboot\nflash_order:\n  - mcuboot\n  - porch\n"
    )
    return write_all(
        folder,
        {
            "domains.yaml": domains,
            "porch/zephyr/.config": zephyr_config(chip, BOOTLOADER_MCUBOOT="y", FLASH_LOAD_SIZE="0x100000"),
            "porch/zephyr/runners.yaml": runners("--esp-app-address=0x20000", "--esp-flash-size=4MB"),
            "porch/zephyr/zephyr.signed.bin": mcuboot_app(chip),
            "porch/zephyr/zephyr.bin": b"not signed",
            "mcuboot/zephyr/.config": zephyr_config(chip),
            "mcuboot/zephyr/zephyr.bin": build_bootloader(chip, payload_size=8192),
        },
    )


def write_zephyr_simple(folder: Path, chip: str = "esp32") -> Path:
    """`west build` without boot loader: the ROM starts the application."""
    target = by_target(chip)
    image = assemble(target, [(target.iram[0] + 0x4000, b"zephyr" * 2048)], entry=target.iram[0] + 0x4000)
    return write_all(folder, {"zephyr/.config": zephyr_config(chip, ESP_SIMPLE_BOOT="y"), "zephyr/zephyr.bin": image})
