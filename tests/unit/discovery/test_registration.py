# SPDX-License-Identifier: Apache-2.0
"""When a handler registers with an agent that it has registered with before."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from attestation.discovery import registration as reg
from attestation.discovery.details import Details, Transport, parse_details
from attestation.discovery.registration import Registration, Served, served, stay_registered


def details(*applications: str) -> Details:
    return parse_details(f"{{list: Devices, applications: {list(applications)}}}", Transport.NETWORK)


ONE, TWO, EDITED = details("one"), details("two"), details("edited")


@pytest.mark.parametrize(
    ("wanted", "streams", "state"),
    [
        ([], [], Served.ALL),
        ([], [ONE], Served.ALL),
        ([ONE], [], Served.NONE),
        ([ONE], [ONE], Served.ALL),
        ([ONE, TWO], [ONE], Served.SOME),
        ([ONE, EDITED], [ONE, TWO], Served.ALL),
        ([ONE, TWO, EDITED], [ONE, details("another")], Served.SOME),
    ],
)
def test_rule_3_who_has_a_stream(wanted: Sequence[Details], streams: Sequence[Details], state: Served) -> None:
    assert served(set(wanted), set(streams)) is state


@pytest.mark.parametrize(
    ("states", "looks"),
    [
        ([Served.ALL] * 100, [0]),
        ([Served.NONE] * 30, [0, 6, 12, 18, 24, 30]),
        ([Served.SOME] * 60, [0, 6, 17, 38]),
        ([*[Served.SOME] * 8, Served.ALL, *[Served.SOME] * 10], [0, 6, 15]),
    ],
    ids=["all", "none", "some", "healed"],
)
async def test_rule_3_how_often_it_registers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[Served], looks: list[int]
) -> None:
    """In looks at the agent's socket, one a second."""
    mine, agent = (socket.socket(socket.AF_UNIX) for _ in range(2))
    mine.bind(str(tmp_path / "own.sock"))
    agent.bind(str(tmp_path / reg.SOCKET_NAME))
    left, registered, look = list(states), list[int](), -1
    is_socket = Path.is_socket

    def looked(path: Path) -> bool:
        nonlocal look
        look += 1
        return is_socket(path)

    async def register(*_: object) -> None:
        registered.append(look)

    async def nothing(*_: object) -> None:
        pass

    def state() -> Served:
        if not left:
            raise asyncio.CancelledError
        return left.pop(0)

    monkeypatch.setattr(Path, "is_socket", looked)
    monkeypatch.setattr(reg, "_register", register)
    monkeypatch.setattr(asyncio, "sleep", nothing)
    with pytest.raises(asyncio.CancelledError):
        await stay_registered(tmp_path, Registration("x", tmp_path / "own.sock", shared=True), nothing, state)
    mine.close()
    agent.close()
    assert registered == looks
