# SPDX-License-Identifier: Apache-2.0
"""Every numbered attack that the verifier must refuse, by number, with the code that it must be refused with.

A row is (number, what is done, expected code, what to run); "accepted" where the right answer is yes (26: high-S).
Each attack is the honest device with exactly one lie, signed by the right key wherever a signature is not the lie.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation import clones, cose, dice_cbor, eat, keys, mint, nonce
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.cbor import dumps
from attestation.directory import TrustDirectory, parse_policy
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey
from attestation.policy import IdForm, LeafSigning, RootOfTrust
from attestation.replay import InMemorySingleUse
from attestation.verifier import IssuedNonce, Verdict, verify, verify_once
from tests.unit.attestation import test_dice_x509 as x509_zoo
from tests.unit.attestation.test_verifier_directory import spec
from tests.unit.attestation.world import AUDIENCE, NOW, RING, Minted, context, digest, judge, policy, private_key

D = Minted()
UDS, BOOT, APP = (D.key(name) for name in ("uds", "boot", "app"))
OTHER = Minted(seed=b"device two")
STRANGER = private_key(Alg.ES256, b"stranger")
HEADER, CLAIMS = cose.parse(D.token()).protected_bytes, cose.parse(D.token()).payload
SIGNATURE = cose.parse(D.token()).signature
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
POINT = keys.to_cose(APP.public_key())
ACCEPTED = "accepted"
Run = Callable[[], Any]
ATTACKS: list[tuple[int, str, str, Run]] = []


def attack(number: int, name: str, code: str, run: Run) -> None:
    ATTACKS.append((number, name, code, run))


def outcome(run: Run) -> str:
    """The code of a verdict or of the Reject that is raised."""
    try:
        result = run()
    except Reject as reject:
        return reject.code.value
    assert isinstance(result, Verdict), result
    return ACCEPTED if result.code is None else result.code.value


def token(changes: dict[Any, Any] | None = None, key: PrivateKey | None = None) -> Run:
    """A token with these claims changed, under a valid signature."""
    return lambda: judge(D, D.evidence(token=D.token(changes, key)))


def payload(data: bytes) -> Run:
    """A token with this payload, under a valid signature."""
    return lambda: judge(D, D.evidence(token=cose.sign(data, APP)))


def raw(data: bytes) -> Run:
    """These bytes in the token's place."""
    return lambda: judge(D, D.evidence(token=data))


def message(protected: Any = HEADER, outer: Any = None, content: Any = CLAIMS, signature: Any = SIGNATURE) -> Run:
    return raw(dumps([protected, outer or {}, content, signature]))


def certificate(changes: dict[Any, Any], number: int = 1) -> Run:
    """One certificate with these claims changed, signed by the right key."""

    def run() -> Verdict:
        chain = D.chain()
        chain[number] = D.certificate(number, changes)
        return judge(D, D.evidence(chain))

    return run


def chain(*certificates: bytes) -> Run:
    return lambda: judge(D, D.evidence(list(certificates)))


def device(**changes: Any) -> Run:
    """Another device state, honestly attested."""
    return lambda: judge(replace(D, **changes))


def key(changes: dict[int, Any]) -> Run:
    """The application's COSE_Key with these fields changed."""
    fields = {label: value for label, value in {**POINT, **changes}.items() if value is not None}
    return certificate({dice_cbor.SUBJECT_PUBLIC_KEY: dumps(fields)})


def signed_over(structure: list[Any]) -> Run:
    """A token whose signature covers this instead of the Sig_structure."""
    return message(signature=cose.sign_bytes(APP, dumps(structure)))


def descriptor(data: bytes) -> Run:
    hashed = hashlib.sha512(data).digest()
    return certificate({dice_cbor.CONFIGURATION_DESCRIPTOR: data, dice_cbor.CONFIGURATION_HASH: hashed})


def asked(value: bytes, **changes: Any) -> Run:
    """The token answers this nonce."""
    return lambda: judge(D, D.evidence(token=D.token({eat.NONCE: value})), **changes)


