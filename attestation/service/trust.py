# SPDX-License-Identifier: Apache-2.0
"""What the trust directory says about a device, as of now, without reading and parsing files that did not change.

Rules (tests name them):

1. A file counts as unchanged if inode, times and size are those it was read with. Every question asks the file system.
2. A device or policy that is not there is told from a directory that is not there: the latter is ``store.unavailable``.
3. Nothing is remembered that could not be read; the memory is bounded. Paths are made without pathlib, which interns
   each part: ids that nobody enrolled would have the interpreter's table of names copied again and again.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

from attestation.anchors import DeviceAnchor, Floors
from attestation.clones import Sighting
from attestation.directory import TrustDirectory
from attestation.errors import Code, Reject
from attestation.policy import AttestationPolicySpec, Measurement

V = TypeVar("V")
_Stamp: TypeAlias = tuple[int, int, int, int]


@dataclass(slots=True)
class Enrolled:
    """One device. ``sightings`` may run ahead of the file: a boot seen again is not written again."""

    anchor: DeviceAnchor
    floors: Floors
    confirmed: frozenset[Measurement]
    sightings: Sequence[Sighting]


class _Files(Generic[V]):
    def __init__(self, path: Callable[[str], str], read: Callable[[str], V | None], capacity: int) -> None:
        self._path, self._read, self._capacity = path, read, capacity
        self._known: OrderedDict[str, tuple[_Stamp, V, str]] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, name: str) -> V | None:
        found = self._known.get(name)
        return found[1] if found else None

    def get(self, name: str) -> V | None:
        known = self._known.get(name)
        path = known[2] if known else self._path(name)
        stamp = _stamp(path)
        if stamp is None:
            return None
        if known is not None and known[0] == stamp:
            with self._lock:
                if name in self._known:
                    self._known.move_to_end(name)
            return known[1]
        value = self._read(name)
        if value is None:
            return None
        with self._lock:
            self._known[name] = (stamp, value, path)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return value


class LiveTrust:
    """A trust directory for many questions; for threads of one process.

    Args:
        store: the directory.
        devices, policies: most of each that are held in memory. A device takes about 4 KiB, a policy up to 64 KiB.
    """

    def __init__(self, store: TrustDirectory, *, devices: int = 10_000, policies: int = 256) -> None:
        self.store = store
        self._folder: Final = str(store.device_path(b"").parent)
        self._devices = _Files(self._device_path, self._read_device, devices)
        self._policies = _Files(lambda name: str(store.policy_path(name)), store.policy, policies)

    def device(self, ueid: bytes) -> Enrolled | None:
        """The device, or None if none with this id is enrolled that could attest. Raises Reject."""
        return self._devices.get(ueid.hex())

    def known(self, ueid: bytes) -> Enrolled | None:
        """The device as last read, without a look at the disk; None if it was never asked for."""
        return self._devices.peek(ueid.hex())

    def known_policy(self, name: str) -> AttestationPolicySpec | None:
        """As ``known``."""
        return self._policies.peek(name)

    def policy(self, name: str) -> AttestationPolicySpec | None:
        """The policy, or None. Raises Reject."""
        return self._policies.get(name)

    def check(self) -> None:
        """Whether devices and policies can be looked up at all. Raises Reject."""
        TrustDirectory(self.store.root)
        for folder in ("devices", "policies"):
            try:
                with os.scandir(self.store.root / folder) as entries:
                    next(entries, None)
            except OSError as error:
                raise _unavailable(self.store.root / folder, error) from error

    def _device_path(self, name: str) -> str:
        return f"{self._folder}/{self.store.device_file(bytes.fromhex(name))}"

    def _read_device(self, name: str) -> Enrolled | None:
        file = self.store.file(bytes.fromhex(name))
        anchor = file.anchor if file else None
        if file is None or anchor is None:
            return None
        return Enrolled(anchor, file.floors, file.confirmed, file.sightings)


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        _check_folder(os.path.dirname(path))
        return None
    except OSError as error:
        raise _unavailable(path, error) from error
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _check_folder(folder: str) -> None:
    """Rule 2."""
    try:
        mode = os.stat(folder).st_mode
    except OSError as error:
        raise _unavailable(folder, error) from error
    if not stat.S_ISDIR(mode):
        raise Reject(Code.STORE_UNAVAILABLE, f"{folder} is not a directory")


def _unavailable(path: Path | str, error: OSError) -> Reject:
    return Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}")
