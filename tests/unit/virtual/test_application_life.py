# SPDX-License-Identifier: Apache-2.0
"""Any order of grants, uploads, resets and waiting: a device never runs what was not granted, and keeps nothing
that was not confirmed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attestation.grants import CancelGrant, ConfirmGrant, RevertGrant
from firmware_pipeline.esp.otadata import SlotState
from flashjob.virtual.application import State
from tests.unit.virtual.workbench import Bench, image

VERSIONS = ("2.0", "3.0", "4.0")


class DeviceLife(RuleBasedStateMachine):
    """The model: which version is confirmed, which one may run unconfirmed, how high the fence is."""

    @initialize()
    def begin(self) -> None:
        self.bench = Bench()
        self.confirmed = "1.0"
        self.trial: str | None = None
        self.receiving: str | None = None
        self.selected: str | None = None
        self.fence = 0
        self.grant_id = b""

    @rule(version=st.sampled_from(VERSIONS), step=st.integers(-1, 2), sequence=st.integers(1, 3))
    def grant_install(self, version: str, step: int, sequence: int) -> None:
        fence = max(0, self.fence + step)
        grant_id = (self.grant_id if step == 0 and self.grant_id else bytes([fence + 1, sequence]) * 8)[:16]
        data = image(version)
        statement = self.bench.release(data, sequence=sequence)
        grant = self.bench.install_grant(data, fence=fence, grant_id=grant_id, statement=statement)
        idle = self.bench.application.state in (State.IDLE, State.RECEIVING)
        fenced = fence > self.fence or (fence == self.fence and grant_id == self.grant_id)
        accepted = self.bench.send(grant).status == 200
        assert accepted == (idle and fenced and sequence >= self.bench.nvs.sequence)
        if accepted:
            self.fence, self.grant_id, self.receiving = fence, grant_id, version

    @precondition(lambda self: self.receiving)
    @rule(share=st.sampled_from((1, 40, 100)))
    def upload(self, share: int) -> None:
        assert self.receiving is not None
        data = image(self.receiving)
        offset = self.bench.info().next_offset
        assert offset is not None
        upload = self.bench.application.open_upload(offset, len(data) - offset)
        upload.write(data[offset : offset + (len(data) - offset) * share // 100])
        if share < 100:
            upload.lost()
            return
        reply = self.bench.application.finish_upload(upload)
        assert (reply.status, reply.reboot) == (200, True)
        self.receiving, self.selected = None, self.receiving

    @rule(version=st.sampled_from(VERSIONS), confirm=st.booleans())
    def whole_update(self, version: str, confirm: bool) -> None:
        self.grant_install(version, 1, 3)
        if self.receiving:
            self.upload(100)
            self.reset()
            if confirm:
                self.confirm(known=True)

    @rule()
    def reset(self) -> None:
        self.trial, self.selected, self.receiving = self.selected, None, None
        self.bench.reset()

    @rule(known=st.booleans())
    def confirm(self, known: bool) -> None:
        grant_id = self.bench.application.boot.boot_id if known else b"?" * 16
        if not any(grant_id):
            return
        reply = self.bench.send(self.bench.running_grant(ConfirmGrant, grant_id=grant_id))
        assert (reply.status == 200) == (known and self.trial is not None)
        if reply.status == 200:
            assert self.trial is not None
            self.confirmed, self.trial = self.trial, None

    @precondition(lambda self: self.trial)
    @rule(by_grant=st.booleans())
    def go_back(self, by_grant: bool) -> None:
        if by_grant:
            assert self.bench.send(self.bench.running_grant(RevertGrant)).reboot
        else:
            self.bench.now += 120
            assert self.bench.application.overdue()
            assert self.bench.application.roll_back()
        self.reset()

    @rule()
    def cancel(self) -> None:
        grant_id = self.grant_id or b"?" * 16
        reply = self.bench.send(self.bench.running_grant(CancelGrant, grant_id=grant_id))
        assert (reply.status == 200) == (self.receiving is not None)
        self.receiving = None

    @invariant()
    def runs_what_was_granted_or_confirmed(self) -> None:
        info = self.bench.info()
        assert info.version == (self.trial or self.confirmed)
        expected = SlotState.PENDING_VERIFY if self.trial else SlotState.VALID
        assert info.slot_state == expected
        assert (info.confirm_seconds_left is not None) == (self.trial is not None)

    @invariant()
    def the_fence_never_falls(self) -> None:
        assert self.bench.nvs.fence == self.fence

    @invariant()
    def a_power_cut_now_ends_in_a_confirmed_or_just_granted_image(self) -> None:
        if self.selected is None and self.trial is None:
            assert self.bench.boot().version == self.confirmed


DeviceLife.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestDeviceLife = DeviceLife.TestCase
