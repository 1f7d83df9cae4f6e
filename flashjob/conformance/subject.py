# SPDX-License-Identifier: Apache-2.0
"""The device under test, and the steps that checks have in common.

What it answers is never believed for more than the sentence at hand; what it must not accept is made here, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation import cose, dice_chain, eat, grants, keys, release, statement
from attestation import device_protocol as dp
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import ErrorCode, Info, Request
from attestation.dice_cbor import ApplicationConfig, Certificate, LeafCertificate, read_application_config
from attestation.eat import Token
from attestation.errors import Reject
from attestation.grants import CancelGrant, ConfirmGrant, Grant, InstallGrant, RevertGrant, Verb
from attestation.keys import PrivateKey, PublicKey
from attestation.release import Release
from attestation.statement import SHA_256, SHA_512, Digest
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.measurement import measure
from flashjob.conformance.check import Broken, NotTestable
from flashjob.conformance.line import Answer, HttpLine, Line, SerialLine, Silent

_POLL_SECONDS: Final = 0.1
_SLOW_DOWN_SECONDS: Final = 1.05
_SLOW_DOWN_TRIES: Final = 5
PENDING: Final = (0, 1)
"""Slot states NEW and PENDING_VERIFY."""


@dataclass(frozen=True, slots=True)
class Materials:
    """What the tester brings along. What is missing only makes checks untestable.

    Args:
        grant_key, release_key: private halves of keys that the device holds.
        image: an application that it may boot.
        sequence: of the releases made here; the device keeps the highest that is confirmed.
        generation: first of the successions made here, above what the device holds; None: no key is followed.
        anchor: the device's UDS public key, where it is known.
        reset: presses its reset button.
        boot_seconds: longest wait for it to come back.
    """

    grant_key: PrivateKey | None = field(default=None, repr=False)
    release_key: PrivateKey | None = field(default=None, repr=False)
    image: bytes | None = field(default=None, repr=False)
    sequence: int = 1
    generation: int | None = None
    anchor: PublicKey | None = None
    reset: Callable[[], Awaitable[None]] | None = None
    boot_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Proof:
    """Evidence, opened; its signatures fit each other, and the anchor where one was given."""

    token: Token
    config: ApplicationConfig
    measurement: Digest
    keys: tuple[PublicKey, ...]
    """Of its chain: of bootloader, application, and attestation key if there is one."""


class Subject:
    """One device on one line."""

    def __init__(self, line: Line, materials: Materials | None = None) -> None:
        self.line = line
        self.materials = materials or Materials()
        self.stranger: PrivateKey = ec.generate_private_key(ec.SECP256R1())
        """A key that no device knows."""
        self._fence: int | None = None
        self._generations = 0

    @property
    def http(self) -> HttpLine:
        """The line, where it is a network."""
        if not isinstance(self.line, HttpLine):
            raise NotTestable("the device is not on a network")
        return self.line

    @property
    def serial(self) -> SerialLine:
        """The line, where it is serial."""
        if not isinstance(self.line, SerialLine):
            raise NotTestable("the device is not on a serial line")
        return self.line

    def next_generation(self) -> int:
        """One that no succession made here has used. Raises NotTestable."""
        if self.materials.generation is None:
            raise NotTestable("no generation was given")
        self._generations += 1
        return self.materials.generation + self._generations - 1

    @property
    def signer(self) -> PrivateKey:
        """The grant key; a stranger's where there is none: then nothing past the keys can be asked."""
        return self.materials.grant_key or self.stranger

    # --- questions -----------------------------------------------------------------------------------------------

    async def info(self) -> Info:
        """What it says of itself. Raises Broken."""
        answer = await self.line.ask(Request.INFO, b"")
        if not answer.ok:
            raise Broken(f"info: {answer}")
        try:
            return dp.parse_info(answer.body)
        except dp.DeviceError as error:
            raise Broken(error.message) from error

    async def evidence(self, nonce: bytes | None = None) -> bytes:
        """Evidence, asked again while the device says "slow down"."""
        for _ in range(_SLOW_DOWN_TRIES):
            answer = await self.line.ask(Request.ATTEST, dp.attest_request(nonce or secrets.token_bytes(32)))
            if answer.ok:
                return answer.body
            if answer.code != ErrorCode.SLOW_DOWN:
                break
            await asyncio.sleep(_SLOW_DOWN_SECONDS)
        raise Broken(f"attest: {answer}")

    async def proof(self) -> Proof:
        """Evidence over a nonce of ours, opened; remembers the fence."""
        nonce = secrets.token_bytes(32)
        return self.open(await self.evidence(nonce), nonce)

    def open(self, evidence: bytes, nonce: bytes) -> Proof:
        """Open evidence over `nonce`. Raises Broken."""
        proof = opened(evidence, self.materials.anchor)
        if proof.token.nonce != nonce:
            raise Broken("the evidence answers another nonce than the one that was sent")
        self._fence = proof.token.fence
        return proof

    async def device_nonce(self, verb: Verb) -> bytes:
        """Its nonce for one grant. Raises Broken."""
        answer = await self.line.ask(Request.NONCE, dp.nonce_request(verb))
        if not answer.ok:
            raise Broken(f"nonce: {answer}")
        try:
            return dp.parse_nonce(answer.body).value
        except dp.DeviceError as error:
            raise Broken(error.message) from error

    async def fence(self) -> int:
        """The fence that it has stored, as attested."""
        if self._fence is None:
            await self.proof()
        return self._fence or 0

    # --- grants --------------------------------------------------------------------------------------------------

    async def install_grant(self, payload: bytes, **changes: Any) -> InstallGrant:
        """A grant that is right in everything but `changes`; those of ``released`` go into the release statement."""
        released = changes.pop("released", {})
        sign = changes.pop("release_signer", None) or self.materials.release_key or self.stranger
        info = await self.info()
        result = changes.get("result") or await self.result(payload)
        content = Release.model_validate(
            {
                "name": info.name or "conformance",
                "version": "conformance",
                "chip_id": info.chip_id,
                "revisions": [0, release.ANY_REVISION],
                "secure_version": info.efuse_secure_version,
                "sequence": self.materials.sequence,
                "measurements": [result],
                "image_size": len(payload),
            }
            | released
        )
        values = {
            "ueid": info.ueid,
            "device_nonce": changes.get("device_nonce") or await self.device_nonce(Verb.INSTALL),
            "grant_id": secrets.token_bytes(16),
            "fence": await self.fence() + 1,
            "result": result,
            "payload_sha256": hashlib.sha256(payload).digest(),
            "payload_size": len(payload),
            "release": statement.write(content, release.LABELS, release.CONTENT_TYPE, sign),
            "confirm_seconds": 120,
            "allow_downgrade": True,
        }
        return InstallGrant.model_validate({k: v for k, v in (values | changes).items() if v is not None})

    async def result(self, payload: bytes) -> Digest:
        """What the device will measure: for an image its measurement, for anything else a digest of its bytes."""
        alg = (await self.info()).measurement.alg
        if payload == self.materials.image:
            return image_digest(payload, alg)
        hashed = hashlib.sha256(payload) if alg == SHA_256 else hashlib.sha512(payload)
        return Digest(alg=alg, value=hashed.digest())

    async def running_grant(self, verb: Verb, **changes: Any) -> ConfirmGrant | RevertGrant | CancelGrant:
        """A confirm, revert or cancel grant that is right in everything but `changes`."""
        info = await self.info()
        grant_id = changes.get("grant_id")
        if grant_id is None and verb is Verb.CANCEL:
            grant_id = info.active_grant
        elif grant_id is None:
            grant_id = (await self.proof()).config.boot_id
        values: dict[str, Any] = {
            "ueid": info.ueid,
            "device_nonce": changes.get("device_nonce") or await self.device_nonce(verb),
            "grant_id": grant_id if grant_id and any(grant_id) else secrets.token_bytes(16),
            "fence": await self.fence(),
            "result": info.measurement,
        }
        kinds: dict[Verb, type[ConfirmGrant] | type[RevertGrant] | type[CancelGrant]] = {
            Verb.CONFIRM: ConfirmGrant,
            Verb.REVERT: RevertGrant,
            Verb.CANCEL: CancelGrant,
        }
        if verb is Verb.CONFIRM:
            values["second_nonce"] = secrets.token_bytes(32)
        return kinds[verb].model_validate(values | changes)

    async def send(self, grant: Grant, *, signer: PrivateKey | None = None) -> Answer:
        """Sign and hand over a grant."""
        return await self.send_bytes(grants.mint(grant, signer or self.signer), grant)

    async def send_bytes(self, data: bytes, grant: Grant | None = None) -> Answer:
        """Hand over the bytes of a grant; where it is accepted, its fence is remembered."""
        answer = await self.line.ask(Request.GRANT, data)
        if answer.ok and grant is not None:
            self._fence = grant.fence
        return answer

    def respelt(self, grant: Grant, labels: dict[int, Any], **how: Any) -> bytes:
        """The grant with some labels of its payload replaced (None: left out), or its envelope made otherwise."""
        payload = strict_loads(cose.parse(grants.mint(grant, self.signer), content_type=grants.CONTENT_TYPE).payload)
        if not isinstance(payload, dict):
            raise TypeError("a grant's payload is a map")
        payload = {k: v for k, v in (payload | labels).items() if v is not None}
        options: dict[str, Any] = {"content_type": grants.CONTENT_TYPE, "kid": keys.key_id(self.signer.public_key())}
        return cose.sign(dumps(payload), self.signer, **(options | how))

    def forged(self, grant: Grant) -> bytes:
        """The grant under the signer's key id, signed by a stranger."""
        message = cose.parse(grants.mint(grant, self.signer), content_type=grants.CONTENT_TYPE)
        kid = keys.key_id(self.signer.public_key())
        return cose.sign(message.payload, self.stranger, content_type=grants.CONTENT_TYPE, kid=kid)

    # --- installations -------------------------------------------------------------------------------------------

    @property
    def image(self) -> bytes:
        """The application to be installed."""
        if self.materials.image is None:
            raise NotTestable("no image was given")
        return self.materials.image

    async def grant_install(self, payload: bytes, **changes: Any) -> InstallGrant:
        """An install grant that the device takes. Raises Broken."""
        grant = await self.install_grant(payload, **changes)
        answer = await self.send(grant)
        if not answer.ok:
            raise Broken(f"a good install grant: {answer}, {answer.labels.get(-1)!r:.120}")
        return grant

    async def put(self, data: bytes, offset: int = 0) -> Answer:
        """Upload all that is left in one request."""
        seconds = len(data) / dp.FLOOR_BYTES_PER_SECOND + 30
        return await self.http.send("PUT", f"image?off={offset}", data, seconds=seconds)

    async def install(self, **changes: Any) -> InstallGrant:
        """Install the image and wait until it waits for its confirmation. Raises Broken."""
        before = await self.info()
        grant = await self.grant_install(self.image, **changes)
        answer = await self.put(self.image)
        if not answer.ok:
            raise Broken(f"the last byte of a good image: {answer}")
        await self.until(lambda info: info.bootseed != before.bootseed, "come back after the last byte")
        return grant

    async def unharmed(self, bootseed: bytes) -> None:
        """After a refused image: nothing was reset, and nothing is granted any more. Raises Broken."""
        info = await self.info()
        if info.bootseed != bootseed:
            raise Broken("it reset though it had refused the image")
        if info.active_grant is not None:
            raise Broken("the grant is still active after the image was refused")

    async def until(self, good: Callable[[Info], bool], what: str, seconds: float | None = None) -> Info:
        """Ask for `info` until it is `good`, at most `seconds` (None: as long as a boot may take). Raises Broken."""
        seconds = self.materials.boot_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        info = await self.info()
                        if good(info):
                            return info
                    except Silent:
                        pass
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise Broken(f"it did not {what} within {seconds:g} s") from error

    async def reset(self) -> Info:
        """Press the reset button, and wait until it is back. Raises NotTestable, Broken."""
        if self.materials.reset is None:
            raise NotTestable("nobody can press the reset button")
        before = await self.info()
        await self.line.close()
        await self.materials.reset()
        return await self.until(lambda info: info.bootseed != before.bootseed, "come back after a reset")

    async def settle(self) -> None:
        """Take the device back to rest: cancel what is received, revert what waits."""
        info = await self.info()
        if self.materials.grant_key is None:
            return
        if info.active_grant is not None:
            await self.send(await self.running_grant(Verb.CANCEL))
            return
        if info.slot_state not in PENDING or not isinstance(self.line, HttpLine):
            return
        if (await self.send(await self.running_grant(Verb.REVERT))).ok:
            await self.until(lambda new: new.bootseed != info.bootseed, "come back after revert")


