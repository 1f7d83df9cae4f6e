# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens by the rules of tokens.py, with real signatures. The number in a test's name is the rule."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from flashjob.errors import FlashJobError
from flashjob.gateway.tokens import Caller, KeySet, identify, pod_bound
from flashjob.wire.reasons import Reason

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://kubernetes.default.svc.cluster.local", "flashjob-gateway"
RSA_KEY = rsa.generate_private_key(65537, 2048)
FOREIGN_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, key_id: str, alg: str) -> dict[str, Any]:
    """A public key as the API server publishes it."""
    algorithm: Any = jwt.get_algorithm_by_name(alg)
    found: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**found, "kid": key_id, "alg": alg, "use": "sig"}


JWKS = {"keys": [jwk(RSA_KEY, "rsa", "RS256"), jwk(EC_KEY, "ec", "ES256")]}
KEYS = KeySet(JWKS)


def claims(**changes: Any) -> dict[str, Any]:
    """As kube-apiserver issues a projected token; None removes a claim."""
    base: dict[str, Any] = {
        "aud": [AUDIENCE],
        "exp": NOW + 600,
        "iat": NOW,
        "iss": ISSUER,
        "jti": "0d7a0dd6-2bd1-4d2c-8a57-d4e3d9d3c3a5",
        "kubernetes.io": {
            "namespace": "factory",
            "node": {"name": "n1", "uid": "node-uid"},
            "pod": {"name": "flash-1", "uid": "pod-uid"},
            "serviceaccount": {"name": "flashjob-flasher", "uid": "sa-uid"},
        },
        "nbf": NOW,
        "sub": "system:serviceaccount:factory:flashjob-flasher",
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


def token(
    content: dict[str, Any] | None = None, *, key: Any = RSA_KEY, alg: str = "RS256", kid: str | None = "rsa"
) -> str:
    headers = {"kid": kid} if kid is not None else None
    return jwt.encode(claims() if content is None else content, key, algorithm=alg, headers=headers)


def bound(**changes: Any) -> dict[str, Any]:
    """The claim that names the pod, changed."""
    base: dict[str, Any] = claims()["kubernetes.io"]
    return {name: value for name, value in (base | changes).items() if value is not None}


def segment(content: object) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def who(text: str, *, now: float = NOW) -> Caller:
    return identify(text, KEYS, issuer=ISSUER, audience=AUDIENCE, now=now)


def refused(text: str, *, now: float = NOW) -> str:
    """Why the token is refused; its own text is never part of that."""
    with pytest.raises(FlashJobError) as caught:
        pod_bound(who(text, now=now))
    assert caught.value.reason == Reason.NOT_ASSIGNED
    for part in text.split("."):
        assert len(part) < 8 or part not in str(caught.value), "no part of the token is shown"
    return caught.value.message


@pytest.mark.parametrize(("key", "alg", "kid"), [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec")])
def test_a_projected_token_says_who_calls(key: Any, alg: str, kid: str) -> None:
    caller = who(token(key=key, alg=alg, kid=kid))
    assert pod_bound(caller) == Caller("factory", "flashjob-flasher", "flash-1", "pod-uid")


def test_1_none_is_no_algorithm() -> None:
    refused(segment({"alg": "none", "kid": "rsa"}) + "." + segment(claims()) + ".")
    refused(segment({"alg": "none", "kid": "rsa"}) + "." + segment(claims()) + "." + token().split(".")[2])


def test_1_a_public_key_is_no_shared_secret() -> None:
    """The classic confusion: HMAC with the published key as its secret."""
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, body = segment({"alg": "HS256", "kid": "rsa", "typ": "JWT"}), segment(claims())
    mac = hmac.digest(public, f"{head}.{body}".encode(), "sha256")
    refused(f"{head}.{body}.{segment(mac)}")


@pytest.mark.parametrize(("key", "alg", "kid"), [(RSA_KEY, "RS512", "rsa"), (RSA_KEY, "PS256", "rsa")])
def test_1_other_algorithms_of_the_right_key_do_not_count(key: Any, alg: str, kid: str) -> None:
    refused(token(key=key, alg=alg, kid=kid))


@pytest.mark.parametrize(("key", "alg", "kid"), [(RSA_KEY, "RS256", "ec"), (EC_KEY, "ES256", "rsa")])
def test_1_an_algorithm_that_does_not_fit_the_named_key(key: Any, alg: str, kid: str) -> None:
    refused(token(key=key, alg=alg, kid=kid))


def test_1_a_key_id_that_is_not_published() -> None:
    assert "does not publish" in refused(token(kid="other"))
    assert "does not publish" in refused(token(kid=None))
    refused(segment({"alg": "RS256", "kid": ["rsa"]}) + "." + segment(claims()) + "." + token().split(".")[2])


def test_1_a_foreign_key_under_a_published_id() -> None:
    refused(token(key=FOREIGN_KEY))


def test_1_no_claim_can_be_changed_after_signing() -> None:
    head, _, signature = token().split(".")
    refused(f"{head}.{segment(claims(exp=NOW + 10**6))}.{signature}")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://elsewhere"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"aud": ["kubernetes"]},
        {"aud": []},
        {"aud": None},
        {"aud": AUDIENCE + "-2"},
        {"aud": AUDIENCE.upper()},
    ],
)
def test_2_issuer_and_audience_are_exact(changes: dict[str, Any]) -> None:
    refused(token(claims(**changes)))


def test_2_one_audience_of_several_is_enough() -> None:
    assert who(token(claims(aud=["kubernetes", AUDIENCE]))).pod == "flash-1"


@pytest.mark.parametrize(
    ("now", "good"),
    [
        (NOW - 5, True),
        (NOW - 5.01, False),
        (NOW, True),
        (NOW + 604.99, True),
        (NOW + 605, False),
        (NOW + 10**9, False),
        (0, False),
    ],
)
def test_3_times_bracket_now_with_five_seconds_of_leeway(now: float, good: bool) -> None:
    if good:
        assert who(token(), now=now).pod == "flash-1"
    else:
        assert "expired or not yet valid" in refused(token(), now=now)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"nbf": None},
        {"exp": str(NOW + 600)},
        {"nbf": float(NOW)},
        {"nbf": True},
        {"exp": [NOW + 600]},
    ],
)
def test_3_times_are_present_and_integers(changes: dict[str, Any]) -> None:
    refused(token(claims(**changes)))


