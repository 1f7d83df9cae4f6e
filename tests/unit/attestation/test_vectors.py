# SPDX-License-Identifier: Apache-2.0
"""No published vector vanishes silently: each is used by a named test, or is left out here with the reason."""

from tests.unit.attestation import test_cose
from tests.unit.attestation.world import vectors

ANOTHER_MESSAGE = "COSE_Sign (tag 98), several signers: only COSE_Sign1 is read; as a tag it is attack 18"
ENCRYPTED = "encrypted or MACed CWT: no such message is read"
ML_DSA = "ML-DSA is not supported: the certificates alone exceed what a device may answer with"

COSE_WG = {
    **{f"sign-tests/{name}": ANOTHER_MESSAGE for name in (
        "ecdsa-01", "sign-fail-01", "sign-fail-02", "sign-fail-03", "sign-fail-04", "sign-fail-06", "sign-fail-07",
        "sign-pass-01", "sign-pass-02", "sign-pass-03",
    )},
    **{f"ecdsa-examples/ecdsa-0{number}": ANOTHER_MESSAGE for number in (1, 2, 3, 4)},
    **{f"eddsa-examples/eddsa-0{number}": ANOTHER_MESSAGE for number in (1, 2)},
    **{f"RFC8152/Appendix_C_1_{number}": ANOTHER_MESSAGE for number in (1, 2, 3, 4)},
    **{f"CWT/A_{number}": ENCRYPTED for number in (4, 5, 6, 7)},
    **{f"x509-examples/signed-0{number}": "COSE x5chain: chains never travel in COSE headers" for number in range(1, 6)},
}  # fmt: skip
OPEN_DICE_ML_DSA = 18
OPEN_DICE_READ = 23
GO_COSE = 18
COSE_WG_READ = 17
RATS_READ = {"Example-Payloads": 9, "Example-Tokens": 2}
RATS = {
    ".cddl": "grammar, no vector",
    ".diag": "the same as the .cbor beside it, in CBOR's diagnostic notation",
    ".json": "an EAT as JSON claims: no JWT and no JSON is read",
    ".json_f": "a fragment of an EAT in JSON",
    ".mk": "how the files are made", ".sed": "how the files are made", "": "how the files are made",
    "coswid": "software identity tags, which stand in manifests: a claim that our closed profile does not have",
}  # fmt: skip
"""By extension, or folder."""


def test_cose_working_group_is_complete() -> None:
    folder = vectors("cose-wg-examples")
    found = {str(path.relative_to(folder)).removesuffix(".json") for path in folder.rglob("*.json")}
    assert found == set(test_cose.WG) | set(COSE_WG)
    assert not set(test_cose.WG) & set(COSE_WG)
    assert len(COSE_WG) == 29
    assert len(test_cose.WG) == COSE_WG_READ


def test_go_cose_is_complete() -> None:
    found = {path.stem for path in (vectors("veraison-go-cose") / "testdata").glob("*.json")}
    assert found == set(test_cose.GO_COSE) | set(test_cose.GO_COSE_SIGN)
    assert len(found) == GO_COSE


def test_open_dice_leaves_out_ml_dsa_alone() -> None:
    """Everything else is read in test_dice, test_dice_x509 and test_mint."""
    names = [path.name for path in vectors("open-dice-known").iterdir() if path.suffix in (".cose", ".der")]
    left_out = [name for name in names if "Mldsa" in name]
    assert len(left_out) == OPEN_DICE_ML_DSA, ML_DSA
    used = {name for name in names if any(alg in name for alg in ("Ed25519", "P256", "P384"))}
    assert used | set(left_out) == set(names)
    assert len(used) == OPEN_DICE_READ


def test_wycheproof_is_used_whole() -> None:
    assert len(list((vectors("wycheproof") / "testvectors_v1").glob("*.json"))) == 3


def test_rats_is_complete() -> None:
    """test_eat reads every payload and every token that is in CBOR."""
    folder = vectors("ietf-rats-eat") / "cddl"
    for path in folder.rglob("*"):
        read = path.suffix == ".cbor" and path.parent.name in RATS_READ
        assert path.is_dir() or read or path.parent.name in RATS or path.suffix in RATS, path
    for name, count in RATS_READ.items():
        assert len(list((folder / name).glob("*.cbor"))) == count


def test_no_folder_and_no_kind_of_file_is_forgotten() -> None:
    root = vectors("")
    assert {path.name for path in root.iterdir() if path.is_dir()} == {
        "open-dice-known", "cose-wg-examples", "veraison-go-cose", "ietf-rats-eat", "wycheproof"
    }  # fmt: skip
    values = {path.stem for path in (root / "open-dice-known").glob("*.bin")}
    assert values == {
        f"Cdi{kind}_{case}Input" for kind in ("Attest", "Seal") for case in ("Zero", "HashOnly", "Descriptor")
    }, "read in test_mint"
    kinds = {path.suffix for path in (root / "cose-wg-examples").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".txt", ".md", ".crt", ".key", ".der", ""}, "keys and certificates of the JSON cases"
