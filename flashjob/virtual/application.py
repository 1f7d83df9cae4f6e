# SPDX-License-Identifier: Apache-2.0
"""The firmware that runs on a virtual device: it identifies itself, takes updates, proves and confirms them.

It speaks the device protocol (docs/device-protocol.md) and knows no transport. Time and randomness come from outside.
States: IDLE -install-> RECEIVING -last byte-> REBOOT; after the reset PENDING -confirm-> IDLE.

Checks of an install grant, in this order, all before a byte is erased (tests name them):

1. size (2), shape (1), device (5); a byte-equal repeat of the last grant gets the same answer; nonce (6);
2. fence above the stored one, or equal with the same grant id (7); state IDLE, or RECEIVING (9);
3. chip and revision (12); payload and image fit the slot (15); secure_version not below the eFuse (13);
4. sequence not below the stored one, unless a downgrade is allowed (14); a delta's base is what runs (16);
5. both keys known (4); both signatures right (3); the result is among the released measurements (11).
   Then the nonce is consumed and the fence stored.

Checks of confirm, revert and cancel, in this order:

6. size (2), shape (1), device (5); byte-equal repeat; nonce (6); grant id = boot id of the running slot, for cancel the
   active grant's (9); fence not below the stored one (7); state PENDING, for cancel RECEIVING (9);
7. confirm only: the result is the own measurement (11); key known (4); signature (3). Then the nonce is consumed and
   the fence stored; the sequence is stored by confirm alone.

Nonces: one is live, in RAM, for one verb, for 600 s; a new one voids it. Evidence is made at most once a second.
A new install grant during RECEIVING voids the upload of the old one: of two writers the later fence wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from attestation import device_protocol as dp
from attestation import grants, mint, release, succession
from attestation.cbor import Value, dumps, strict_loads
from attestation.device_protocol import ErrorCode, Flag, Info, Request
from attestation.errors import Code, Reject
from attestation.grants import CancelGrant, ConfirmGrant, InstallGrant, RevertGrant, SignedGrant, Verb
from attestation.keys import PublicKey
from firmware_pipeline.esp import otadata
from firmware_pipeline.esp.otadata import SlotState
from firmware_pipeline.esp.partitions import Partition
from flashjob.virtual import bootloader, delta
from flashjob.virtual.adversaries import Behaviour
from flashjob.virtual.bootloader import BootResult
from flashjob.virtual.flash import Flash, FlashIOError
from flashjob.virtual.installation import Installation, Upload
from flashjob.virtual.nvs import Nvs, PendingInstall
from flashjob.virtual.profile import DEFAULT_CONFIRM_SECONDS, Hardware, Owner
from flashjob.virtual.replies import Refusal, Reply

NONCE_SECONDS: Final = 600
ATTEST_INTERVAL_SECONDS: Final = 1.0
_F = TypeVar("_F", bytes, int)
_SUCCESSION_CODES: Final = {
    Code.STATEMENT_KEY: ErrorCode.UNKNOWN_KEY,
    Code.SUCCESSION_GENERATION: ErrorCode.SEQUENCE,
    Code.SUCCESSION_HELD: ErrorCode.STATE,
    Code.COSE_KEYALG: ErrorCode.SIGNATURE,
    Code.SIG_RANGE: ErrorCode.SIGNATURE,
    Code.SIG_INVALID: ErrorCode.SIGNATURE,
}
"""What a refused succession is answered with; all else is malformed."""
_DBGSTAT_ENABLED, _DBGSTAT_PERMANENTLY_OFF = 0, 3


class State(Enum):
    """Where the update state machine stands."""

    IDLE = "Idle"
    RECEIVING = "Receiving"
    REBOOT = "Reboot"
    PENDING = "Pending"


@dataclass(slots=True)
class _Nonce:
    value: bytes
    verb: Verb
    expires: float


class Application:
    """One run of the firmware, from hand-over to reset.

    Args:
        boot: what the bootloader handed over.
        flash: the device's flash.
        hardware: the chip, without its secret.
        owner: provisioned public keys.
        nvs: what it remembers over resets.
        clock: monotonic seconds.
        random: random bytes of a given number.
        behaviour: how honest it is.
        addresses: own network addresses, attested so that nobody relays to another device.
        takes_image: whether a transport for images is connected (serial devices are written through their loader).
        confirm_seconds: deadline for an installation that came without an install grant.
    """

    def __init__(
        self,
        boot: BootResult,
        *,
        flash: Flash,
        hardware: Hardware,
        owner: Owner,
        nvs: Nvs,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        behaviour: Behaviour | None = None,
        addresses: Sequence[str] = (),
        takes_image: bool = True,
        confirm_seconds: int = DEFAULT_CONFIRM_SECONDS,
    ) -> None:
        self.boot = boot
        self.addresses = list(addresses)
        self.tls_key: PublicKey | None = None
        """The network's, of this boot; attested."""
        self._handover = boot.handover()
        self._key = mint.signing_key(self._handover.cdi, hardware.alg)
        self._flash, self._hardware, self._owner, self._nvs = flash, hardware, nvs.owner or owner, nvs
        self._clock, self._random = clock, random
        self._behaviour = behaviour or Behaviour()
        self._takes_image = takes_image
        self._nonce: _Nonce | None = None
        self._last_grant: tuple[bytes, Reply] | None = None
        self._last_attest = float("-inf")
        self._install: Installation | None = None
        self._upload: Upload | None = None
        self._slot_state = boot.slot_state
        self._gives_up = False
        self.state = State.PENDING if boot.unconfirmed else State.IDLE
        pending = nvs.pending if nvs.pending and nvs.pending.boot_id == boot.boot_id else None
        self._pending = pending if self.state is State.PENDING else None
        seconds = self._pending.confirm_seconds if self._pending else confirm_seconds
        self.deadline = clock() + seconds if self.state is State.PENDING else None
        """Clock value at which the device rolls back by itself; None when nothing waits for a confirmation."""

    # --- requests ------------------------------------------------------------------------------------------------

    @property
    def ueid(self) -> bytes:
        """The device id."""
        return self._handover.ueid

    def handle(self, request: Request, body: bytes) -> Reply:
        """Answer one request: an empty body for INFO, CBOR for ATTEST and NONCE, a signed statement for GRANT and OWNER."""
        try:
            if len(body) > dp.MAX_REQUEST_BYTES:
                raise Refusal(ErrorCode.TOO_LARGE, f"a request has at most {dp.MAX_REQUEST_BYTES} bytes")
            match request:
                case Request.INFO:
                    return Reply(200, dp.encode_info(self.info()))
                case Request.ATTEST:
                    return self._attest(body)
                case Request.NONCE:
                    return Reply(200, self._new_nonce(body))
                case Request.GRANT:
                    return self._grant(body)
                case Request.OWNER:
                    return self._succeed(body)
        except Refusal as refusal:
            return Reply.refusal(refusal)
        except FlashIOError as error:
            return Reply.refusal(Refusal(ErrorCode.FLASH_IO, str(error)))

    def info(self) -> Info:
        """What the device says about itself."""
        boot, hardware = self.boot, self._hardware
        flags = hardware.fuses.flags | Flag.ROLLBACK
        if delta.available():
            flags |= Flag.DELTA
        if hardware.anti_rollback:
            flags |= Flag.ANTI_ROLLBACK
        target = self._target_slot()
        left = None if self.deadline is None else max(0, int(self.deadline - self._clock()))
        return Info(
            versions=[dp.VERSION],
            ueid=self._handover.ueid,
            chip_id=hardware.chip.chip_id,
            chip_revision=hardware.revision,
            flash_size=hardware.flash_size,
            running_slot=boot.slot.subtype,
            slot_state=int(self._slot_state),
            target_slot_size=target.size if target else 0,
            measurement=boot.measurement,
            name=boot.name,
            version=boot.version,
            secure_version=boot.secure_version,
            efuse_secure_version=hardware.fuses.secure_version,
            flags=flags,
            partition_table=boot.table_sha256,
            bootseed=boot.bootseed,
            next_offset=self._install.offset if self._install else None,
            active_grant=self._install.grant.grant_id if self._install else None,
            confirm_seconds_left=left,
        )

    def evidence(self, nonce: bytes) -> bytes:
        """True evidence over a nonce: the chain of this boot and a fresh token."""
        hardware = self._hardware
        claims = mint.eat_claims(
            nonce=nonce,
            ueid=self._handover.ueid,
            oemid=hardware.oemid,
            hwmodel=hardware.chip.target.encode(),
            debug_status=_DBGSTAT_PERMANENTLY_OFF if hardware.fuses.jtag_off else _DBGSTAT_ENABLED,
            boot_count=self.boot.boot_count,
            boot_seed=self.boot.bootseed,
            name=self.boot.name,
            version=self.boot.version,
            slot_state=int(self._slot_state),
            efuse_secure_version=hardware.fuses.secure_version,
            fence=self._nvs.fence,
            addresses=self.addresses,
            owner_key_ids=self._owner.key_ids,
            confirmation_key=self.tls_key,
        )
        return mint.evidence(self._handover.anchor_id, self._handover.certificates, mint.eat(claims, self._key))

    def roll_back(self) -> bool:
        """Give up an unconfirmed installation; True if the device must now be reset into the old slot."""
        if self.state is not State.PENDING:
            return False
        self._set_slot_state(SlotState.INVALID)
        self.state, self.deadline = State.REBOOT, None
        return True

    def overdue(self) -> bool:
        """Whether the confirm deadline has passed: then the device calls `roll_back` and resets."""
        return self.deadline is not None and self._clock() >= self.deadline

    # --- attestation ---------------------------------------------------------------------------------------------

    def _attest(self, body: bytes) -> Reply:
        nonce = _field(body, "attest", bytes)
        if len(nonce) != dp.NONCE_SIZE:
            raise Refusal(ErrorCode.MALFORMED, f"the nonce has {len(nonce)} bytes, expected {dp.NONCE_SIZE}")
        now = self._clock()
        if now - self._last_attest < ATTEST_INTERVAL_SECONDS:
            raise Refusal(ErrorCode.SLOW_DOWN, "evidence is made at most once a second")
        self._last_attest = now
        reply = self._behaviour.evidence(nonce, self.evidence)
        return Reply(200, reply, reboot=self._gives_up_now(confirmed=False))

    def _gives_up_now(self, *, confirmed: bool) -> bool:
        unconfirmed = self.state is State.PENDING
        if not self._behaviour.gives_up(unconfirmed=unconfirmed, confirmed_now=confirmed):
            return False
        self._set_slot_state(SlotState.INVALID)
        self.state, self.deadline = State.REBOOT, None
        return True

    def _new_nonce(self, body: bytes) -> bytes:
        verb = _field(body, "nonce", int)
        if verb not in tuple(Verb):
            raise Refusal(ErrorCode.MALFORMED, f"verb {verb} is none of 1 to 4")
        self._nonce = _Nonce(self._random(dp.DEVICE_NONCE_SIZE), Verb(verb), self._clock() + NONCE_SECONDS)
        return dumps({1: self._nonce.value, 2: NONCE_SECONDS})

    # --- grants --------------------------------------------------------------------------------------------------

    def _grant(self, data: bytes) -> Reply:
        try:
            signed = grants.parse(data)
        except Reject as error:
            raise Refusal(ErrorCode.MALFORMED, str(error)) from error
        grant = signed.content
        if grant.ueid != self._handover.ueid:
            raise Refusal(ErrorCode.OTHER_DEVICE, "the grant names another device")
        if self._last_grant is not None and self._last_grant[0] == data:
            return self._last_grant[1]
        if isinstance(grant, ConfirmGrant) and not self._behaviour.hears_confirm():
            return Reply(0, None)
        self._check_nonce(grant.device_nonce, Verb(grant.verb))
        match grant:
            case InstallGrant():
                reply = self._begin_install(signed, grant)
            case ConfirmGrant():
                reply = self._confirm(signed, grant)
            case RevertGrant():
                reply = self._revert(signed, grant)
            case CancelGrant():
                reply = self._cancel(signed, grant)
        self._last_grant = (data, reply)
        return reply

    def _succeed(self, data: bytes) -> Reply:
        """Rules of `attestation.succession`; needs no nonce, in any state."""
        if len(data) > succession.MAX_SUCCESSION_BYTES:
            raise Refusal(ErrorCode.TOO_LARGE, f"a succession has at most {succession.MAX_SUCCESSION_BYTES} bytes")
        try:
            kind, slots = succession.take(data, self._owner.slots)
        except Reject as reject:
            raise Refusal(_SUCCESSION_CODES.get(reject.code, ErrorCode.MALFORMED), str(reject)) from reject
        self._owner = self._nvs.owner = self._owner.with_slots(kind, slots)
        return Reply(200, dp.encode_owner_keys(dp.OwnerKeys(kind, tuple(sorted(slots.keys)), slots.generation)))

    def _check_nonce(self, value: bytes, verb: Verb) -> None:
        nonce = self._nonce
        if nonce is None or nonce.value != value or nonce.verb is not verb:
            raise Refusal(ErrorCode.NONCE, "the grant does not hold this device's live nonce for this verb")
        if self._clock() >= nonce.expires:
            self._nonce = None
            raise Refusal(ErrorCode.NONCE, f"the nonce is older than {NONCE_SECONDS} s")

    def _begin_install(self, signed: SignedGrant, grant: InstallGrant) -> Reply:
        nvs, hardware = self._nvs, self._hardware
        same = grant.fence == nvs.fence and grant.grant_id == nvs.fence_grant_id
        if grant.fence <= nvs.fence and not same:
            raise Refusal(ErrorCode.FENCE, f"fence {grant.fence}, stored is {nvs.fence}")
        slot = self._target_slot()
        if not self._takes_image or slot is None:
            raise Refusal(ErrorCode.STATE, "this device takes no images here: write it through its loader")
        if self.state not in (State.IDLE, State.RECEIVING):
            raise Refusal(ErrorCode.STATE, f"the device is {self.state.value}")
        try:
            statement = release.parse(grant.release)
        except Reject as error:
            raise Refusal(ErrorCode.MALFORMED, f"release: {error}") from error
        released = statement.content
        if released.chip_id != hardware.chip.chip_id or not released.accepts_revision(hardware.revision):
            raise Refusal(ErrorCode.IMAGE_OR_CHIP, f"released for chip {released.chip_id} rev {released.revisions}")
        if max(grant.payload_size, released.image_size) > slot.size:
            raise Refusal(ErrorCode.SLOT, f"the slot has {slot.size} bytes")
        if released.secure_version < hardware.fuses.secure_version:
            raise Refusal(ErrorCode.SECURE_VERSION, f"the eFuse counter is at {hardware.fuses.secure_version}")
        if released.sequence < nvs.sequence and not grant.allow_downgrade:
            raise Refusal(ErrorCode.SEQUENCE, f"sequence {released.sequence}, stored is {nvs.sequence}")
        if grant.base is not None and (grant.base != self.boot.measurement or not delta.available()):
            raise Refusal(ErrorCode.BASE, f"the delta starts from {grant.base}: send the raw image")
        if statement.kid not in self._owner.release_keys:
            raise Refusal(ErrorCode.UNKNOWN_KEY, f"release key {statement.kid.hex()}")
        self._check_signature(signed)
        try:
            release.check(statement, self._owner.release_keys)
        except Reject as error:
            raise Refusal(ErrorCode.SIGNATURE, f"release: {error}") from error
        if not released.contains(grant.result):
            raise Refusal(ErrorCode.DIGEST, "the result is not among the released measurements")
        self._consume(grant.fence, grant.grant_id)
        if self._install is not None:
            self._install.live = False
        self._upload = None
        self._install = Installation(
            grant,
            released.sequence,
            slot,
            flash=self._flash,
            hardware=hardware,
            table=self.boot.table,
            running=self.boot.slot,
        )
        self.state = State.RECEIVING
        return Reply(200, dumps({17: 0, 18: grant.grant_id}))

    def _confirm(self, signed: SignedGrant, grant: ConfirmGrant) -> Reply:
        self._check_running(grant)
        if grant.result != self.boot.measurement:
            raise Refusal(ErrorCode.DIGEST, f"the grant confirms {grant.result}, running is {self.boot.measurement}")
        self._check_signature(signed)
        self._consume(grant.fence)
        self._set_slot_state(SlotState.VALID)
        if self._hardware.anti_rollback:
            self._hardware.fuses.burn_secure_version(self.boot.secure_version)
        if self._pending is not None and self._pending.sequence is not None:
            self._nvs.sequence = self._pending.sequence
        self._nvs.pending, self._pending = None, None
        self.state, self.deadline = State.IDLE, None
        evidence = self._behaviour.evidence(grant.second_nonce, self.evidence)
        return Reply(200, evidence, reboot=self._gives_up_now(confirmed=True))

    def _revert(self, signed: SignedGrant, grant: RevertGrant) -> Reply:
        self._check_running(grant)
        self._check_signature(signed)
        self._consume(grant.fence)
        self._nvs.pending = None
        self.roll_back()
        return Reply(200, dumps({}), reboot=True)

    def _cancel(self, signed: SignedGrant, grant: CancelGrant) -> Reply:
        if self._install is not None and grant.grant_id != self._install.grant.grant_id:
            raise Refusal(ErrorCode.STATE, "the grant cancels another installation")
        self._check_fence(grant.fence)
        if self.state is not State.RECEIVING or self._install is None:
            raise Refusal(ErrorCode.STATE, f"nothing is being received, the device is {self.state.value}")
        self._check_signature(signed)
        self._consume(grant.fence)
        install, self._install, self._upload = self._install, None, None
        self.state = State.IDLE
        install.abandon()
        return Reply(200, dumps({}))

    def _check_running(self, grant: ConfirmGrant | RevertGrant) -> None:
        if grant.grant_id != self.boot.boot_id:
            raise Refusal(ErrorCode.STATE, "the grant is for another installation than the one that runs")
        self._check_fence(grant.fence)
        if self.state is not State.PENDING:
            raise Refusal(ErrorCode.STATE, f"nothing waits for a confirmation, the device is {self.state.value}")

    def _check_fence(self, fence: int) -> None:
        if fence < self._nvs.fence:
            raise Refusal(ErrorCode.FENCE, f"fence {fence}, stored is {self._nvs.fence}")

    def _check_signature(self, signed: SignedGrant) -> None:
        try:
            grants.check(signed, self._owner.grant_keys)
        except Reject as error:
            unknown = error.code is Code.STATEMENT_KEY
            raise Refusal(ErrorCode.UNKNOWN_KEY if unknown else ErrorCode.SIGNATURE, f"grant: {error}") from error

    def _consume(self, fence: int, grant_id: bytes | None = None) -> None:
        self._nonce = None
        if fence > self._nvs.fence or grant_id is not None:
            self._nvs.fence_grant_id = grant_id or b""
        self._nvs.fence = fence

    # --- image ---------------------------------------------------------------------------------------------------

    def open_upload(self, offset: int, length: int) -> Upload:
        """Begin to take image bytes.

        Args:
            offset: where the sender starts; must be the next offset.
            length: bytes that it will send; must be all that are missing.

        Raises:
            Refusal: STATE, BUSY, OFFSET (with the next offset), TOO_LARGE or MALFORMED.
        """
        install = self._install
        if install is None:
            raise Refusal(ErrorCode.STATE, f"no install grant is active, the device is {self.state.value}")
        if self._upload is not None and self._upload.open:
            raise Refusal(ErrorCode.BUSY, "another upload is running")
        if offset != install.offset:
            raise Refusal(ErrorCode.OFFSET, "the upload goes on elsewhere", next_offset=install.offset)
        if length != install.missing:
            code = ErrorCode.TOO_LARGE if length > install.missing else ErrorCode.MALFORMED
            raise Refusal(code, f"{install.missing} bytes are missing, the request announces {length}")
        self._upload = Upload(install)
        return self._upload

    def finish_upload(self, upload: Upload) -> Reply:
        """The last byte has come: verify, select the slot and ask for the reset, or refuse and forget the image."""
        upload.open = False
        install = upload.installation
        if install is not self._install:
            return Reply.refusal(Refusal(ErrorCode.STATE, "another grant took over"))
        if install.missing:
            return Reply.refusal(Refusal(ErrorCode.OFFSET, "bytes are missing", next_offset=install.offset))
        try:
            install.complete()
        except Refusal as refusal:
            return self._abandon(refusal)
        grant = install.grant
        self._nvs.pending = PendingInstall(grant.grant_id, install.sequence, grant.confirm_seconds)
        self._install, self._upload, self.state = None, None, State.REBOOT
        return Reply(200, dumps({17: grant.payload_size}), reboot=True)

    def receive_image(self, offset: int, chunks: Sequence[bytes]) -> Reply:
        """Take a whole upload at once."""
        try:
            upload = self.open_upload(offset, sum(map(len, chunks)))
            for chunk in chunks:
                upload.write(chunk)
        except Refusal as refusal:
            return Reply.refusal(refusal)
        return self.finish_upload(upload)

    def _abandon(self, failure: Refusal) -> Reply:
        install, self._install, self._upload = self._install, None, None
        self.state = State.IDLE
        try:
            if install is not None:
                install.abandon()
        except Refusal as worse:
            failure = worse
        return Reply.refusal(failure)

    def _target_slot(self) -> Partition | None:
        slots = self.boot.table.ota_slots
        running = self.boot.slot.ota_index
        others = [slot for slot in slots if slot.offset != self.boot.slot.offset]
        if not others or self.boot.table.otadata is None:
            return None
        return others[0] if running is None else slots[(running + 1) % len(slots)]

    def _set_slot_state(self, state: SlotState) -> None:
        """Write the state of the running installation into its own record."""
        if self.boot.sector is None:
            return
        data = bootloader.read_otadata(self._flash, self.boot.table)
        record = otadata.parse_otadata(data)[self.boot.sector]
        if record is not None:
            bootloader.write_record(self._flash, self.boot.table, self.boot.sector, record.with_state(state))
        self._slot_state = state


def _field(body: bytes, what: str, kind: type[_F]) -> _F:
    """The one field of a request body ``{1: value}``; anything else is malformed."""
    try:
        labels: Value = strict_loads(body, dp.MAX_REQUEST_BYTES)
    except Reject as error:
        raise Refusal(ErrorCode.MALFORMED, f"{what}: {error}") from error
    if not isinstance(labels, dict) or labels.keys() != {1} or type(labels[1]) is not kind:
        raise Refusal(ErrorCode.MALFORMED, f"{what}: the body is not {{1: {kind.__name__}}}")
    return labels[1]
