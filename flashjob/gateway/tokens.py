# SPDX-License-Identifier: Apache-2.0
"""Who calls: projected ServiceAccount tokens, checked offline against the API server's public keys. Pure.

Rules (tests name them):

1. The token is a JWT signed RS256 or ES256 by a key of the issuer's JWKS. The key alone says which of the two: what
   the token's header claims must equal it, so `none`, HMAC and mixed-up algorithms do not exist here.
2. Issuer and audience are exactly the expected ones.
3. `nbf` and `exp` are present and bracket `now`, with five seconds of leeway for clocks.
4. A flashing pod's token is bound to a pod: namespace, ServiceAccount, pod name and pod UID are all present.
   Whether that pod still lives and holds an assignment is the gateway's cache to say: that is the revocation.
"""

from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason

_LEEWAY_SECONDS: Final = 5
_MAX_TOKEN_CHARACTERS: Final = 8192


@dataclass(frozen=True, slots=True)
class Caller:
    """What a valid token says. `pod` and `pod_uid` are empty for a token that is not bound to a pod."""

    namespace: str
    service_account: str
    pod: str = ""
    pod_uid: str = ""


class KeySet:
    """The issuer's public keys, by key id; keys of other kinds than RSA and P-256 are left out.

    Args:
        jwks: the document served at the issuer's `jwks_uri` (RFC 7517 section 5).

    Raises:
        FlashJobError: GatewayUnavailable, it holds no key that could be used.
    """

    def __init__(self, jwks: dict[str, Any]) -> None:
        try:
            found = jwt.PyJWKSet.from_dict(jwks).keys
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError) as error:
            raise _no_keys(str(error)) from error
        self._keys = {
            key.key_id: (key.key, algorithm) for key in found if key.key_id and (algorithm := _algorithm(key.key))
        }
        if not self._keys:
            raise _no_keys("no RSA or P-256 key with a key id")

    def get(self, key_id: str | None) -> tuple[Any, str] | None:
        """The key of this id with its one algorithm, or None."""
        return self._keys.get(key_id) if key_id else None


def identify(token: str, keys: KeySet, *, issuer: str, audience: str, now: float) -> Caller:
    """Check a token by rules 1 to 3 and say who calls.

    Args:
        token: the compact JWT.
        keys: the issuer's keys.
        issuer: the API server's service-account issuer.
        audience: what the token must be for.
        now: seconds since the epoch.

    Raises:
        FlashJobError: NotAssigned, with what is wrong; never with any part of the token.
    """
    if len(token) > _MAX_TOKEN_CHARACTERS:
        raise _refused("it is too long")
    try:
        found = keys.get(jwt.get_unverified_header(token).get("kid"))
        if found is None:
            raise _refused("it is signed by a key that the API server does not publish")
        key, algorithm = found
        claims: dict[str, Any] = jwt.decode(
            token,
            key=key,
            algorithms=[algorithm],
            audience=audience,
            issuer=issuer,
            options={
                "require": ["exp", "nbf", "aud", "iss"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (jwt.PyJWTError, UnicodeError, RecursionError) as error:
        raise _refused(f"{type(error).__name__}") from error
    not_before, expires = claims["nbf"], claims["exp"]
    if type(expires) is not int or type(not_before) is not int:  # bool is an int, too
        raise _refused("its times are no integers")
    if not not_before - _LEEWAY_SECONDS <= now < expires + _LEEWAY_SECONDS:
        raise _refused("it is expired or not yet valid")
    return _caller(claims.get("kubernetes.io"))


def pod_bound(caller: Caller) -> Caller:
    """Rule 4: refuse a token that names no pod."""
    if not caller.pod_uid:
        raise _refused("it is not bound to a pod")
    return caller


def _algorithm(key: Any) -> str:
    """What this key signs; "" for kinds that are not used here."""
    if isinstance(key, RSAPublicKey):
        return "RS256"
    return "ES256" if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1) else ""


def _caller(bound: object) -> Caller:
    if not isinstance(bound, dict):
        raise _refused("it is no ServiceAccount token")
    account, pod = bound.get("serviceaccount"), bound.get("pod")
    if (
        not isinstance(account, dict)
        or not isinstance(bound.get("namespace"), str)
        or not isinstance(account.get("name"), str)
    ):
        raise _refused("it names no ServiceAccount")
    if not isinstance(pod, dict):
        return Caller(bound["namespace"], account["name"])
    if not isinstance(pod.get("name"), str) or not isinstance(pod.get("uid"), str):
        raise _refused("it names half a pod")
    return Caller(bound["namespace"], account["name"], pod["name"], pod["uid"])


def _no_keys(why: str) -> FlashJobError:
    return FlashJobError(
        Reason.GATEWAY_UNAVAILABLE, f"the API server's jwks cannot be used: {why}", "kubectl get --raw /openid/v1/jwks"
    )


def _refused(why: str) -> FlashJobError:
    return FlashJobError(
        Reason.NOT_ASSIGNED, f"the bearer token is refused: {why}", "see the pod's projected token volume"
    )
