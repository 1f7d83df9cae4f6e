# SPDX-License-Identifier: Apache-2.0
"""Serial ports of this machine, as udev would describe them.

Rules (tests name them):

1. A port is a character device, or a link to one; whatever else a glob matches is no port. Each port appears once.
2. Its id is its path in sysfs. A pseudo-terminal has none there: then it is ``/virtual/`` and the link's name, and the
   node is the link itself, which stays the same when a new terminal is put behind it.
3. `stamp` changes when other hardware may be behind the port: plugged in again, or replaced.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.discovery.listing import FLASHJOB_USB_SERIAL, UDEV_DEVNODE, UDEV_DEVPATH

_PSEUDO: Final = "/dev/pts/"


@dataclass(frozen=True, slots=True)
class SerialPort:
    """One port.

    Args:
        devpath: its id (rule 2).
        devnode: the path to open.
        host_node: the device node itself, every link followed.
        usb_serial: serial number of its USB adapter; empty if there is none.
        stamp: rule 3.
    """

    devpath: str
    devnode: str
    host_node: str
    usb_serial: str = ""
    stamp: tuple[int, ...] = ()

    @property
    def properties(self) -> Mapping[str, str]:
        """As a port Instance carries them."""
        found = {UDEV_DEVNODE: self.devnode, UDEV_DEVPATH: self.devpath}
        return {**found, FLASHJOB_USB_SERIAL: self.usb_serial} if self.usb_serial else found


def find_ports(globs: Iterable[str], sysfs: Path = Path("/sys")) -> tuple[SerialPort, ...]:
    """All ports that the globs match now, by id (rules 1 to 3). Reads directories only: it never opens a port.

    Args:
        globs: absolute patterns.
        sysfs: where sysfs is mounted.
    """
    found: dict[str, SerialPort] = {}
    for path in sorted({path for pattern in globs for path in glob.glob(pattern)}):
        port = _port(Path(path), sysfs)
        if port is not None:
            found.setdefault(port.devpath, port)
    return tuple(found[devpath] for devpath in sorted(found))


def _port(path: Path, sysfs: Path) -> SerialPort | None:
    try:
        node = os.path.realpath(path)
        status = os.stat(node)
        own = os.lstat(path)
    except OSError:  # gone since the glob was read, or a link into nothing: no port
        return None
    if not stat.S_ISCHR(status.st_mode):
        return None
    stamp = (own.st_ino, own.st_ctime_ns, status.st_rdev)
    if node.startswith(_PSEUDO):
        name = path.name if str(path) != node else f"pts-{path.name}"
        return SerialPort(f"/virtual/{name}", str(path), node, stamp=stamp)
    entry = sysfs / "class" / "tty" / Path(node).name
    if not entry.exists():
        return None
    device = entry.resolve()
    return SerialPort("/" + str(device.relative_to(sysfs.resolve())), node, node, _usb_serial(device, sysfs), stamp)


def _usb_serial(device: Path, sysfs: Path) -> str:
    """The serial number of the nearest USB device above, as its maker gave it; at most 128 characters."""
    for parent in device.parents:
        if parent == sysfs.resolve():
            break
        if (parent / "idVendor").is_file():
            try:
                return (parent / "serial").read_text(encoding="utf-8").strip()[:128]
            except (OSError, UnicodeDecodeError):
                return ""
    return ""
