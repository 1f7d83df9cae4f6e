# SPDX-License-Identifier: Apache-2.0
"""The verdict: does this evidence prove, now, what this device runs? Pure: everything it needs is in the context.

Rules, in the order in which they are checked: cheap before dear, MAC before signature, ours before theirs. The first
one broken ends the judgement; ``Verdict.trail`` names those that held and the one that did not.

1. ``envelope``: the evidence is at most 4,096 bytes and ``[1, anchor id, [certificates], token]``.
2. ``policy``: the device is enrolled and has a policy. No policy, no verdict: default deny.
3. ``nonce``: the token's one nonce is ours, for this device and audience, and fresh.
4. ``device``: the device is active, and the evidence names the anchor that is enrolled for it.
5. ``layers``: there are exactly the certificates that the policy's chain shape demands.
6. ``chain``: well-formed certificates, linked and signed from the enrolled anchor on (rules of ``dice_chain``), with
   well-formed descriptors; none of its keys is denied.
7. ``token``: signed by the last key of the chain. From here on the claims are authentic.
8. ``claims``: the token follows its profile; identity, maker and model are those enrolled; its software name is the
   certified one.
9. ``boot``: mode, authority, security eFuses and debug status are allowed in every layer. A device whose enrolled root
   of trust is SelfReported may be in mode NotConfigured and have a zero authority hash; any other must not, and must
   have all security eFuses locked, whatever mode the policy allows: that is what its tier means. Mode and eFuses must
   agree: Normal has all locked, NotConfigured secure boot off, any other mode secure boot on.
10. ``bootloader``: its name and code hash are accepted, and not denied.
11. ``application``: its measurement is the expected one, else acceptable by ``policy.acceptable_measurement``; its
    name is allowed; its partition table is one that the policy names, if it names any. With ``any_application``
    (identity before an update) none of this is checked, and the verdict says so.
12. ``versions``: security versions are at least the policy's and the floor's (the application's: unless
    ``any_application``).
13. ``counter``: the boot counter did not go back: else two devices share one identity.
14. ``installation``: the boot id is one of those expected; zeros, of an installation without one, never are. Then: it
    booted under the expected partition table. An expected application beside a table that neither policy nor context
    names leaves the table unproven.
15. ``slot``: the running slot is in one of the expected states.
16. ``data``: data images that the device measured equal the expected ones; those it did not measure are unproven, and
    refused where the policy requires all to be measured. Where nothing says which there must be, such a
    policy lists that as unproven.

Chains seen before: that ``layers``, ``chain``, ``bootloader``, and ``boot`` but for the debug status hold depends on the
chain, the anchor with its root of trust, and the policy alone. Once all four held, a ``ChainCache`` remembers it for
exactly these, and they are not judged again. A refusal is never remembered; nor is anything else: order, trail and verdict
are the same with a cache and without.

A root of trust below the policy's minimum does not reject: the device is judged by its own tier's rules, and the
verdict says ``proven_at_tier=False``. Such a verdict is never a success. A verdict counts only once its nonce has
been consumed: ``verify_once`` does both.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from attestation import cose, dice_cbor, dice_chain, eat, keys, nonce
from attestation.anchors import DeviceAnchor, DeviceState
from attestation.cbor import Value
from attestation.dice_chain import Chain, ChainCache, ChainKey, KnownChain
from attestation.eat import Token
from attestation.errors import Code, Reject
from attestation.keys import Alg
from attestation.policy import (
    Acceptance,
    Algorithm,
    AttestationPolicySpec,
    IdForm,
    LeafSigning,
    Mode,
    RequireMeasured,
    RootOfTrust,
    acceptable_measurement,
    is_denied,
    policy_hash,
)
from attestation.replay import SingleUse
from attestation.verdict import SINGLE_USE, Context, DeviceClaims, ExactNonce, IssuedNonce, Step, Verdict

__all__ = [
    "ChainCache",
    "Context",
    "DeviceClaims",
    "ExactNonce",
    "IssuedNonce",
    "Step",
    "Verdict",
    "consumed",
    "verify",
    "verify_once",
]

_ALGS: Final = {Algorithm.ES256: Alg.ES256, Algorithm.ES384: Alg.ES384, Algorithm.EDDSA: Alg.EDDSA}
_EAT_TYPES: Final = ("application/eat+cwt", 263)
"""Media type and CoAP content format of an EAT in CWT form (RFC 9782)."""


def verify(evidence: bytes, context: Context, *, chains: ChainCache | None = None) -> Verdict:
    """Judge evidence by the rules of this module.

    Args:
        evidence: as the device sent it.
        context: everything else.
        chains: chains that held before, so that only the token's signature remains; None judges everything anew.

    Returns:
        The verdict. Bad evidence never raises: it is a verdict with a code.
    """
    judge = _Judge(evidence, context, chains)
    trail: list[Step] = []
    for name, rule in _RULES:
        try:
            trail.append(Step(name, True, rule(judge)))
        except Reject as reject:
            trail.append(Step(name, False, str(reject)))
            return judge.verdict(tuple(trail), reject)
    return judge.verdict(tuple(trail), None)


def verify_once(
    evidence: bytes, context: Context, single_use: SingleUse, *, chains: ChainCache | None = None
) -> Verdict:
    """``verify``, and if it accepts consume the nonce; a used nonce, or a store that cannot tell, rejects.

    Args:
        evidence: as the device sent it.
        context: everything else.
        single_use: where used nonces are remembered.
        chains: as for ``verify``.
    """
    return consumed(verify(evidence, context, chains=chains), single_use, now=context.now)


def consumed(verdict: Verdict, single_use: SingleUse, *, now: int) -> Verdict:
    """The second half of ``verify_once``, for callers that look at a verdict before they let it use the nonce up.

    Args:
        verdict: of ``verify``; one that does not accept leaves the nonce as it is.
        single_use: where used nonces are remembered.
        now: Unix time in seconds.
    """
    if not verdict.accepted or verdict.nonce is None:
        return verdict
    try:
        single_use.consume(verdict.nonce, until=verdict.nonce_until, now=now)
    except Reject as reject:
        return verdict.refused(SINGLE_USE, reject)
    return verdict._replace(trail=(*verdict.trail, Step(SINGLE_USE, True, "the nonce is used up")))


class _Judge:
    """The state of one judgement. Each method is one rule: it returns what it found, or raises Reject."""

    device: DeviceAnchor
    policy: AttestationPolicySpec
    envelope: eat.Evidence
    message: cose.Sign1
    claims: dict[int | str, Value]
    algs: frozenset[Alg]
    chain: Chain
    boot: str
    token: Token
    known: KnownChain | None = None
    authentic: bool = False
    """Whether the claims are: chain and token held, and name this device."""
    acceptance: Acceptance | None = None
    answered: bytes | None = None
    until: int = 0

    def __init__(self, evidence: bytes, context: Context, chains: ChainCache | None) -> None:
        self.evidence = evidence
        self.chains = chains
        self.context = context
        self.unproven: list[str] = []

    def check_envelope(self) -> str:
        self.envelope = eat.parse_evidence(self.evidence)
        return f"{len(self.evidence)} bytes, {len(self.envelope.certificates)} certificates"

    def check_policy(self) -> str:
        if self.context.device is None:
            raise Reject(Code.DEVICE_UNKNOWN, "the device is not enrolled: enroll it first")
        if self.context.policy is None:
            raise Reject(Code.POLICY_MISSING, f"there is no policy {self.context.device.policy!r}: create it")
        self.device, self.policy = self.context.device, self.context.policy
        return f"policy {self.device.policy}"

    def check_nonce(self) -> str:
        self.algs = frozenset(map(_ALGS.__getitem__, self.policy.algorithms))
        self.message = cose.parse(
            self.envelope.token,
            tagging=cose.Tagging.EITHER,
            protected=eat.PROTECTED_HEADERS,
            unprotected=eat.UNPROTECTED_HEADERS,
            algs=self.algs,
            limit=eat.EVIDENCE_LIMIT,
        )
        for label in (cose.CONTENT_TYPE, cose.TYP):
            if label in self.message.protected and self.message.protected[label] not in _EAT_TYPES:
                raise Reject(Code.COSE_CONTENTTYPE, f"header {label} of the token does not say application/eat+cwt")
        self.claims = eat.decode_claims(self.message.payload)
        value, expected, now = eat.nonce_of(self.claims), self.context.nonce, self.context.now
        ttl = self.policy.nonce_ttl_seconds
        if isinstance(expected, ExactNonce):
            if not hmac.compare_digest(value, expected.value):
                raise Reject(Code.EAT_NONCE, "the token answers another nonce")
            self.until = now + ttl
        else:
            audience, ueid = expected.audience, self.device.ueid
            self.until = nonce.check(expected.ring, value, ueid, audience, now=now, ttl=ttl)
        self.answered = value
        return "ours and fresh"

    def check_device(self) -> str:
        if self.device.state is DeviceState.SUSPENDED:
            raise Reject(Code.DEVICE_SUSPENDED, "the device is suspended")
        if self.device.state is DeviceState.REVOKED:
            raise Reject(Code.DEVICE_REVOKED, "the device is revoked")
        expected = keys.dice_id(self.device.key, compressed=True) if self._compressed else self.device.anchor_id
        if self.envelope.anchor_id != expected:
            found = self.envelope.anchor_id.hex()
            raise Reject(Code.ANCHOR_ID, f"the evidence names anchor {found}, enrolled is {expected.hex()}")
        if self.chains is not None:
            self.known = self.chains.find(self._chain_key)
        return f"active, anchor {expected.hex()}"

    def check_layers(self) -> str:
        if self.known is None:
            self._check_layers()
        return "bootloader and application"

    def _check_layers(self) -> None:
        count, expected = len(self.envelope.certificates), 2
        if count > dice_cbor.MAX_CERTIFICATES:
            raise Reject(Code.CHAIN_LEN, f"{count} certificates, at most {dice_cbor.MAX_CERTIFICATES} are read")
        if self.policy.leaf_signing is LeafSigning.ATTESTATION_KEY:
            if count == expected:
                raise Reject(Code.LEAF_MISSING, "the chain has no certificate for the attestation key")
            expected += 1
        if count != expected:
            raise Reject(Code.REF_LAYERS, f"{count} certificates, the policy demands exactly {expected}")

    def check_chain(self) -> str:
        self.chain = self.known.chain if self.known is not None else self._verified_chain()
        return "linked and signed from the enrolled anchor"

    def _verified_chain(self) -> Chain:
        chain = dice_chain.verify(
            self.envelope.certificates,
            self.device,
            self.envelope.anchor_id,
            algs=self.algs,
            compressed_ids=self._compressed,
        )
        if self.policy.deny.keys:
            denied = frozenset(self.policy.deny.keys)
            for key_id in (*map(keys.dice_id, self._keys_of(chain)), self.envelope.anchor_id, *chain.subjects):
                if key_id.hex() in denied:
                    raise Reject(Code.CHAIN_DENIED, f"key {key_id.hex()} is on the policy's deny list")
        for layer in (chain.bootloader, chain.application):
            if layer.profile_name is not None:
                raise Reject(Code.DICE_PROFILE, f"profile name {layer.profile_name!r:.40}, expected none")
        return chain

    def _keys_of(self, chain: Chain) -> tuple[keys.PublicKey, ...]:
        """Where the chain's ids are of compressed points, its keys: a denied key is denied under its usual id, too."""
        if not self._compressed:
            return ()
        return self.device.key, chain.bootloader.key, chain.application.key, chain.leaf_key

    def check_token(self) -> str:
        kid, leaf_id = self.message.kid, self.chain.leaf_id
        if kid is not None and kid != leaf_id:
            raise Reject(Code.LEAF_KID, f"the token names key {kid.hex():.80}, the chain {leaf_id.hex()}")
        cose.verify(self.message, self.chain.leaf_key)
        return "signed by the last key of the chain"

    def check_claims(self) -> str:
        self.token = token = eat.read_token(self.claims)
        if token.ueid != self.device.ueid:
            raise Reject(Code.EAT_UEID, f"the token is from {token.ueid.hex()}, enrolled is {self.device.ueid.hex()}")
        self.authentic = True
        if self.device.oemid is not None and token.oemid != self.device.oemid:
            raise Reject(Code.EAT_HARDWARE, "oemid differs from the enrolled one")
        if self.device.hwmodel is not None and token.hwmodel != self.device.hwmodel:
            raise Reject(Code.EAT_HARDWARE, "hwmodel differs from the enrolled one")
        certified = self.chain.app_config.name
        if token.name != certified:
            raise Reject(Code.EAT_NAME, f"the token names {token.name!r}, the certificate {certified!r}")
        return f"device {token.ueid.hex()}"

    def check_boot(self) -> str:
        self.boot = self.known.boot if self.known is not None else self._checked_boot()
        debug_status = self.token.debug_status
        if debug_status not in self.policy.debug_status:
            raise Reject(Code.EAT_DBGSTAT, f"debug status {debug_status} is not allowed by the policy")
        return f"{self.boot}, debug {debug_status}"

    def _checked_boot(self) -> str:
        """What the chain decides of it alone."""
        self_reported = self.device.tier is RootOfTrust.SELF_REPORTED
        for name, layer in self._layers():
            if not (self_reported if layer.mode is Mode.NOT_CONFIGURED else layer.mode in self.policy.modes):
                raise Reject(Code.DICE_MODE, f"the {name} runs in mode {layer.mode}, which is not allowed here")
            self._check_authority(name, layer.authority_hash, zero_allowed=self_reported)
        self._check_efuses(self.chain.app_config.security_efuses, must_be_locked=not self_reported)
        return f"{self.device.tier}, mode {self.chain.application.mode}"

    def _layers(self) -> tuple[tuple[str, dice_cbor.Certificate], ...]:
        return ("bootloader", self.chain.bootloader), ("application", self.chain.application)

    def _check_authority(self, name: str, authority: bytes, *, zero_allowed: bool) -> None:
        if not any(authority):
            if not zero_allowed:
                raise Reject(Code.REF_AUTHORITY, f"the {name} has a zero authority hash: no verified boot")
        elif authority not in self.policy.sets.authorities:
            raise Reject(Code.REF_AUTHORITY, f"authority {authority.hex()} of the {name} is not in the policy")

    def _check_efuses(self, fuses: int, *, must_be_locked: bool) -> None:
        secure_boot = bool(fuses & dice_cbor.EFUSE_SECURE_BOOT)
        locked = fuses & dice_cbor.EFUSES_LOCKED == dice_cbor.EFUSES_LOCKED
        if must_be_locked and not locked:
            raise Reject(
                Code.REF_EFUSES, f"enrolled as {self.device.tier}, but security eFuses are open ({fuses:#010b})"
            )
        for name, layer in self._layers():
            if layer.mode is Mode.NORMAL and not locked:
                raise Reject(
                    Code.REF_EFUSES, f"the {name} runs in mode Normal with open security eFuses ({fuses:#010b})"
                )
            if (layer.mode is Mode.NOT_CONFIGURED) is secure_boot:
                state = "on" if secure_boot else "off"
                raise Reject(Code.REF_EFUSES, f"the {name} runs in mode {layer.mode} although secure boot is {state}")

    def check_bootloader(self) -> str:
        if self.known is not None:
            return self.known.bootloader
        found = self._checked_bootloader()
        if self.chains is not None:
            self.chains.remember(self._chain_key, KnownChain(self.chain, self.boot, found))
        return found

    def _checked_bootloader(self) -> str:
        name, expected = self.chain.boot_config.name, self.policy.bootloader.name
        measurement = self.chain.bootloader_measurement
        if name != expected:
            raise Reject(Code.REF_LAYERS, f"the first layer is {name!r}, expected {expected!r}")
        if is_denied(measurement, self.policy):
            raise Reject(Code.REF_DENIED, f"bootloader {measurement} is on the deny list")
        if measurement not in self.policy.sets.bootloaders:
            raise Reject(Code.REF_CODE, f"bootloader {measurement} is not in the policy")
        return str(measurement)

    def check_application(self) -> str:
        context, policy, config, measurement = self.context, self.policy, self.chain.app_config, self.chain.measurement
        found = f"{config.name} {measurement}"
        if context.any_application:
            self.unproven.append("that the running application is an acceptable one")
            return f"not judged: {found}"
        self.acceptance = acceptable_measurement(measurement, policy, context.last_confirmed, context.pinned)
        if self.acceptance is Acceptance.DENIED:
            raise Reject(Code.REF_DENIED, f"{found} is on the policy's deny list")
        if context.expected is not None and measurement not in context.expected:
            wanted = ", ".join(sorted(map(str, context.expected)))
            raise Reject(Code.REF_CODE, f"the device runs {found}, expected is {wanted}")
        if not self.acceptance.ok:
            raise Reject(Code.REF_CODE, f"{found} is neither in the policy nor confirmed nor pinned by a task")
        if policy.application.names and config.name not in policy.application.names:
            raise Reject(Code.REF_LAYERS, f"application {config.name!r} is not one the policy allows")
        if policy.partition_tables and config.partition_table.hex() not in policy.partition_tables:
            raise Reject(Code.REF_PARTITIONS, f"partition table {config.partition_table.hex()} is not in the policy")
        return f"{found}, accepted as {self.acceptance}"

    def check_versions(self) -> str:
        boot_minimum = self.policy.bootloader.min_security_version
        boot_version = self.chain.boot_config.security_version
        if boot_minimum is not None and (boot_version is None or boot_version < boot_minimum):
            raise Reject(Code.ROLLBACK, f"security version {boot_version} of the bootloader is below {boot_minimum}")
        version = self.chain.app_config.security_version
        floor = max(self.policy.application.min_security_version, self.context.floors.security_version)
        if not self.context.any_application and version < floor:
            raise Reject(Code.ROLLBACK, f"security version {version} of the application is below its floor {floor}")
        return f"security version {version}, floor {floor}"

    def check_counter(self) -> str:
        count, floor = self.token.boot_count, self.context.floors.boot_count
        if count < floor:
            raise Reject(Code.CLONE_BOOTCOUNT, f"boot counter {count}, but {floor} was seen: suspend the device")
        return f"boot {count}"

    def check_installation(self) -> str:
        boot_id, expected = self.chain.app_config.boot_id, self.context.boot_ids
        if expected is not None and (not any(boot_id) or boot_id not in expected):
            wanted = ", ".join(sorted(value.hex() for value in expected)) or "none"
            raise Reject(Code.BOOT_ID, f"boot id {boot_id.hex()}, expected {wanted}: another installation booted")
        self._check_table()
        return f"{'no demand: ' if expected is None else ''}boot id {boot_id.hex()}"

    def _check_table(self) -> None:
        table, expected = self.chain.app_config.partition_table, self.context.partition_table
        if expected is not None and table != expected:
            found, wanted = table.hex()[:12], expected.hex()[:12]
            raise Reject(Code.REF_PARTITIONS, f"it booted under partition table {found}..., expected is {wanted}...")
        if expected is None and self.context.expected is not None and not self.policy.partition_tables:
            self.unproven.append("the partition table: nothing says which it must be")

    def check_slot(self) -> str:
        state, expected = self.token.slot_state, self.context.slot_states
        if expected is not None and state not in expected:
            wanted = ", ".join(sorted(value.name for value in expected))
            raise Reject(Code.SLOT_STATE, f"the running slot is {state.name}, expected {wanted}")
        return f"slot {self.chain.app_config.slot:#04x} is {state.name}"

    def check_data(self) -> str:
        measured, strict = self.token.data_images, self.policy.require_measured is RequireMeasured.ALL
        if strict and self.context.data_images is None:
            self.unproven.append("that all data images are measured: nothing says which there must be")
        for label, digests in (self.context.data_images or {}).items():
            if label in measured and digests:
                if measured[label] not in digests:
                    raise Reject(Code.REF_DATA, f"data image {label!r} is {measured[label]}, which is not expected")
            elif strict:
                raise Reject(Code.REF_DATA, f"data image {label!r} was not measured, and the policy requires all")
            else:
                self.unproven.append(f"data image {label}")
        return f"{len(measured)} measured"

    def verdict(self, trail: tuple[Step, ...], reject: Reject | None) -> Verdict:
        policy, device = self.context.policy, self.context.device
        strong = policy is not None and device is not None and device.tier.at_least(policy.min_root_of_trust)
        if not strong and policy is not None and device is not None:
            self.unproven.insert(0, f"a root of trust of {policy.min_root_of_trust}: the device has {device.tier}")
        accepted = reject is None
        return Verdict(
            accepted=accepted,
            code=reject.code if reject else None,
            message=reject.message if reject else "the evidence holds",
            trail=trail,
            unproven=tuple(self.unproven),
            claims=self._claims() if self.authentic else None,
            acceptance=self.acceptance,
            tier=device.tier if device else None,
            proven_at_tier=accepted and strong,
            nonce=self.answered,
            nonce_until=self.until,
            policy_hash=policy_hash(policy) if policy else None,
            evidence_sha256=hashlib.sha256(self.evidence).digest(),
        )

    def _claims(self) -> DeviceClaims:
        chain, config, application = self.chain, self.chain.app_config, self.chain.application
        return DeviceClaims(
            ueid=self.device.ueid,
            bootloader=chain.bootloader_measurement,
            measurement=chain.measurement,
            application=config.name,
            secure_version=config.security_version,
            boot_id=config.boot_id,
            slot=config.slot,
            partition_table=config.partition_table,
            mode=application.mode,
            authority_hash=application.authority_hash,
            security_efuses=config.security_efuses,
            token=self.token,
        )

    @property
    def _chain_key(self) -> ChainKey:
        return self.envelope.certificates, self.device.ueid, self.device.tier, policy_hash(self.policy)

    @property
    def _compressed(self) -> bool:
        return self.policy.id_form is IdForm.COMPRESSED


_RULES: Final[tuple[tuple[str, Callable[[_Judge], str]], ...]] = (
    ("envelope", _Judge.check_envelope),
    ("policy", _Judge.check_policy),
    ("nonce", _Judge.check_nonce),
    ("device", _Judge.check_device),
    ("layers", _Judge.check_layers),
    ("chain", _Judge.check_chain),
    ("token", _Judge.check_token),
    ("claims", _Judge.check_claims),
    ("boot", _Judge.check_boot),
    ("bootloader", _Judge.check_bootloader),
    ("application", _Judge.check_application),
    ("versions", _Judge.check_versions),
    ("counter", _Judge.check_counter),
    ("installation", _Judge.check_installation),
    ("slot", _Judge.check_slot),
    ("data", _Judge.check_data),
)