@pytest.mark.parametrize(
    "content",
    [
        {"kubernetes.io": None},
        {"kubernetes.io": "factory/flash-1"},
        {"kubernetes.io": bound(pod=None)},
        {"kubernetes.io": bound(pod="flash-1")},
        {"kubernetes.io": bound(pod={"name": "flash-1"})},
        {"kubernetes.io": bound(pod={"uid": "pod-uid"})},
        {"kubernetes.io": bound(pod={"name": "flash-1", "uid": ""})},
        {"kubernetes.io": bound(pod={"name": "flash-1", "uid": 7})},
        {"kubernetes.io": bound(namespace=None)},
        {"kubernetes.io": bound(namespace=7)},
        {"kubernetes.io": bound(serviceaccount=None)},
        {"kubernetes.io": bound(serviceaccount={"uid": "sa-uid"})},
    ],
)
def test_4_a_flashing_pods_token_names_its_pod(content: dict[str, Any]) -> None:
    refused(token(claims(**content)))


def test_4_a_token_without_a_pod_still_says_whose_it_is() -> None:
    viewer = who(token(claims(**{"kubernetes.io": bound(pod=None)})))
    assert viewer == Caller("factory", "flashjob-flasher")
    with pytest.raises(FlashJobError, match="not bound to a pod"):
        pod_bound(viewer)


def test_too_long_is_not_even_read() -> None:
    assert "too long" in refused(token(claims(padding="x" * 8192)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "....",
        "caf\u00e9.b.c",
        "\udcff\udcfe.b.c",
        segment(b"[" * 5000) + ".e30.e30",
        segment({"alg": "RS256", "kid": "rsa", "crit": ["x"], "x": 1}) + ".e30.e30",
        segment({"alg": "RS256", "kid": "rsa", "b64": False}) + ".e30.e30",
        segment({"alg": "RS256", "kid": "rsa"}) + ".." + "e30",
        segment({"alg": ["RS256"], "kid": "rsa"}) + ".e30.e30",
        segment({"kid": "rsa"}) + ".e30.e30",
        segment(b'{"alg": "RS256", "kid": ' + b"9" * 5000 + b"}") + ".e30.e30",
        segment("RS256") + ".e30.e30",
    ],
)
def test_nonsense_is_refused_not_crashed_on(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("payload", [[], "x", 7, None])
def test_a_payload_that_is_no_object(payload: object) -> None:
    head = segment({"alg": "ES256", "kid": "ec", "typ": "JWT"})
    body = segment(payload)
    signature = jwt.get_algorithm_by_name("ES256").sign(f"{head}.{body}".encode(), EC_KEY)
    refused(f"{head}.{body}.{segment(signature)}")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(max_size=200) | st.lists(st.text(max_size=40), min_size=3, max_size=3).map(".".join))
def test_garbage_is_refused(text: str) -> None:
    refused(text)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), _JSON), _JSON)
def test_any_header_over_any_payload_is_refused(header: dict[str, Any], payload: object) -> None:
    refused(f"{segment(header)}.{segment(payload)}.{segment(b'signature')}")


@given(st.sampled_from(sorted(claims())), _JSON)
def test_any_signed_claims_are_a_caller_or_a_refusal(name: str, value: object) -> None:
    with contextlib.suppress(FlashJobError):
        caller = who(_signed({**claims(), name: value}))
        assert {type(part) for part in (caller.namespace, caller.service_account, caller.pod, caller.pod_uid)} == {str}


def _signed(content: dict[str, Any]) -> str:
    head, body = segment({"alg": "ES256", "kid": "ec"}), segment(content)
    signature = jwt.get_algorithm_by_name("ES256").sign(f"{head}.{body}".encode(), EC_KEY)
    return f"{head}.{body}.{segment(signature)}"


@pytest.mark.parametrize(
    "wrong",
    [{}, {"keys": []}, {"keys": "none"}, [], None, {"keys": [{"kty": "oct", "k": "AAAA", "kid": "secret"}]}],
)
def test_a_key_set_without_a_usable_key_is_said_so(wrong: Any) -> None:
    with pytest.raises(FlashJobError) as caught:
        KeySet(wrong)
    assert caught.value.reason == Reason.GATEWAY_UNAVAILABLE
    assert "jwks" in caught.value.message


def test_a_key_set_keeps_only_keys_with_an_id() -> None:
    nameless = {name: value for name, value in jwk(EC_KEY, "", "ES256").items() if name != "kid"}
    keys = KeySet({"keys": [nameless, jwk(RSA_KEY, "rsa", "RS256")]})
    assert keys.get(None) is None
    assert keys.get("") is None
    assert keys.get("rsa") is not None
