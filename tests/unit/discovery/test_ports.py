# SPDX-License-Identifier: Apache-2.0
"""Serial ports as udev describes them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.discovery.ports import find_ports


@pytest.fixture
def terminal() -> Iterator[str]:
    master, slave = os.openpty()
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


def test_rule_2_a_pseudo_terminal_is_its_link(tmp_path: Path, terminal: str) -> None:
    (tmp_path / "porch-1").symlink_to(terminal)
    (port,) = find_ports([str(tmp_path / "*")])
    assert (port.devpath, port.devnode, port.host_node) == ("/virtual/porch-1", str(tmp_path / "porch-1"), terminal)
    assert port.properties == {"UDEV_DEVNODE": str(tmp_path / "porch-1"), "UDEV_DEVPATH": "/virtual/porch-1"}


def test_rule_1_each_port_once_and_nothing_else(tmp_path: Path, terminal: str) -> None:
    (tmp_path / "a").symlink_to(terminal)
    (tmp_path / "file").write_text("")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "null").symlink_to("/dev/null")  # a character device, but no terminal
    found = find_ports([f"{tmp_path}/*", f"{tmp_path}/a"], sysfs=tmp_path / "no-sysfs")
    assert [port.devpath for port in found] == ["/virtual/a"]
    assert find_ports([]) == ()


def test_rule_3_another_terminal_is_another_stamp(tmp_path: Path, terminal: str) -> None:
    link = tmp_path / "a"
    link.symlink_to(terminal)
    (before,) = find_ports([str(link)])
    assert find_ports([str(link)]) == (before,)
    master, slave = os.openpty()
    try:
        link.unlink()
        link.symlink_to(os.ttyname(slave))
        (after,) = find_ports([str(link)])
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
    (port,) = find_ports([str(tmp_path / "by-id")], sysfs=tmp_path / "sys")
    assert port.properties == {
        "UDEV_DEVNODE": "/dev/null",
        "UDEV_DEVPATH": "/devices/pci0/usb1/1-1/1-1:1.0/ttyUSB0/tty/null",
        "FLASHJOB_USB_SERIAL": "A1B2C3",
    }
    (usb / "serial").unlink()
    (port,) = find_ports([str(tmp_path / "by-id")], sysfs=tmp_path / "sys")
    assert "FLASHJOB_USB_SERIAL" not in port.properties
