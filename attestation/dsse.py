# SPDX-License-Identifier: Apache-2.0
"""DSSE envelopes (secure-systems-lab/dsse, protocol version 1): JSON around signed bytes. Pure.

Rules (tests name them):

1. One spelling: an envelope is exactly the JSON that ``seal`` writes, so that no bit of it can be changed unnoticed.
2. One payload type, named by the reader; one signature; its key id is the one of the key that is tried.
3. The signature covers PAE(payload type, payload), by the key's own algorithm in COSE's form (r || s, or Ed25519).

`firmware_pipeline.signing` has a PAE of its own, for cosign's envelopes; the two packages stand alone and share no code.
"""

import base64
import json
from collections.abc import Iterable
from typing import Any, Final

from attestation import cose, keys
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey

LIMIT_BYTES: Final = 256 * 1024


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, key: PrivateKey) -> bytes:
    """A signed envelope. The same input gives the same bytes."""
    signature = cose.sign_bytes(key, pae(payload_type, payload))
    return _write(payload_type, payload, keys.key_id(key.public_key()).hex(), signature)


def open_sealed(envelope: bytes, payload_type: str, accepted: Iterable[PublicKey]) -> bytes:
    """The payload of an envelope that one of these keys signed.

    Args:
        envelope: as stored.
        payload_type: the only one that is wanted.
        accepted: keys that may have signed it.

    Raises:
        Reject: ``record.structure`` or ``record.signature``.
    """
    content = _read(envelope)
    try:
        kind, payload = content["payloadType"], base64.b64decode(content["payload"], validate=True)
        (only,) = content["signatures"]
        named, signature = only["keyid"], base64.b64decode(only["sig"], validate=True)
        same = isinstance(kind, str) and isinstance(named, str) and _write(kind, payload, named, signature) == envelope
    except (KeyError, TypeError, ValueError) as error:
        raise Reject(Code.RECORD_STRUCTURE, "not a DSSE envelope with one signature") from error
    if not same:
        raise Reject(Code.RECORD_STRUCTURE, "the envelope is spelled in another way than ours")
    if kind != payload_type:
        raise Reject(Code.RECORD_STRUCTURE, f"the envelope holds {kind!r:.80}, not {payload_type}")
    for key in accepted:
        if keys.key_id(key).hex() == named:
            try:
                cose.verify_bytes(keys.alg_of(key), key, signature, pae(kind, payload))
            except Reject as reject:
                raise Reject(Code.RECORD_SIGNATURE, reject.message) from reject
            return payload
    raise Reject(Code.RECORD_SIGNATURE, f"signed by key {named!r:.40}, which is not among the given ones")


def _read(envelope: bytes) -> dict[str, Any]:
    if not 0 < len(envelope) <= LIMIT_BYTES:
        raise Reject(Code.RECORD_STRUCTURE, f"an envelope has 1 to {LIMIT_BYTES} bytes, not {len(envelope)}")
    try:
        content = json.loads(envelope)
    except (ValueError, RecursionError) as error:
        raise Reject(Code.RECORD_STRUCTURE, "the envelope is not JSON") from error
    if not isinstance(content, dict):
        raise Reject(Code.RECORD_STRUCTURE, "the envelope is not a JSON object")
    return content


def _write(payload_type: str, payload: bytes, key_id: str, signature: bytes) -> bytes:
    content = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
