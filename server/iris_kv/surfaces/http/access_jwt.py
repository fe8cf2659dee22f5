"""JSON Web Tokens: verified with a secret or an issuer's public keys, and what their claims allow.

Each algorithm belongs to one kind of key, so that a public key is never taken for a secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import jwt
from jwt.types import Options
from pydantic import SecretStr

from iris_kv.errors import UnauthorizedError
from iris_kv.http_settings import HttpSettings
from iris_kv.model import Clock
from iris_kv.policy import RIGHTS, Right
from iris_kv.surfaces.http.access_identity import Identity
from iris_kv.surfaces.http.access_keys import ALGORITHMS, PublicKeys

_SECRET_ALGORITHM: Final = "HS256"  # noqa: S105 - the name of an algorithm
_MAX_SUBJECT_CHARS: Final = 128
_ALL: Final = "*"
_MAX_TIME_S: Final = 1e12
_SCOPE_CLAIMS: Final = ("scope", "scopes", "scp")
_SANDBOX_CLAIMS: Final = ("app_metadata.sandboxes", "sandboxes", "sub")


class JwtVerifier:
    """Verifies the tokens of one issuer, Supabase Auth's as they are."""

    def __init__(self, settings: HttpSettings, keys: PublicKeys | None, clock: Clock) -> None:
        """Verify as the settings say.

        Args:
            settings: Secret, audience, issuer, and how claims are mapped.
            keys: The issuer's public keys; None: only tokens of the secret are accepted.
            clock: Decides what has expired.
        """
        self._settings = settings
        self._keys = keys
        self._clock = clock

    async def identify(self, token: str) -> Identity:
        """See `Verifier.identify`."""
        claims = self._verified(token, *await self._key(token))
        expires_at_ms = self._checked_times(claims)
        subject = claims["sub"]
        if not 0 < len(subject) <= _MAX_SUBJECT_CHARS or not subject.isprintable() or " " in subject:
            raise _refused("its sub is empty, too long or not printable")
        return Identity(
            name=f"jwt:{subject}",
            rights=_rights(claims, self._settings.jwt_default_scopes),
            sandboxes=_sandboxes(claims, self._settings.jwt_sandboxes_claim),
            subject=subject,
            issuer=None if claims.get("iss") is None else str(claims["iss"]),
            expires_at_ms=expires_at_ms,
        )

    async def _key(self, token: str) -> tuple[jwt.PyJWK | SecretStr, str]:
        """Return what the token must be verified with, and with which algorithm."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused("it is malformed") from None
        algorithm, secret = header.get("alg"), self._settings.jwt_secret
        if "crit" in header:
            raise _refused("its header has extensions that are not known here")
        if algorithm == _SECRET_ALGORITHM and secret is not None:
            return secret, _SECRET_ALGORITHM
        if isinstance(algorithm, str) and algorithm in ALGORITHMS and self._keys is not None:
            return await self._keys.key(header.get("kid"), algorithm), algorithm
        raise _refused("its algorithm is not one that this server is configured for")

    def _verified(self, token: str, key: jwt.PyJWK | SecretStr, algorithm: str) -> dict[str, Any]:
        required = ["exp", "aud", "sub"] + ([] if self._settings.jwt_issuer is None else ["iss"])
        # The times are checked by our own clock.
        options: Options = {"require": required, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            return jwt.decode(
                token,
                key.get_secret_value() if isinstance(key, SecretStr) else key,
                algorithms=[algorithm],
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                options=options,
            )
        except jwt.InvalidAudienceError:
            raise _refused("it was issued for another audience") from None
        except jwt.InvalidIssuerError:
            raise _refused("it comes from another issuer") from None
        except jwt.MissingRequiredClaimError:
            raise _refused("it lacks one of exp, aud, sub and, where an issuer is configured, iss") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _refused("its signature or its form is wrong") from None

    def _checked_times(self, claims: Mapping[str, Any]) -> int:
        """Return until when the token is accepted, in milliseconds."""
        leeway_ms, now_ms = self._settings.jwt_leeway_s * 1000, self._clock.now_ms()
        until_ms = _time_ms(claims, "exp", math.inf) + leeway_ms
        if until_ms <= now_ms:
            raise _refused("it has expired")
        if max(_time_ms(claims, "nbf", 0), _time_ms(claims, "iat", 0)) - leeway_ms > now_ms:
            raise _refused("it is not valid yet")
        return int(until_ms)


def _refused(why: str) -> UnauthorizedError:
    return UnauthorizedError(
        f"the token is refused: {why}",
        "a token is signed by the configured issuer for this server, and used before it expires",
        "get a new one from the issuer, then send it as before",
    )


def _time_ms(claims: Mapping[str, Any], claim: str, absent: float) -> float:
    value = claims.get(claim, absent if claim != "exp" else None)
    # Python's JSON knows Infinity, and true is a number to it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_TIME_S:
        raise _refused(f"its {claim} is no time")
    return value * 1000


def _rights(claims: Mapping[str, Any], default: Sequence[Right]) -> frozenset[Right]:
    """Return what the claims allow: the first claim that names a scope of ours decides.

    An issuer's own scopes (`openid email`) say nothing of ours; an empty `app_metadata.iris_kv` takes all away.
    """
    for claim in _SCOPE_CLAIMS:
        named = _ours(_names(claims.get(claim)))
        if named:
            return named
    own = _at(claims, "app_metadata.iris_kv")
    return frozenset(default) if own is None else _ours(_names(own))


def _ours(names: Sequence[str]) -> frozenset[Right]:
    return frozenset(right for right in RIGHTS if right in names)


def _sandboxes(claims: Mapping[str, Any], configured: str | None) -> frozenset[str] | None:
    for claim in _SANDBOX_CLAIMS if configured is None else (configured,):
        found = _at(claims, claim)
        if claim == "sub":
            # One id as it stands: with some issuers users choose it, so that it is no list and no sign for all.
            return frozenset({str(found)})
        if found is not None:
            names = _names(found)
            return None if _ALL in names else frozenset(names)
    return frozenset()


def _at(claims: Mapping[str, Any], dotted: str) -> object:
    found: object = claims
    for name in dotted.split("."):
        if not isinstance(found, Mapping):
            return None
        found = cast("Mapping[str, object]", found).get(name)
    return found


def _names(value: object) -> list[str]:
    """Return the names that a claim lists, as an array or as words with spaces or commas between."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, list):
        return [each for each in cast("list[object]", value) if isinstance(each, str)]
    return []