def image_digest(image: bytes, alg: int) -> Digest:
    """An image's measurement in one algorithm. Raises NotTestable for one that has none."""
    parse_image(image)
    found = next((m for m in measure(image) if m.alg == alg), None)
    if found is None:
        raise NotTestable(f"the image has no measurement in algorithm {alg}")
    return Digest.model_validate({"alg": alg, "value": found.value})


def opened(evidence: bytes, anchor: PublicKey | None) -> Proof:
    """Open evidence; every signature must fit the key before it. Raises Broken."""
    try:
        parts = eat.parse_evidence(evidence)
        layers = [dice_chain.parse_certificate(data, algs=cose.ALL_ALGS) for data in parts.certificates[:2]]
        leaves = [dice_chain.parse_leaf(data, algs=cose.ALL_ALGS) for data in parts.certificates[2:]]
        if len(layers) != 2 or len(leaves) > 1:
            raise Broken(f"the chain has {len(parts.certificates)} certificates, expected 2 or 3")
        issuer = anchor
        chain: list[Certificate | LeafCertificate] = [*layers, *leaves]
        for link in chain:
            if issuer is not None:
                cose.verify(link.message, issuer)
            issuer = link.key
        token = cose.parse(parts.token, protected=eat.PROTECTED_HEADERS, unprotected=eat.UNPROTECTED_HEADERS)
        cose.verify(token, chain[-1].key)
        claims = eat.read_token(eat.decode_claims(token.payload))
        config = read_application_config(layers[1].configuration)
    except Reject as reject:
        raise Broken(f"the evidence does not hold: {reject}") from reject
    value = layers[1].code_hash
    measured = Digest.model_validate({"alg": SHA_256 if len(value) == 32 else SHA_512, "value": value})
    return Proof(claims, config, measured, tuple(link.key for link in chain))


def expect(answer: Answer, code: ErrorCode, when: str) -> None:
    """The device must refuse with exactly this code. Raises Broken."""
    if answer.ok or answer.code != code:
        raise Broken(f"{when}: {answer}; expected {int(code)} ({code.name})")