# CBOR
attack(1, "indefinite map", "cbor.indefinite", payload(b"\xbf\xff"))
attack(1, "indefinite array", "cbor.indefinite", raw(b"\x9f\xff"))
attack(1, "indefinite byte string", "cbor.indefinite", payload(b"\xa1\x0a\x5f\x41\x00\xff"))
attack(2, "claims", "cbor.dupkey", payload(b"\xa2\x0a\x40\x0a\x40"))
attack(2, "protected", "cbor.dupkey", message(b"\xa2\x01\x26\x01\x26"))
attack(2, "certificate", "cbor.dupkey", chain(D.chain()[0], cose.sign(b"\xa2\x01\x60\x01\x60", BOOT)))
attack(2, "descriptor", "cbor.dupkey", descriptor(b"\xa2" + dumps({-70002: "x"})[1:] * 2))
attack(3, "integer", "cbor.nonminimal", payload(b"\xa1\x18\x0a\x40"))
attack(3, "length", "cbor.nonminimal", payload(b"\xa1\x0a\x58\x01\x00"))
attack(4, "token", "cbor.trailing", raw(D.token() + b"\x00"))
attack(4, "protected", "cbor.trailing", message(HEADER + b"\x00"))
attack(4, "claims", "cbor.trailing", payload(CLAIMS + b"\x00"))
attack(5, "100,000 levels", "size", lambda: judge(D, b"\x81" * 100_000))
attack(5, "4,000 levels", "cbor.depth", lambda: judge(D, b"\x81" * 4000))
attack(6, "length 2^64 - 1", "cbor.eof", payload(b"\x5b" + b"\xff" * 8))
attack(6, "2^63 items", "cbor.eof", payload(b"\x9b\x80" + bytes(7)))
attack(7, "1 MiB", "size", lambda: judge(D, bytes(1 << 20)))
for tag in (b"\xc0", b"\xc1", b"\xc2", b"\xc4", b"\xc5", b"\xd8\x1c", b"\xd8\x1d", b"\xd8\x23"):
    attack(8, f"tag {tag.hex()}", "cbor.tag", payload(b"\xa1\x0a" + tag + b"\x82\x01\x01"))
attack(8, "the decimal fraction that took 42 s", "cbor.tag", payload(bytes.fromhex("c4821a000fffff01")))
attack(9, "invalid UTF-8", "cbor.utf8", payload(b"\xa1\x0a\x61\xff"))
attack(10, "NaN", "cbor.float", payload(b"\xa1\x0a\xf9\x7e\x00"))
attack(10, "time as float", "cbor.float", payload(b"\xa1\x06\xfb\x41\xda\x00\x00\x00\x00\x00\x00"))
attack(11, "text key", "eat.structure", token({"nonce": b"x"}))
attack(11, "boolean key", "cbor.key", payload(b"\xa1\xf5\x00"))
attack(12, "empty evidence", "size", lambda: judge(D, b""))
attack(12, "empty token", "size", raw(b""))
attack(12, "empty claims", "size", payload(b""))

# COSE
attack(13, "empty protected", "cose.noprotected", message(b"", {1: -7}))
attack(13, "empty map as protected", "cose.noprotected", message(b"\xa0", {1: -7}))
for value in (0, "ES256", -65535, 5):
    attack(14, f"alg {value!r}", "cose.alg", message(dumps({1: value})))
attack(14, "no alg", "cose.alg", message(dumps({4: b"x"})))
attack(15, "ES256 key, EdDSA message", "cose.keyalg", token(key=private_key(Alg.EDDSA, b"x")))
attack(
    15,
    "EdDSA key, ES256 message",
    "cose.keyalg",
    lambda: judge(E, E.evidence(token=E.token(key=STRANGER))) if (E := Minted(alg=Alg.EDDSA)) else None,
)
attack(16, "alg in both headers", "cose.duplabel", message(outer={1: -7}))
attack(17, "crit protected", "cose.crit", message(dumps({1: -7, 2: [1]})))
attack(17, "crit unprotected", "cose.crit", message(outer={2: [1]}))
for prefix in (b"\xd1", b"\xd8\x62", b"\xd9\x02\x59", b"\xd9\x02\x5a", b"\xd2\xd2"):
    attack(18, f"tag {prefix.hex()}", "cose.tag", raw(prefix + D.token()))
