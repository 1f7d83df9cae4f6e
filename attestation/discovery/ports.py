# SPDX-License-Identifier: Apache-2.0
"""Serial ports of this machine, as udev would describe them.

Rules (tests name them):

1. A port is a character device, or a link to one; whatever else a glob matches is no port. Each port appears once.
2. Its id is its path in sysfs. A pseudo-terminal has none there: then it is ``/virtual/`` and the link's name, and the
   node is the link itself, which stays the same when a new terminal is put behind it.
3. `stamp` changes when other hardware may be behind the port: plugged in again, or replaced.
4. What cannot be read is not taken for what is not there: it is named in `unreadable`. A directory that does not exist
   (yet) has no ports.
5. A port that is gone is listed `grace` longer, and as long as something is unreadable: a chip that starts anew takes a
   USB port of its own with it for a moment.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from attestation.discovery.listing import FLASHJOB_USB_SERIAL, UDEV_DEVNODE, UDEV_DEVPATH

_PSEUDO: Final = "/dev/pts/"
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENODEV, errno.ENXIO})


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


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the directories has shown.

    Args:
        ports: by id.
        unreadable: what could not be read, and why; in words.
    """

    ports: tuple[SerialPort, ...] = ()
    unreadable: tuple[str, ...] = ()


@dataclass(slots=True)
class Kept:
    """Ports that are listed for one Configuration (rule 5). No I/O."""

    _seen: dict[str, tuple[SerialPort, float]] = field(default_factory=dict)

    def after(self, found: Found, *, now: float, grace: float) -> tuple[SerialPort, ...]:
        """What is to be listed now, by id.

        Args:
            found: by the last look.
            now: when that was, seconds of a steady clock.
            grace: how much longer a port is listed that is gone, seconds.
        """
        if found.unreadable:
            self._seen = {devpath: (port, now) for devpath, (port, _) in self._seen.items()}
        self._seen |= {port.devpath: (port, now) for port in found.ports}
        self._seen = {
            devpath: (port, at) for devpath, (port, at) in self._seen.items() if at == now or now - at < grace
        }
        return tuple(self._seen[devpath][0] for devpath in sorted(self._seen))


def find_ports(globs: Iterable[str], sysfs: Path = Path("/sys")) -> Found:
    """All ports that the globs match now (rules 1 to 4). Reads directories only: it never opens a port.

    Args:
        globs: absolute patterns.
        sysfs: where sysfs is mounted.
    """
    found: dict[str, SerialPort] = {}
    unreadable: dict[str, None] = {}
    paths: set[str] = set()
    for pattern in globs:
        paths.update(glob.glob(pattern))
        unreadable.update(dict.fromkeys(_passed_over(pattern)))
    for path in sorted(paths):
        try:
            port = _port(Path(path), sysfs)
        except OSError as error:
            if error.errno not in _NOT_THERE:  # else: gone since, or a link into nothing
                unreadable[str(error)] = None
            continue
        if port is not None:
            found.setdefault(port.devpath, port)
    return Found(tuple(found[devpath] for devpath in sorted(found)), tuple(unreadable))


def _passed_over(pattern: str) -> Iterator[str]:
    """Why what the pattern means cannot be told, where `glob` says no more than that there is nothing."""
    directory, name = os.path.split(pattern)
    directories = [directory]
    if glob.has_magic(directory):
        yield from _passed_over(directory)
        directories = glob.glob(directory)
    for one in directories:
        try:
            if glob.has_magic(name):
                os.scandir(one).close()
            else:
                os.lstat(os.path.join(one, name))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                yield str(error)


def _port(path: Path, sysfs: Path) -> SerialPort | None:
    """The port at the path, or None: it is something else. Raises OSError."""
    node = os.path.realpath(path)
    status = os.stat(node)
    own = os.lstat(path)
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
