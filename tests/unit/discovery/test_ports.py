# SPDX-License-Identifier: Apache-2.0
"""Serial ports as udev describes them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.discovery.ports import Found, Kept, SerialPort, find_ports


@pytest.fixture
def terminal() -> Iterator[str]:
    master, slave = os.openpty()
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


def test_rule_2_a_pseudo_terminal_is_its_link(tmp_path: Path, terminal: str) -> None:
    (tmp_path / "porch-1").symlink_to(terminal)
    (port,) = find_ports([str(tmp_path / "*")]).ports
    assert (port.devpath, port.devnode, port.host_node) == ("/virtual/porch-1", str(tmp_path / "porch-1"), terminal)
    assert port.properties == {"UDEV_DEVNODE": str(tmp_path / "porch-1"), "UDEV_DEVPATH": "/virtual/porch-1"}


def test_rule_1_each_port_once_and_nothing_else(tmp_path: Path, terminal: str) -> None:
    (tmp_path / "a").symlink_to(terminal)
    (tmp_path / "file").write_text("")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "null").symlink_to("/dev/null")  # a character device, but no terminal
    (tmp_path / "loop").symlink_to("loop")
    found = find_ports([f"{tmp_path}/*", f"{tmp_path}/a", "/not/there/*"], sysfs=tmp_path / "no-sysfs")
    assert [port.devpath for port in found.ports] == ["/virtual/a"]
    assert (found.unreadable, find_ports([])) == ((), Found())


def test_rule_3_another_terminal_is_another_stamp(tmp_path: Path, terminal: str) -> None:
    link = tmp_path / "a"
    link.symlink_to(terminal)
    (before,) = find_ports([str(link)]).ports
    assert find_ports([str(link)]).ports == (before,)
    master, slave = os.openpty()
    try:
        link.unlink()
        link.symlink_to(os.ttyname(slave))
        (after,) = find_ports([str(link)]).ports
        assert after.properties == before.properties
        assert after.stamp != before.stamp
    finally:
        os.close(slave)
        os.close(master)


def test_rule_2_a_real_port_is_its_path_in_sysfs(tmp_path: Path) -> None:
    """/dev/null stands for the node; the tree is what Linux makes for a USB adapter."""
    usb = tmp_path / "sys" / "devices" / "pci0" / "usb1" / "1-1"
    tty = usb / "1-1:1.0" / "ttyUSB0" / "tty" / "null"
    tty.mkdir(parents=True)
    (usb / "idVendor").write_text("10c4\n")
    (usb / "serial").write_text("A1B2C3\n")
    (tmp_path / "sys" / "class" / "tty").mkdir(parents=True)
    (tmp_path / "sys" / "class" / "tty" / "null").symlink_to(tty)
    (tmp_path / "by-id").symlink_to("/dev/null")
    (port,) = find_ports([str(tmp_path / "by-id")], sysfs=tmp_path / "sys").ports
    assert port.properties == {
        "UDEV_DEVNODE": "/dev/null",
        "UDEV_DEVPATH": "/devices/pci0/usb1/1-1/1-1:1.0/ttyUSB0/tty/null",
        "FLASHJOB_USB_SERIAL": "A1B2C3",
    }
    (usb / "serial").unlink()
    (port,) = find_ports([str(tmp_path / "by-id")], sysfs=tmp_path / "sys").ports
    assert "FLASHJOB_USB_SERIAL" not in port.properties


@pytest.mark.parametrize("pattern", ["closed/*", "closed/*/*", "[c]losed/*", "closed/a", "far"])
def test_rule_4_what_cannot_be_read_is_not_empty(
    tmp_path: Path, terminal: str, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Root may read everything: the system call says no in its place."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a").symlink_to(terminal)
    (tmp_path / "far").symlink_to(tmp_path / "closed" / "a")
    refused = PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    def closed(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any = ".", *rest: Any, **more: Any) -> Any:
            if str(path).startswith(terminal if pattern == "far" else f"{tmp_path}/closed"):
                raise refused
            return call(path, *rest, **more)

        return called

    monkeypatch.setattr(os, "scandir", closed(os.scandir))
    monkeypatch.setattr(os, "stat", closed(os.stat))
    monkeypatch.setattr(os, "lstat", closed(os.lstat))
    found = find_ports([f"{tmp_path}/{pattern}"])
    assert found == Found((), (str(refused),))


def test_rule_5_a_port_that_is_gone_for_a_moment_stays() -> None:
    one, two = SerialPort("/1", "/dev/1", "/dev/1"), SerialPort("/2", "/dev/2", "/dev/2")
    kept = Kept()
    assert kept.after(Found((two, one)), now=0, grace=3) == (one, two)
    assert kept.after(Found((two,)), now=2, grace=3) == (one, two)
    again = replace(one, stamp=(1,))
    assert kept.after(Found((again, two)), now=2.9, grace=3) == (again, two)
    assert kept.after(Found((two,)), now=5.8, grace=3) == (again, two)
    assert kept.after(Found((two,)), now=5.9, grace=3) == (two,)
    assert kept.after(Found((), ("closed",)), now=100, grace=3) == (two,), "nobody knows whether it is gone"
    assert kept.after(Found(), now=102, grace=3) == (two,)
    assert kept.after(Found(), now=103, grace=3) == ()


@given(st.lists(st.tuples(st.sets(st.integers(0, 3)), st.booleans(), st.floats(0, 5))))
def test_rule_5_what_is_there_is_listed_and_nothing_is_listed_for_ever(
    looks: list[tuple[set[int], bool, float]],
) -> None:
    kept, now = Kept(), 0.0
    last: dict[str, float] = {}
    for numbers, blind, pause in looks:
        now += pause
        there = tuple(SerialPort(f"/{number}", "", "") for number in sorted(numbers))
        listed = {port.devpath for port in kept.after(Found(there, ("x",) if blind else ()), now=now, grace=3)}
        last |= {port.devpath: now for port in there}
        assert {port.devpath for port in there} <= listed <= set(last)
        if blind:
            last |= dict.fromkeys(listed, now)
        assert all(now - last[devpath] < 3 for devpath in listed)
