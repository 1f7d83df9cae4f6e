# SPDX-License-Identifier: Apache-2.0
"""Who calls: projected ServiceAccount tokens, checked offline against the API server's public keys. Pure.

Rules (tests name them):

1. The token is a JWT signed RS256 or ES256 by a key of the issuer's JWKS; `none` and HMAC algorithms do not exist here.
2. Issuer and audience are exactly the expected ones.
3. `nbf` and `exp` are present and bracket `now`, with five seconds of leeway for clocks.
4. A flashing pod's token is bound to a pod: namespace, ServiceAccount, pod name and pod UID are all present.
   Whether that pod still lives and holds an assignment is the gateway's cache to say: that is the revocation.
"""

from dataclasses import dataclass
from typing import Any, Final

import jwt

from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason

_ALGORITHMS: Final = ["RS256", "ES256"]
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
    """The issuer's public keys, by key id.

    Args:
        jwks: the document served at the issuer's `jwks_uri` (RFC 7517 section 5).
    """

    def __init__(self, jwks: dict[str, Any]) -> None:
        self._keys = {key.key_id: key.key for key in jwt.PyJWKSet.from_dict(jwks).keys if key.key_id}

    def get(self, key_id: str | None) -> Any | None:
        """The key of this id, or None."""
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
        key = keys.get(jwt.get_unverified_header(token).get("kid"))
        if key is None:
            raise _refused("it is signed by a key that the API server does not publish")
        claims: dict[str, Any] = jwt.decode(
            token,
            key=key,
            algorithms=_ALGORITHMS,
            audience=audience,
            issuer=issuer,
            options={
                "require": ["exp", "nbf", "aud", "iss"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except jwt.PyJWTError as error:
        raise _refused(f"{type(error).__name__}") from error
    not_before, expires = claims["nbf"], claims["exp"]
    if not isinstance(expires, int) or not isinstance(not_before, int):
        raise _refused("its times are no integers")
    if not not_before - _LEEWAY_SECONDS <= now < expires + _LEEWAY_SECONDS:
        raise _refused("it is expired or not yet valid")
    return _caller(claims.get("kubernetes.io"))


def pod_bound(caller: Caller) -> Caller:
    """Rule 4: refuse a token that names no pod."""
    if not caller.pod_uid:
        raise _refused("it is not bound to a pod")
    return caller


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


def _refused(why: str) -> FlashJobError:
    return FlashJobError(
        Reason.NOT_ASSIGNED, f"the bearer token is refused: {why}", "see the pod's projected token volume"
    )
