# SPDX-License-Identifier: Apache-2.0
"""How a device's key comes to be trusted: what every way of enrolment has in common. Pure.

Rules (tests name them):

1. The key comes from whoever vouches for it (maker's list, vendor CA, a named person), never from inside evidence.
2. Whoever holds the key has proved it: a proof from the factory, or evidence over a nonce of ours.
3. Evidence is judged under the policy that the device will have, whatever application it runs: its bootloader, mode,
   authority and root of trust must be right before anything is believed.
4. On first use nobody vouches for the key. Such a device waits until a named person, who has compared its id with the
   device's own label or console, approves it; a change of key is another device and waits again.
5. A device that is enrolled already stays as it is. Who enrols it again must ask for the same (``enrol.known``).

Source of the proof's form: a COSE_Sign1 (RFC 9052), untagged, by the UDS key, over {1: ueid, 2: batch}.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation import cose, files, keys, verifier
from attestation.anchors import DeviceAnchor
from attestation.cbor import dumps, strict_loads
from attestation.device_file import Base64Url, DeviceSpec, HexBytes, base64url, first_error
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey
from attestation.policy import AttestationPolicySpec, RootOfTrust

PROOF_TYPE: Final = "application/vnd.flashjob.enrolment+cbor"
PROOF_LIMIT: Final = 512
_UEID, _BATCH = 1, 2
_EDIT: Final = "change its file under devices/, if that is meant"


def mint_proof(key: PrivateKey, batch: str) -> bytes:
    """What the factory makes while it holds the UDS key: the proof that it does, for one batch."""
    payload = dumps({_UEID: keys.ueid(key.public_key()), _BATCH: batch})
    return cose.sign(payload, key, content_type=PROOF_TYPE, kid=keys.key_id(key.public_key()))


def check_proof(proof: bytes, key: PublicKey, batch: str) -> None:
    """Rule 2 for a key from a list.

    Args:
        proof: as the factory made it.
        key: the key to be enrolled.
        batch: the batch that is being enrolled: proofs of another are worth nothing here.

    Raises:
        Reject: ``enrol.proof``.
    """
    if not batch.strip():
        raise Reject(Code.ENROL_PROOF, "a proof is for one batch, which has a name")
    try:
        message = cose.parse(proof, content_type=PROOF_TYPE, limit=PROOF_LIMIT)
        said = strict_loads(message.payload)
        cose.verify(message, key)
    except Reject as reject:
        raise Reject(Code.ENROL_PROOF, f"the proof of possession does not hold: {reject}") from reject
    if said != {_UEID: keys.ueid(key), _BATCH: batch}:
        raise Reject(Code.ENROL_PROOF, f"the proof is for another device or not for batch {batch!r:.80}")


def prove_possession(
    evidence: bytes,
    key: PublicKey,
    *,
    tier: RootOfTrust,
    policy_name: str,
    policy: AttestationPolicySpec,
    nonce: bytes,
    now: int,
) -> verifier.Verdict:
    """Rules 2 and 3 for a device that answers.

    Args:
        evidence: its answer.
        key: the key that it is said to hold.
        tier: what its hardware is said to prove.
        policy_name, policy: what will judge it.
        nonce: what it was asked with, drawn for this question.
        now: Unix seconds.

    Returns:
        The verdict; it may be rejected.

    Raises:
        Reject: the key itself may not be enrolled.
    """
    device = DeviceAnchor(ueid=keys.ueid(key), key=key, tier=tier, policy=policy_name)
    context = verifier.Context(
        device=device, policy=policy, nonce=verifier.ExactNonce(nonce), now=now, any_application=True
    )
    return verifier.verify(evidence, context)


def spec(
    key: PublicKey,
    *,
    tier: RootOfTrust,
    policy_name: str,
    oemid: bytes | None = None,
    hwmodel: str | None = None,
    enrolled: Mapping[str, Any],
) -> dict[str, Any]:
    """The spec of a device in a trust directory.

    Args:
        key: its UDS public key.
        tier: what its hardware can prove.
        policy_name: what judges it.
        oemid, hwmodel: maker and model that it must claim; None accepts any.
        enrolled: how it came to be trusted (way, by, reason, at), kept for people.
    """
    content: dict[str, Any] = {
        "id": keys.ueid(key).hex(),
        "trustAnchor": {"coseKey": base64url(keys.encode_cose(key))},
        "rootOfTrust": tier.value,
        "policyRef": {"name": policy_name},
        "enrolled": dict(enrolled),
    }
    if oemid is not None:
        content["oemid"] = oemid.hex()
    if hwmodel is not None:
        content["hwmodel"] = hwmodel
    return content


def check_same(known: DeviceSpec, asked: DeviceSpec) -> None:
    """Rule 5.

    Args:
        known: the spec that the device has.
        asked: another one with the same id; maker and model that it leaves open are not compared.

    Raises:
        Reject: ``enrol.known``, naming what differs.
    """
    parts = (
        ("root of trust", known.root_of_trust, asked.root_of_trust, "it never changes, so leave the device out"),
        ("policy", known.policy_ref.name, asked.policy_ref.name, _EDIT),
        ("oemid", known.oemid and known.oemid.hex(), asked.oemid and asked.oemid.hex(), _EDIT),
        ("hwmodel", known.hwmodel, asked.hwmodel, _EDIT),
    )
    for name, was, now, mend in parts:
        if now is not None and was != now:
            raise Reject(Code.ENROL_KNOWN, f"{asked.id} is enrolled already, with {name} {was}, not {now}: {mend}")


class Pending(BaseModel):
    """Rule 4: a device that was seen for the first time, and waits."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    id: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){33}$")]
    cose_key: Base64Url
    root_of_trust: RootOfTrust
    policy: str
    application: str
    measurement: str
    evidence_sha256: Annotated[HexBytes, Field(alias="evidenceSha256")]
    seen_at: int
    seen_from: str

    @property
    def key(self) -> PublicKey:
        """The key that waits. Raises Reject where it is not one, or not this id's."""
        key = keys.from_cose(self.cose_key)
        if keys.ueid(key).hex() != self.id:
            raise Reject(Code.ENROL_PENDING, f"the waiting key does not belong to {self.id}")
        return key

    def to_json(self) -> bytes:
        """As it is kept."""
        return files.to_json(
            {
                "id": self.id,
                "coseKey": base64url(self.cose_key),
                "rootOfTrust": self.root_of_trust.value,
                "policy": self.policy,
                "application": self.application,
                "measurement": self.measurement,
                "evidenceSha256": self.evidence_sha256.hex(),
                "seenAt": self.seen_at,
                "seenFrom": self.seen_from,
            }
        )

    @classmethod
    def read(cls, data: bytes) -> "Pending":
        """Raises Reject ``enrol.pending``."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise Reject(Code.ENROL_PENDING, f"a waiting device cannot be read: {first_error(error)}") from error


def first_use(
    evidence: bytes,
    key: PublicKey,
    *,
    tier: RootOfTrust,
    policy_name: str,
    policy: AttestationPolicySpec,
    nonce: bytes,
    now: int,
    seen_from: str,
) -> Pending:
    """Rules 2 to 4: a device that proves its key becomes one that waits.

    Args:
        evidence, key, tier, policy_name, policy, nonce, now: as ``prove_possession``.
        seen_from: where it was asked, for people.

    Raises:
        Reject: ``enrol.proof``, with what the verifier said.
    """
    verdict = prove_possession(evidence, key, tier=tier, policy_name=policy_name, policy=policy, nonce=nonce, now=now)
    if not verdict.accepted or verdict.claims is None:
        raise Reject(Code.ENROL_PROOF, f"the device does not prove this key: {verdict.message} ({verdict.code})")
    return Pending(
        id=keys.ueid(key).hex(),
        cose_key=base64url(keys.encode_cose(key)),  # type: ignore[arg-type]
        root_of_trust=tier,
        policy=policy_name,
        application=f"{verdict.claims.application} {verdict.claims.version}",
        measurement=verdict.claims.measurement.full,
        evidence_sha256=hashlib.sha256(evidence).hexdigest(),  # type: ignore[arg-type]
        seen_at=now,
        seen_from=seen_from,
    )
