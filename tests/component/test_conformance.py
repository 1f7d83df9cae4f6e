# SPDX-License-Identifier: Apache-2.0
"""The conformance suite on virtual devices: honest ones pass every check, each broken one fails the check it breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from attestation import serial_framing, statement, succession
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import Request
from attestation.keys import key_id
from attestation.release import Release
from attestation.serial_port import open_port
from attestation.succession import Kind
from flashjob.conformance import channel, report, suite
from flashjob.conformance.check import Outcome, Result
from flashjob.conformance.line import HttpLine, SerialLine
from flashjob.conformance.subject import Materials, Subject
from flashjob.virtual import application, delta, network, serial_application, tls
from flashjob.virtual.adversaries import (
    Behaviour,
    LosesConfirm,
    OtherDevicesEvidence,
    ReplaysEvidence,
    RollsBackAfterAccept,
    RunsOldImage,
    StaleBootId,
)
from flashjob.virtual.application import Application, State
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.installation import Installation
from flashjob.virtual.replies import Reply
from flashjob.virtual.serial_application import SerialApplication
from tests.clusters import until

from .bench import GRANT_KEY, RELEASE_KEY, Bench, new_app, runs

IMAGE = new_app("esp32s3", 64 * 1024)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def subject(device: VirtualDevice, **changes: Any) -> Subject:
    """A tester with everything in hand."""

    async def reset() -> None:
        device.reset()

    given: dict[str, Any] = {
        "grant_key": GRANT_KEY,
        "release_key": RELEASE_KEY,
        "generation": 1,
        "image": IMAGE,
        "anchor": device.identity.anchor,
        "reset": reset,
        "boot_seconds": 4,
    }
    server = device.server
    line = SerialLine(device.port.path) if device.port else HttpLine(server.host, server.port, server.tls)
    return Subject(line, Materials(**given | changes))


async def results(device: VirtualDevice, *patterns: str, **changes: Any) -> list[Result]:
    tester = subject(device, **changes)
    try:
        return await suite.run(tester, suite.chosen(patterns))
    finally:
        await tester.line.close()


def failed(found: list[Result]) -> dict[str, str]:
    return {result.check.id: result.detail for result in found if result.outcome is Outcome.FAIL}


@pytest.mark.parametrize("swallowed", [0, 1])
async def test_a_beacon_that_comes_before_the_port_is_open_counts(bench: Bench, swallowed: int) -> None:
    """As where a busy machine needs long to end the program that reset the device; and where that program reads it."""
    device = await bench.device()
    resets = 0

    async def reset() -> None:
        nonlocal resets
        assert device.port is not None
        before, resets = device.application, resets + 1
        device.reset()
        await until(lambda: device.application not in (None, before) and device.port and device.port._unread())
        if resets <= swallowed:
            (await open_port(device.port.path)).close()

    found = await results(device, "serial.beacon", reset=reset)
    assert [(one.outcome, one.detail) for one in found] == [(Outcome.PASS, "")]
    assert resets == swallowed + 1


@pytest.mark.parametrize("kind", ["network", pytest.param("tls", marks=pytest.mark.slow), "serial"])
async def test_an_honest_device_passes_everything_that_can_be_asked(bench: Bench, kind: str) -> None:
    device = await bench.device(network=kind != "serial", tls=kind == "tls")
    found = await results(device)
    assert failed(found) == {}
    left = {r.check.id for r in found if r.outcome is Outcome.NOT_TESTABLE and not r.elsewhere}
    no_delta = {"delta.unsupported"} if delta.available() else {"delta.accepted", "delta.result", "delta.spoiled"}
    expected = set() if kind == "serial" else {"grant.secure_version", "image.flash", *no_delta}
    assert left == expected, "said, not passed"
    passed = {r.check.id for r in found if r.outcome is Outcome.PASS}
    assert len(passed) > (30 if kind == "serial" else 60)
    assert ("tls.bound" in passed) == (kind == "tls")
    assert report.conforms(found)
    await runs(device, "1.0.0" if kind == "serial" else "2.0.0")
    assert device.application is not None
    held = device.application._owner
    for known, one in ((held.grant_keys, GRANT_KEY), (held.release_keys, RELEASE_KEY)):
        assert len(known) == 2
        assert key_id(one.public_key()) in known, "the given keys are held again in the end"


async def test_a_device_that_speaks_tls_is_asked_over_tls(bench: Bench) -> None:
    device = await bench.device(network=True, tls=True)
    found = await results(device, "tls.*", "install.accepted", "owner.malformed")
    assert {r.outcome for r in found} == {Outcome.PASS}
    assert len(found) == 6
    plain = await results(await bench.device("plain", network=True), "tls.*")
    assert all(r.elsewhere and "https://" in r.detail for r in plain)


async def test_a_device_without_deltas_refuses_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "available", lambda: False)
    device = await bench.device(network=True)
    found = {r.check.id: r for r in await results(device, "delta.*")}
    assert found["delta.unsupported"].outcome is Outcome.PASS
    assert found["delta.accepted"].outcome is Outcome.NOT_TESTABLE
    assert "flag 6" in found["delta.accepted"].detail


async def test_generations_rise_from_run_to_run(bench: Bench) -> None:
    device = await bench.device(network=True)
    assert failed(await results(device, "owner.*")) == {}
    wrong = failed(await results(device, "owner.grant_key"))
    assert "--generation" in wrong["owner.grant_key"], "the same generations again"
    assert failed(await results(device, "owner.*", generation=20)) == {}
    (left,) = await results(device, "owner.grant_key", generation=None)
    assert left.outcome is Outcome.NOT_TESTABLE
    assert "--generation" in left.detail


async def test_the_counter_in_the_efuses_is_asked_about_where_it_was_burnt(bench: Bench) -> None:
    device = await bench.device(network=True)
    device.identity.hardware.fuses.burn_secure_version(3)
    (result,) = await results(device, "grant.secure_version")
    assert result.outcome is Outcome.PASS


async def test_without_keys_nothing_is_written(bench: Bench) -> None:
    device = await bench.device(network=True)
    before = device.counters()
    found = await results(device, grant_key=None, release_key=None, image=None, reset=None, generation=None)
    assert failed(found) == {}
    assert device.nvs.owner is None
    after = device.counters()
    assert {name: after[name] for name in before} == before, "not a byte, not a boot, not a fence"
    untested = {r.check.id: r.detail for r in found if r.outcome is Outcome.NOT_TESTABLE and not r.elsewhere}
    assert "--grant-key" in untested["install.accepted"]
    assert "--image" in untested["confirm.proves"]
    await runs(device, "1.0.0")


# --- broken devices ----------------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch
BEHAVIOURS: list[tuple[str, Callable[[], Behaviour], bool]] = [
    ("attest.fresh", ReplaysEvidence, True),
    ("attest.fresh", ReplaysEvidence, False),
    ("boot.proves", RunsOldImage, True),
    ("boot.proves", StaleBootId, True),
    ("confirm.proves", lambda: LosesConfirm(times=99), True),
    ("confirm.stays", RollsBackAfterAccept, True),
]


@pytest.mark.parametrize(("check", "behaviour", "network"), BEHAVIOURS)
async def test_a_lying_device_fails(
    bench: Bench, monkeypatch: Patch, check: str, behaviour: Callable[[], Behaviour], network: bool
) -> None:
    monkeypatch.setattr("flashjob.conformance.line.SECONDS", 3.0)
    device = await bench.device(network=network, behaviour=behaviour())
    assert check in failed(await results(device, check))


async def test_another_devices_evidence_fails(bench: Bench) -> None:
    donor = await bench.device("donor", network=True)
    assert donor.application is not None
    device = await bench.device(network=True, behaviour=OtherDevicesEvidence(donor.application.evidence))
    assert "attest.chain" in failed(await results(device, "attest.chain")), "the anchor is not the donor's"
    assert "attest.chain" in failed(await results(device, "attest.chain", anchor=None)), "nor is the id"


def before(method: str, spoil: Callable[[Application], None]) -> Callable[[Patch], None]:
    """The device spoils its own state each time just before `method`."""

    def patch(monkeypatch: Patch) -> None:
        right = getattr(Application, method)

        def wrong(self: Application, *args: Any) -> Any:
            spoil(self)
            return right(self, *args)

        monkeypatch.setattr(Application, method, wrong)

    return patch


def instead(where: object, name: str, what: Any) -> Callable[[Patch], None]:
    return lambda monkeypatch: monkeypatch.setattr(where, name, what)


def forget(name: str, value: Any) -> Callable[[Application], None]:
    return lambda app: setattr(app, name, value)


def lenient_build(model: Any, names: Any, labels: Any, code: Any) -> Any:
    return RIGHT_BUILD(model, names, {k: v for k, v in labels.items() if k in names}, code)


def lenient_chunk(match: Any) -> bytes:
    import base64

    text = match["data"]
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def lenient_field(body: bytes, _what: str, kind: type) -> Any:
    labels = strict_loads(body) if body else {}
    value = labels.get(1) if isinstance(labels, dict) else None
    return value if isinstance(value, kind) else kind(bytes(32) if kind is bytes else 1)


def believing(data: bytes, held: Any) -> Any:
    """A device that lets every key name its successor."""
    signed = succession.parse(data)
    kind, successor = signed.content.kind, signed.content.successor
    return kind, succession.Slots({**held[kind].keys, key_id(successor): successor}, signed.content.generation)


def forget_generation(app: Application) -> None:
    app._owner.slots = {kind: replace(slots, generation=0, last=b"") for kind, slots in app._owner.slots.items()}


def forget_key(app: Application) -> None:
    app._owner = app._owner.with_slots(Kind.RELEASE, succession.Slots({}))


RIGHT_BUILD = statement.build
BROKEN: list[tuple[str, Callable[[Patch], None], bool]] = [
    ("attest.rate", instead(application, "ATTEST_INTERVAL_SECONDS", 0.0), True),
    ("attest.malformed", instead(application, "_field", lenient_field), True),
    ("nonce.malformed", instead(application, "_field", lenient_field), False),
    ("nonce.fresh", instead(Application, "_new_nonce", lambda *_: dumps({1: bytes(16), 2: 600})), True),
    ("nonce.fresh", instead(application, "NONCE_SECONDS", 6000), True),
    ("grant.malformed", instead(statement, "build", lenient_build), True),
    ("grant.nonce", instead(Application, "_check_nonce", lambda *_: None), True),
    ("grant.nonce", instead(Application, "_check_nonce", lambda *_: None), False),
    ("grant.fence", before("_begin_install", lambda app: setattr(app._nvs, "fence", -1)), True),
    ("grant.idle", instead(Application, "_check_running", lambda *_: None), True),
    ("grant.chip", instead(Release, "accepts_revision", lambda *_: True), True),
    ("grant.unknown_key", instead(Application, "_check_signature", lambda *_: None), True),
    ("grant.signature", instead(Application, "_check_signature", lambda *_: None), True),
    ("grant.result", instead(Release, "contains", lambda *_: True), True),
    ("grant.harmless", before("_check_signature", forget("_nonce", None)), True),
    ("install.repeat", before("_grant", forget("_last_grant", None)), True),
    ("install.replay", instead(Application, "_check_nonce", lambda *_: None), True),
    ("install.fence", before("_begin_install", lambda app: setattr(app._nvs, "fence", -1)), True),
    ("cancel.ends", instead(Application, "_cancel", lambda *_: Reply(200, dumps({}))), True),
    ("image.busy", before("open_upload", forget("_upload", None)), True),
    ("image.payload", instead(Installation, "_verify", lambda *_: None), True),
    ("image.no_image", instead(Installation, "_verify", lambda *_: None), True),
    ("image.measurement", instead(Installation, "_verify", lambda *_: None), True),
    ("pending.install", before("_begin_install", forget("state", State.IDLE)), True),
    ("revert.goes_back", instead(Application, "_revert", lambda *_: Reply(200, dumps({}))), True),
    ("deadline.goes_back", instead(VirtualDevice, "_deadline", lambda *_: None), True),
    ("confirm.refuses", instead(Application, "_check_signature", lambda *_: None), True),
    ("confirm.proves", instead(Application, "_set_slot_state", lambda *_: None), True),
    ("sequence.keeps", before("_confirm", forget("_pending", None)), True),
    ("owner.malformed", instead(statement, "build", lenient_build), True),
    ("owner.unknown_key", instead(succession, "take", believing), True),
    ("owner.other_kind", instead(succession, "take", believing), False),
    ("owner.signature", instead(statement, "check_signature", lambda signed, _: signed.content), True),
    ("owner.held", before("_succeed", forget_key), True),
    ("owner.grant_key", before("_succeed", forget_generation), True),
    ("owner.release_key", before("_succeed", forget_generation), False),
    ("owner.any_state", before("_succeed", forget("_install", None)), True),
    ("owner.reset", before("info", lambda app: setattr(app._nvs, "owner", None)), True),
    ("delta.accepted", instead(delta, "apply", lambda *_: b""), True),
    ("delta.result", instead(Installation, "_verify", lambda *_: None), True),
    ("delta.spoiled", instead(Installation, "_verify", lambda *_: None), True),
    ("serial.ignores", instead(serial_framing, "_checked_chunk", lenient_chunk), False),
    ("serial.again", instead(serial_application, "CACHE_SECONDS", 0.0), False),
    ("serial.malformed", instead(serial_application, "_request", lambda _: (Request.INFO, b"")), False),
    ("serial.beacon", instead(SerialApplication, "beacon", lambda _: b"\n"), False),
]


@pytest.mark.parametrize(("check", "patch", "network"), BROKEN, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(BROKEN)])
async def test_a_device_that_breaks_a_rule_fails_its_check(
    bench: Bench, monkeypatch: Patch, check: str, patch: Callable[[Patch], None], network: bool
) -> None:
    monkeypatch.setattr("flashjob.conformance.line.SECONDS", 3.0)
    patch(monkeypatch)
    device = await bench.device(network=network)
    wrong = failed(await results(device, check, boot_seconds=2))
    assert check in wrong
    assert wrong[check], "and it says what was wrong"


SAME = tls.boot_identity()
TLS_BROKEN: list[tuple[str, Callable[[Patch], None]]] = [
    ("tls.bound", before("evidence", forget("tls_key", None))),
    ("tls.bound", before("evidence", forget("tls_key", tls.boot_identity()[1]))),
    ("tls.new_key", instead(network, "boot_identity", lambda: SAME)),
    ("tls.no_dice_key", instead(channel, "_spki", lambda _: b"")),
]


@pytest.mark.parametrize(("check", "patch"), TLS_BROKEN)
async def test_a_device_whose_tls_is_not_its_own_fails(
    bench: Bench, monkeypatch: Patch, check: str, patch: Callable[[Patch], None]
) -> None:
    patch(monkeypatch)
    device = await bench.device(network=True, tls=True)
    assert check in failed(await results(device, check))


async def test_2_a_silent_device_fails_and_the_suite_goes_on(bench: Bench, monkeypatch: Patch) -> None:
    monkeypatch.setattr("flashjob.conformance.line.SECONDS", 0.5)
    device = await bench.device(network=True)
    tester = subject(device)
    await device.stop()
    found = await suite.run(tester, suite.chosen(["info.*"]))
    assert [result.outcome for result in found] == [Outcome.FAIL, Outcome.FAIL]
    assert "takes no connection" in found[0].detail
    assert not report.conforms(found)


# --- reports -----------------------------------------------------------------------------------------------------


def made(check: str, outcome: Outcome, detail: str = "") -> Result:
    (one,) = suite.chosen([check])
    return Result(one, outcome, detail, 0.5)


def test_4_one_failure_is_a_failed_device_and_nothing_tested_is_none_passed() -> None:
    good, bad, open_ = made("info.shape", Outcome.PASS), made("info.stable", Outcome.FAIL), Outcome.NOT_TESTABLE
    assert report.conforms([good])
    assert not report.conforms([good, bad])
    assert not report.conforms([made("info.shape", open_)])


def test_the_reports_for_machines() -> None:
    found = [
        made("info.shape", Outcome.PASS),
        made("info.stable", Outcome.FAIL, "was \x00<one>"),
        made("image.flash", Outcome.NOT_TESTABLE, "no host"),
    ]
    said = report.to_json("yard", found)
    assert (said["conforms"], said["counts"]) == (False, {"pass": 1, "fail": 1, "not testable": 1})
    root = ElementTree.fromstring(report.to_junit("yard", found))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", "1", "1")
    failure = root.find("./testcase[@name='info.stable']/failure")
    assert failure is not None
    assert failure.get("message") == "was ?<one>"


def test_every_check_has_a_sentence_and_a_name_of_its_own() -> None:
    names = [check.id for check in suite.ALL]
    assert len(set(names)) == len(names)
    assert all(check.sentence.endswith(".") for check in suite.ALL)


def test_the_suite_asks_for_every_error_code() -> None:
    """The sentence that asks for a code names it."""
    sentences = " ".join(check.sentence for check in suite.ALL)
    assert [code for code in range(1, 19) if f"({code})" not in sentences] == []
