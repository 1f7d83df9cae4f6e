# SPDX-License-Identifier: Apache-2.0
"""The one error of this package, and the registry of every reason for which evidence is rejected."""

from enum import StrEnum
from typing import Self


class Code(StrEnum):
    """A stable reason. The value is the contract (logs, status, tests); ``doc`` is its one line of explanation."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    SIZE = "size", "The input is empty or longer than its limit."

    CBOR_INDEFINITE = "cbor.indefinite", "An item has indefinite length."
    CBOR_DUPKEY = "cbor.dupkey", "A map holds the same key twice."
    CBOR_NONMINIMAL = "cbor.nonminimal", "An integer or a length is not in its shortest form."
    CBOR_TRAILING = "cbor.trailing", "Bytes follow the item."
    CBOR_DEPTH = "cbor.depth", "Arrays and maps are nested too deeply."
    CBOR_EOF = "cbor.eof", "An item is longer than the input."
    CBOR_ITEMS = "cbor.items", "The input holds or announces too many items."
    CBOR_TAG = "cbor.tag", "A tag stands where none is allowed."
    CBOR_FLOAT = "cbor.float", "A floating-point number is present."
    CBOR_SIMPLE = "cbor.simple", "A simple value other than true and false is present."
    CBOR_KEY = "cbor.key", "A map key is neither an integer nor text."
    CBOR_UTF8 = "cbor.utf8", "Text is not valid UTF-8."
    CBOR_MALFORMED = "cbor.malformed", "A head byte is reserved and means nothing."
    CBOR_TYPE = "cbor.type", "A value cannot be written in the strict profile."

    COSE_TAG = "cose.tag", "The message has a tag that it must not have, or lacks the one it must have."
    COSE_STRUCTURE = (
        "cose.structure",
        "The message is not an array of protected, unprotected, payload, signature.",
    )
    COSE_NOPROTECTED = "cose.noprotected", "The protected header is empty."
    COSE_HEADER = "cose.header", "A header label is not allowed here, or its value has the wrong type."
    COSE_DUPLABEL = "cose.duplabel", "A label stands in the protected and in the unprotected header."
    COSE_CRIT = "cose.crit", "The message marks headers as critical; none is understood."
    COSE_ALG = "cose.alg", "The algorithm is missing, unprotected, unknown or not allowed."
    COSE_KEYALG = "cose.keyalg", "The algorithm does not fit the key that must verify the message."
    COSE_CONTENTTYPE = "cose.contenttype", "The content type is not the expected one."
    COSE_DETACHED = "cose.detached", "The payload is not a byte string."
    SIG_LENGTH = "sig.length", "The signature has the wrong length for its algorithm."
    SIG_RANGE = "sig.range", "r or s of the signature is zero or not below the group order."
    SIG_INVALID = "sig.invalid", "The signature does not verify under the expected key."

    KEY_STRUCTURE = "key.structure", "The key is not a map, or holds a field that it must not hold."
    KEY_TYPE = "key.type", "The key type is neither OKP nor EC2."
    KEY_CURVE = "key.curve", "The curve is none of Ed25519, P-256, P-384."
    KEY_LENGTH = "key.length", "A coordinate has the wrong type or length."
    KEY_POINT = "key.point", "The coordinates are not a point of the curve."
    KEY_SMALLORDER = "key.smallorder", "The Ed25519 key has small order: a constant signature would verify."
    KEY_PRIVATE = "key.private", "The key holds its private part."
    KEY_OPS = "key.ops", "The key operations do not include verification."
    KEY_ALG = "key.alg", "The key's own algorithm does not fit its curve."
    KEY_UNPROVISIONED = (
        "key.unprovisioned",
        "The key belongs to the all-zero device secret, which everybody knows.",
    )

    EVIDENCE_STRUCTURE = "evidence.structure", "The evidence is not [1, anchor id, [certificates], EAT]."
    EVIDENCE_VERSION = "evidence.version", "The evidence has an unknown version."

    NONCE_STRUCTURE = "nonce.structure", "The nonce has the wrong length or version."
    NONCE_KEY = "nonce.key", "The nonce was made with a key that is not in the ring."
    NONCE_MAC = "nonce.mac", "The nonce is not ours, or was issued for another device or another purpose."
    NONCE_EXPIRED = "nonce.expired", "The nonce is too old."
    NONCE_FUTURE = "nonce.future", "The nonce expires later than any that we issue."
    REPLAY = "replay", "The nonce was used before."

    DEVICE_UNKNOWN = "device.unknown", "No device with this id is enrolled."
    DEVICE_SUSPENDED = "device.suspended", "The device is suspended."
    DEVICE_REVOKED = "device.revoked", "The device is revoked."
    ANCHOR_ID = "anchor.id", "The evidence names another anchor than the one enrolled for the device."
    ANCHOR_MISMATCH = "anchor.mismatch", "The enrolled id does not belong to the enrolled key."

    CHAIN_LEN = "chain.len", "The chain is empty or longer than allowed."
    CHAIN_ISSUER = "chain.issuer", "A certificate does not name the previous subject as its issuer."
    CHAIN_REPEAT = "chain.repeat", "A subject or a key occurs twice in the chain."
    CHAIN_DENIED = "chain.denied", "A key of the chain is on the policy's deny list."

    DICE_STRUCTURE = (
        "dice.structure",
        "A certificate's claims are not a map with the required fields and types.",
    )
    DICE_FIELD = "dice.field", "A certificate holds a field that the profile does not know."
    DICE_SUBJECTID = "dice.subjectid", "A certificate's subject is not the id of its key."
    DICE_KEYUSAGE = "dice.keyusage", "A certificate's key usage is not exactly the one for its place."
    DICE_HASH = "dice.hash", "A hash has the wrong length, or the lengths within a certificate differ."
    DICE_CONFIGHASH = "dice.confighash", "The configuration hash is not the hash of the descriptor."
    DICE_CONFIG = "dice.config", "The configuration descriptor is not the expected map."
    DICE_MODE_STRUCTURE = "dice.mode.structure", "The mode is missing or not one byte."
    DICE_MODE = "dice.mode", "A layer ran in a mode that the policy does not allow."
    DICE_PROFILE = "dice.profile", "A certificate names another DICE profile."
    DICE_FORM = "dice.form", "The chain mixes certificates in CBOR and in X.509."
    DICE_X509_DER = "dice.x509.der", "An X.509 certificate is not DER, or not built as the profile says."
    DICE_X509_ALG = "dice.x509.alg", "An X.509 certificate has another signature algorithm than an accepted one."
    DICE_X509_NAME = "dice.x509.name", "Issuer or subject is not one serialNumber of 40 lower-case hex digits."
    DICE_X509_SERIAL = "dice.x509.serial", "The certificate's serial number is not the id of its subject."
    DICE_X509_VALIDITY = "dice.x509.validity", "The validity does not end at 9999-12-31, as it does for every device."
    DICE_X509_KEYID = "dice.x509.keyid", "A key identifier is not the id of issuer or subject."
    DICE_X509_CONSTRAINTS = (
        "dice.x509.constraints",
        "Basic constraints do not say what the certificate's place demands.",
    )
    DICE_X509_PATHLEN = "dice.x509.pathlen", "More layers follow than a certificate's path length allows."
    DICE_X509_EXTENSION = (
        "dice.x509.extension",
        "An extension is missing, doubled, unknown, or has the wrong criticality.",
    )

    LEAF_KEYUSAGE = "leaf.keyusage", "The attestation-key certificate may sign certificates."
    LEAF_KID = "leaf.kid", "The token names another key than the one that must have signed it."
    LEAF_MISSING = (
        "leaf.missing",
        "The policy wants a certificate for the attestation key, and there is none.",
    )

    EAT_STRUCTURE = "eat.structure", "The token's payload is not a map with integer keys."
    EAT_CLAIM = "eat.claim", "A claim is missing, or has the wrong type or length."
    EAT_UNKNOWN = "eat.unknown", "The token holds a claim that the profile does not know."
    EAT_PROFILE = "eat.profile", "The token's profile is missing or another one."
    EAT_NONCE = "eat.nonce", "The token does not hold exactly our nonce."
    EAT_UEID = "eat.ueid", "The token is from another device."
    EAT_DBGSTAT = "eat.dbgstat", "The debug status is missing, unknown or not allowed by the policy."
    EAT_HARDWARE = "eat.hardware", "Maker or model differ from the enrolled ones."
    EAT_NAME = "eat.name", "The token's software name is not the one in the certificate."
    EAT_ADDRESS = (
        "eat.address",
        "The device does not name the address that it was reached at: its answer may have been relayed.",
    )
    EAT_CNF = "eat.cnf", "The key in the token is not usable."
    EAT_CHANNEL = (
        "eat.channel",
        "It came over TLS under another key than the one that the token names: somebody stands between.",
    )

    POLICY_MISSING = "policy.missing", "There is no policy for the device."
    POLICY_INVALID = "policy.invalid", "The policy cannot be read."

    REF_LAYERS = "ref.layers", "The chain has other layers than the policy demands."
    REF_CODE = "ref.code", "A measured code hash is not an accepted one."
    REF_DENIED = "ref.denied", "A measured code hash is on the deny list."
    REF_AUTHORITY = "ref.authority", "An authority hash is zero or unknown."
    REF_PARTITIONS = "ref.partitions", "The measured partition table is not an accepted one."
    REF_EFUSES = "ref.efuses", "The security eFuse bits contradict the mode or the enrolled root of trust."
    REF_DATA = "ref.data", "A data image was not measured, or has another hash."
    ROLLBACK = "rollback", "A security version is absent or below its floor."
    CLONE_BOOTCOUNT = "clone.bootcount", "The boot counter went back: two devices share one identity."
    CLONE_SEED = "clone.seed", "Boot seeds contradict one another: two devices share one identity."
    CLONE_IDENTITY = "clone.identity", "The device's own key signed for another device's identity."

    BOOT_ID = "boot.id", "The running installation is not one of those expected: stale or foreign boot id."
    SLOT_STATE = "slot.state", "The running slot is not in the expected state."

    GRANT_STRUCTURE = "grant.structure", "A grant does not have the fields, types and lengths of its verb."
    RELEASE_STRUCTURE = "release.structure", "A release statement does not have the required fields and types."
    SUCCESSION_STRUCTURE = "succession.structure", "A succession does not have the required fields and types."
    SUCCESSION_GENERATION = "succession.generation", "A succession is not newer than the one that the device took."
    SUCCESSION_HELD = "succession.held", "The successor is a key that the device holds already."
    LISTING_STRUCTURE = "listing.structure", "A listing token does not have the required fields and types."
    STATEMENT_KEY = "statement.key", "A statement is signed by a key that is not among the accepted ones."

    ENROL_LIST = "enrol.list", "A factory list cannot be read, names a key twice, or names too many."
    ENROL_PROOF = "enrol.proof", "The proof that the enrolled key is held is missing or not that key's."
    ENROL_CERTIFICATE = "enrol.certificate", "A UDS certificate does not lead to a vendor CA by the rules."
    ENROL_KNOWN = "enrol.known", "The device is enrolled already, and differently from what is asked for now."
    ENROL_PENDING = "enrol.pending", "There is no such device waiting for approval, or it may not be approved."
    STANDING = "standing", "A suspension, quarantine, release or revocation is not possible here, or lacks who and why."

    RECORD_STRUCTURE = "record.structure", "An evidence record is not exactly what this program writes."
    RECORD_SIGNATURE = "record.signature", "An evidence record is not signed by the expected key."
    RECORD_HASH = "record.hash", "An evidence record, its index or its policy does not have the hash it is known by."
    RECORD_VERDICT = "record.verdict", "Judging a recorded evidence again does not give the recorded verdict."

    EAR_STRUCTURE = "ear.structure", "An attestation result does not have the required claims and types."
    EAR_PROFILE = "ear.profile", "An attestation result has another profile."
    EAR_VERIFIER = "ear.verifier", "An attestation result is not signed by an accepted verifier key."
    EAR_NONCE = "ear.nonce", "An attestation result answers another nonce."
    EAR_TIME = "ear.time", "An attestation result is expired, or from the future."
    EAR_STATUS = "ear.status", "An attestation result claims a better status than its own entries or tier allow."

    STORE_UNAVAILABLE = "store.unavailable", "A store that must answer did not: nothing is accepted."
    STORE_INVALID = "store.invalid", "A file of the trust directory cannot be used."


class Reject(Exception):
    """Input that is not accepted, and why.

    Args:
        code: the stable reason.
        message: what was found, where, and what was expected instead. Holds no secret.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code.value}: {message}")
        self.code = code
        self.message = message