attack(18, "bare map", "cose.structure", raw(CLAIMS))
attack(18, "five elements", "cose.structure", raw(dumps([HEADER, {}, CLAIMS, SIGNATURE, b""])))
attack(19, "tagged certificate", "cose.tag", chain(b"\xd2" + D.chain()[0], D.chain()[1]))
attack(20, "no payload", "cose.detached", message(content=None))
attack(20, "text payload", "cose.detached", message(content="x"))
attack(21, "context Signature", "sig.invalid", signed_over(["Signature", HEADER, b"", CLAIMS]))
attack(22, "external_aad", "sig.invalid", signed_over(["Signature1", HEADER, b"x", CLAIMS]))
for size in (0, 63, 65):
    attack(23, f"{size} bytes", "sig.length", message(signature=SIGNATURE.ljust(65, b"\0")[:size]))
DER = encode_dss_signature(int.from_bytes(SIGNATURE[:32], "big"), int.from_bytes(SIGNATURE[32:], "big"))
attack(23, "DER", "sig.length", message(signature=DER))
for r, s in ((0, 1), (1, 0), (ORDER, 1), (1, ORDER)):
    pair = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    attack(24, f"r {r:.1e} s {s:.1e}", "sig.range", message(signature=pair))


def s_plus_l() -> Verdict:
    ed = Minted(alg=Alg.EDDSA)
    parsed = cose.parse(ed.token())
    more = int.from_bytes(parsed.signature[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    signature = parsed.signature[:32] + more.to_bytes(32, "little")
    return judge(ed, ed.evidence(token=dumps([parsed.protected_bytes, {}, parsed.payload, signature])))


def high_s() -> bytes:
    s = ORDER - int.from_bytes(SIGNATURE[32:], "big")
    return D.evidence(token=dumps([HEADER, {}, CLAIMS, SIGNATURE[:32] + s.to_bytes(32, "big")]))


def replayed(first: bytes, second: bytes) -> Verdict:
    used = InMemorySingleUse()
    assert verify_once(first, context(D), used).accepted
    return verify_once(second, context(D), used)


attack(25, "S + L", "sig.invalid", s_plus_l)
attack(26, "high S is genuine", ACCEPTED, lambda: judge(D, high_s()))
attack(26, "high S as a replay", "replay", lambda: replayed(D.evidence(), high_s()))

# Keys
attack(27, "private part", "key.private", key({-4: bytes(32)}))
attack(28, "X25519", "key.curve", key({1: 1, -1: 4, -3: None}))
attack(28, "P-521", "key.curve", key({-1: 3}))
attack(28, "secp256k1", "key.curve", key({-1: 8}))
attack(29, "off the curve", "key.point", key({-3: bytes(31) + b"\x01"}))
attack(30, "short x", "key.length", key({-2: bytes(31)}))
attack(30, "long x", "key.length", key({-2: bytes(33)}))
attack(31, "compressed y", "key.length", key({-3: True}))
attack(32, "symmetric", "key.type", key({1: 4}))
attack(33, "only sign", "key.ops", key({4: [1]}))
SMALL = dumps({1: 1, -1: 6, -2: b"\x01" + bytes(31)})
attack(34, "in a certificate", "key.smallorder", certificate({dice_cbor.SUBJECT_PUBLIC_KEY: SMALL}))
attack(34, "at enrolment", "key.smallorder", lambda: keys.from_cose(SMALL))


def unprovisioned(alg: Alg) -> Run:
    zero = mint.signing_key(bytes(32), alg).public_key()
    return lambda: DeviceAnchor(keys.ueid(zero), zero, RootOfTrust.SIGNED_BOOT, "default")


for alg in Alg:
    attack(35, f"enrolled with {alg.name}", "key.unprovisioned", unprovisioned(alg))
ZERO = mint.signing_key(bytes(32), Alg.ES256)
attack(
    35,
    "in a certificate",
    "key.unprovisioned",
    chain(
        mint.certificate(UDS, ZERO.public_key(), D.layers()[0]), mint.certificate(ZERO, APP.public_key(), D.layers()[1])
    ),
)


def unprovisioned_layer_with_compressed_ids() -> Verdict:
    def linked(number: int, issuer: PrivateKey, subject: PrivateKey) -> bytes:
        claims = mint.certificate_claims(issuer.public_key(), subject.public_key(), D.layers()[number])
        for label, key in ((dice_cbor.ISSUER, issuer), (dice_cbor.SUBJECT, subject)):
            claims[label] = keys.dice_id(key.public_key(), compressed=True).hex()
        return mint.sign_certificate(claims, issuer)

    chain = [linked(0, UDS, ZERO), linked(1, ZERO, APP)]
    evidence = mint.evidence(keys.dice_id(UDS.public_key(), compressed=True), chain, D.token())
    return judge(D, evidence, policy=policy(D, id_form=IdForm.COMPRESSED))


attack(35, "in a certificate, ids of compressed points", "key.unprovisioned", unprovisioned_layer_with_compressed_ids)

# Chain
FIRST, SECOND = D.chain()
UDS_ID = keys.dice_id(UDS.public_key()).hex()
attack(36, "swapped", "chain.issuer", chain(SECOND, FIRST))
attack(36, "missing", "ref.layers", chain(SECOND))
attack(36, "duplicated", "chain.issuer", chain(FIRST, FIRST))
attack(36, "empty", "chain.len", chain())
attack(
    37,
    "signed by another device's anchor",
    "sig.invalid",
    chain(OTHER.certificate(0, {dice_cbor.ISSUER: UDS_ID}), OTHER.chain()[1]),
)
attack(37, "names its own anchor", "anchor.id", lambda: verify(OTHER.evidence(token=D.token()), context(D)))


def self_made() -> Verdict:
    root = mint.certificate_claims(STRANGER.public_key(), STRANGER.public_key(), D.layers()[0])
    root[dice_cbor.ISSUER] = UDS_ID
    first = mint.sign_certificate(root, STRANGER)
    second = mint.certificate(STRANGER, APP.public_key(), D.layers()[1])
    return judge(D, D.evidence([first, second]))


attack(38, "carries its own root", "sig.invalid", self_made)
attack(39, "issuer is not the previous subject", "chain.issuer", certificate({dice_cbor.ISSUER: "00" * 20}))
attack(40, "subject is not the key's id", "dice.subjectid", certificate({dice_cbor.SUBJECT: "00" * 20}))
LOOP = mint.certificate(BOOT, UDS.public_key(), D.layers()[1])
attack(41, "the anchor's key again", "chain.repeat", chain(FIRST, LOOP))
attack(42, "five certificates", "chain.len", chain(*[FIRST] * 5))
EXTRA = mint.certificate(APP, STRANGER.public_key(), D.layers()[1])
attack(42, "one layer more", "ref.layers", chain(FIRST, SECOND, EXTRA))
attack(
    43,
    "cut off, token by the inner key",
    "ref.layers",
    lambda: judge(D, D.evidence([FIRST], D.token(key=BOOT))),
)
for name, usage in (("digitalSignature", b"\x01"), ("both", b"\x21"), ("none", None), ("X.509", b"\x04")):
    attack(44, name, "dice.keyusage", certificate({dice_cbor.KEY_USAGE: usage}))
attack(44, "big-endian", "dice.keyusage", certificate({dice_cbor.KEY_USAGE: b"\x00\x20"}))


def in_x509(first: bytes) -> Run:
    return lambda: judge(D, D.evidence([first, D.x509_chain()[1]]))


for name, (data, code) in x509_zoo.BAD.items():
    if data:
        attack(45, f"X.509 {name}", code if len(data) <= 2048 else "size", in_x509(data))
attack(
    45,
    "X.509 path length",
    "dice.x509.pathlen",
    in_x509(mint.x509_certificate(UDS, BOOT.public_key(), D.layers()[0], path_length=0)),
)
for mode in (0, 2, 3):
    attack(46, f"application in mode {mode}", "dice.mode", device(mode1=mode))
    attack(46, f"only the bootloader in mode {mode}", "dice.mode", device(mode0=mode))
for name, bad_mode in (("7", b"\x07"), ("two bytes", b"\x01\x01"), ("integer", 1), ("missing", None)):
    attack(46, f"mode {name}", "dice.mode.structure", certificate({dice_cbor.MODE: bad_mode}))
for name, code_hash in (("missing", None), ("16 bytes", bytes(16)), ("text", "a" * 64)):
    attack(47, name, "dice.hash", certificate({dice_cbor.CODE_HASH: code_hash}))
attack(47, "unequal sizes", "dice.hash", certificate({dice_cbor.AUTHORITY_HASH: bytes(32)}))
attack(48, "wrong", "dice.confighash", certificate({dice_cbor.CONFIGURATION_HASH: bytes(64)}))
attack(48, "left out", "dice.confighash", certificate({dice_cbor.CONFIGURATION_HASH: None}))
attack(
    48,
    "descriptor swapped",
    "dice.confighash",
    certificate({dice_cbor.CONFIGURATION_DESCRIPTOR: Minted(boot_id=bytes(16)).config()}),
)
attack(49, "unknown field", "dice.field", certificate({-4670556: b""}))

# References
attack(50, "unknown application", "ref.code", device(code="app 9.9"))
attack(50, "unknown bootloader", "ref.code", device(bootloader="bootloader 9"))
attack(51, "right hashes in the wrong layers", "ref.code", device(code="bootloader 1", bootloader="app 2.0"))
attack(52, "unknown authority", "ref.authority", device(authority=digest("another authority")))
attack(52, "zero authority", "ref.authority", device(authority=bytes(64)))
attack(53, "below the policy", "rollback", device(secure_version=1))
attack(53, "below the floor", "rollback", lambda: judge(D, floors=Floors(security_version=4)))
attack(53, "absent in the bootloader", "rollback", device(bootloader_config=dumps({-70002: "bootloader"})))
attack(53, "absent in the application", "dice.config", descriptor(dumps({-70002: "porch"})))


def floor_of_another_replica() -> Verdict:
    """Both replicas read the floors from one place: what one confirmed, the other knows, also after an attempt to lower them."""
    with TemporaryDirectory() as folder:
        one = TrustDirectory.create(Path(folder) / "trust")
        one.enroll(spec(D))
        newer, other = replace(D, secure_version=5), TrustDirectory(Path(folder) / "trust")
        assert judge(newer, floors=other.floors(D.ueid)).accepted
        assert judge(D, floors=other.floors(D.ueid)).accepted
        one.confirm(D.ueid, Floors(security_version=5), [newer.measurement])
        other.confirm(D.ueid, Floors(security_version=4), [newer.measurement])
        assert judge(newer, floors=other.floors(D.ueid)).accepted
        return judge(D, floors=other.floors(D.ueid))


attack(54, "older evidence to another replica", "rollback", floor_of_another_replica)

# Leaf and token
for name, signer in (("UDS", UDS), ("bootloader", BOOT), ("attacker", STRANGER)):
    attack(55, f"token by the {name}'s key", "sig.invalid", token(key=signer))
attack(56, "kid names another key", "leaf.kid", raw(cose.sign(CLAIMS, APP, kid=keys.dice_id(BOOT.public_key()))))


def leaf(usage: bytes, issuer: PrivateKey) -> Run:
    """A certificate for an attestation key, under a policy that wants one."""
    attester = private_key(Alg.ES256, b"attestation key")
    claims: dict[int, Any] = {
        dice_cbor.ISSUER: keys.dice_id(issuer.public_key()).hex(),
        dice_cbor.SUBJECT: keys.dice_id(attester.public_key()).hex(),
        dice_cbor.SUBJECT_PUBLIC_KEY: keys.encode_cose(attester.public_key()),
        dice_cbor.KEY_USAGE: usage,
    }
    evidence = D.evidence([FIRST, SECOND, mint.sign_certificate(claims, issuer)], D.token(key=attester))
    return lambda: judge(D, evidence, policy=policy(D, leaf_signing=LeafSigning.ATTESTATION_KEY))


attack(57, "may sign certificates", "leaf.keyusage", leaf(b"\x20", APP))
attack(57, "wrong issuer", "chain.issuer", leaf(b"\x01", BOOT))
attack(57, "the right one passes", ACCEPTED, leaf(b"\x01", APP))
for name, bad_nonce in (("missing", None), ("7 bytes", bytes(7)), ("65 bytes", bytes(65)), ("text", "x" * 32)):
    attack(58, name, "eat.nonce", token({eat.NONCE: bad_nonce}))
attack(58, "array with ours", "eat.nonce", token({eat.NONCE: [D.fresh_nonce(), bytes(32)]}))
attack(58, "wrong", "nonce.structure", token({eat.NONCE: bytes(32)}))
attack(58, "prefix of ours", "nonce.structure", token({eat.NONCE: D.fresh_nonce()[:16]}))
attack(58, "under a text key", "eat.nonce", token({eat.NONCE: None, "nonce": D.fresh_nonce()}))
attack(59, "expired", "nonce.expired", lambda: judge(D, now=NOW + 120))
attack(59, "lives too long", "nonce.future", lambda: judge(D, now=NOW - 6))
attack(59, "for another device", "nonce.mac", asked(OTHER.fresh_nonce()))
attack(59, "for another audience", "nonce.mac", lambda: judge(D, nonce=IssuedNonce(RING, b"task/1/before")))
attack(59, "forged MAC", "nonce.mac", asked(D.fresh_nonce()[:-1] + bytes([D.fresh_nonce()[-1] ^ 1])))
attack(59, "unknown key", "nonce.key", lambda: judge(D, nonce=IssuedNonce(nonce.KeyRing(1, {1: bytes(32)}), AUDIENCE)))
attack(60, "same evidence", "replay", lambda: replayed(D.evidence(), D.evidence()))
attack(60, "signed again", "replay", lambda: replayed(D.evidence(), high_s()))


def race() -> Verdict:
    """Two replicas, one store: exactly one accepts. The verdict of the other is returned."""
    used, gate = InMemorySingleUse(), Barrier(2)
    verdicts: list[Verdict] = []

    def replica() -> None:
        judged = verify(D.evidence(), context(D))
        assert judged.accepted
        gate.wait(5)
        verdicts.append(verify_once(D.evidence(), context(D), used))

    threads = [Thread(target=replica) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(verdict.accepted for verdict in verdicts) == [False, True]
    return next(verdict for verdict in verdicts if not verdict.accepted)


attack(61, "two replicas at once", "replay", race)
for name, claim, value in (("exp past", 4, 1), ("nbf future", 5, 2**33), ("iat", 6, NOW)):
    attack(62, f"{name}: the profile has no times", "eat.unknown", token({claim: value}))
attack(63, "missing", "eat.ueid", token({eat.UEID: None}))
attack(63, "6 bytes", "eat.ueid", token({eat.UEID: bytes(6)}))
attack(63, "another device", "eat.ueid", token({eat.UEID: OTHER.ueid}))
attack(
    63,
    "known identity under another anchor",
    "anchor.mismatch",
    lambda: DeviceAnchor(D.ueid, OTHER.key("uds").public_key(), RootOfTrust.SIGNED_BOOT, "default"),
)


def observed(*boots: tuple[int, bytes]) -> Run:
    """A device that is seen with these boot counters and seeds, one after the other."""

    def run() -> Any:
        seen: tuple[clones.Sighting, ...] = ()
        for number, (count, seed) in enumerate(boots):
            verdict = judge(D, D.evidence(token=D.token({eat.BOOTCOUNT: count, eat.BOOTSEED: seed})))
            finding = clones.observe(seen, verdict, asked_at=NOW + number, seen_at=NOW + number)
            seen = finding.sightings
            if finding.alarm is not None:
                raise Reject(finding.alarm, finding.message)
        raise AssertionError("no alarm")

    return run


attack(64, "below the floor", "clone.bootcount", lambda: judge(D, floors=Floors(boot_count=13)))
attack(64, "counter goes back", "clone.bootcount", observed((20, bytes(8)), (19, bytes(range(8)))))
attack(64, "alternating seeds", "clone.seed", observed((20, bytes(8)), (20, bytes(range(8)))))
for name, status in (("missing", None), ("True", True), ("5", 5), ("text", "1")):
    attack(65, name, "eat.dbgstat", token({eat.DBGSTAT: status}))
attack(65, "enabled", "eat.dbgstat", token({eat.DBGSTAT: 0}))
attack(65, "3 without oemid", "eat.claim", token({eat.OEMID: None}))
attack(66, "submodule", "eat.unknown", token({266: {"modem": {eat.DBGSTAT: 0}}}))
attack(66, "silent submodule", "eat.unknown", token({266: {"modem": {}}}))
attack(67, "missing", "eat.profile", token({eat.EAT_PROFILE: None}))
attack(67, "foreign", "eat.profile", token({eat.EAT_PROFILE: "tag:psacertified.org,2023:psa#tfm"}))


def enrolled_as(**changes: Any) -> Run:
    return lambda: judge(D, device=replace(D.anchor(), **changes))


attack(68, "oemid", "eat.hardware", enrolled_as(oemid=b"\x01" * 16))
attack(68, "hwmodel", "eat.hardware", enrolled_as(hwmodel=b"esp32c3"))
attack(68, "hwmodel without oemid", "eat.claim", token({eat.OEMID: None}))
attack(69, "software name is not the certified one", "eat.name", token({eat.SWNAME: "kitchen"}))


def policy_file(text: bytes) -> Run:
    return lambda: parse_policy(text, "default.yaml")


attack(70, "suspended", "device.suspended", enrolled_as(state=DeviceState.SUSPENDED))
attack(70, "revoked", "device.revoked", enrolled_as(state=DeviceState.REVOKED))
attack(71, "no policy", "policy.missing", lambda: judge(D, policy=None))
attack(71, "a policy that is no YAML", "policy.invalid", policy_file(b"modes: ["))
attack(71, "a policy with a typo", "policy.invalid", policy_file(b"mods: [Normal]"))
attack(71, "a policy with an unknown mode", "policy.invalid", policy_file(b"modes: [Any]"))
for name, text in (
    ("a field twice", b"minRootOfTrust: Isolated\nminRootOfTrust: SelfReported"),
    ("a field twice, in JSON", b'{"modes": ["Normal"], "modes": ["Debug"]}'),
    ("an alias", b"modes: &all [Normal]\ndebugStatus: *all"),
    ("a tag", b"modes: !!set {Normal}"),
    ("two documents", b"modes: [Normal]\n---\nmodes: [Debug]"),
    ("what cannot be seen", '{"application": {"names": ["porch\u202e"]}}'.encode()),
):
    attack(71, f"a policy with {name}", "policy.invalid", policy_file(text))
attack(71, "an empty policy file", "policy.invalid", policy_file(b""))
attack(71, "no device", "device.unknown", lambda: judge(D, device=None))


class Down:
    def consume(self, nonce: bytes, *, until: int, now: int) -> None:
        raise Reject(Code.STORE_UNAVAILABLE, "the store does not answer")


attack(72, "store unreachable", "store.unavailable", lambda: verify_once(D.evidence(), context(D), Down()))


@pytest.mark.parametrize(
    ("code", "run"),
    [pytest.param(code, run, id=f"{number}-{name}") for number, name, code, run in ATTACKS],
)
def test_attack(code: str, run: Run) -> None:
    assert outcome(run) == code


def test_no_number_is_missing() -> None:
    assert {number for number, *_ in ATTACKS} == set(range(1, 73))


def test_the_honest_device_passes() -> None:
    """Without which every line above would be worth nothing."""
    assert outcome(lambda: judge(D)) == ACCEPTED
    assert outcome(lambda: judge(D, D.evidence(D.x509_chain()))) == ACCEPTED
