"""An issuer's public keys, fetched from where it publishes them (RFC 7517) and kept for a while."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any, Final, cast

import anyio
import httpx2
import jwt

from iris_kv.errors import UnauthorizedError, UnavailableError
from iris_kv.model import Clock

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""What a public key may verify; no algorithm here takes a secret."""

FRESH_MS: Final = 600_000
STALE_MS: Final = 3_600_000
AGAIN_MS: Final = 10_000
_MAX_BYTES: Final = 262_144
_MAX_KEYS: Final = 100

_log = logging.getLogger(__name__)


class PublicKeys:
    """The keys of one issuer.

    They are fetched again after ten minutes, and at once for a key that is not known, but at most
    every ten seconds. While the issuer cannot be reached, they serve for up to an hour.
    """

    def __init__(self, url: str, clock: Clock, *, timeout_s: float) -> None:
        """Fetch from a URL, each time within `timeout_s`."""
        self._url = url
        self._clock = clock
        self._timeout_s = timeout_s
        self._keys: tuple[jwt.PyJWK, ...] = ()
        self._fetched_at_ms: int | None = None
        self._tried_at_ms: int | None = None
        self._fetching = anyio.Lock()

    async def key(self, kid: object, algorithm: str) -> jwt.PyJWK:
        """Return the key that a token names.

        Args:
            kid: The key's id; None where the token names none, which needs the issuer to have one such key.
            algorithm: The token's algorithm.

        Raises:
            UnauthorizedError: The issuer has no such key.
            UnavailableError: The keys cannot be had now.
        """
        found = self._found(kid, algorithm)
        if found is None or self._age_ms() > FRESH_MS:
            # While one request fetches, the others go on with a key that is known.
            if found is None or not self._fetching.locked():
                async with self._fetching:
                    await self._fetch_if_due()
            found = self._found(kid, algorithm)
        if found is not None and self._age_ms() <= STALE_MS:
            return found
        if self._fetched_at_ms is None or self._age_ms() > FRESH_MS:
            raise UnavailableError(
                "the issuer's keys cannot be fetched, so that no token of it can be verified now",
                "they are fetched from the configured jwks_url",
                "try again soon; an administrator finds the cause in the server's log",
            )
        raise UnauthorizedError(
            "the token is refused: the issuer has no such key",
            "a token is signed with a key that its issuer publishes",
            "get a new one from the issuer",
        )

    def _age_ms(self) -> int:
        return 0 if self._fetched_at_ms is None else self._clock.now_ms() - self._fetched_at_ms

    def _found(self, kid: object, algorithm: str) -> jwt.PyJWK | None:
        suiting = [key for key in self._keys if key.algorithm_name == algorithm and kid in (None, key.key_id)]
        return suiting[0] if len(suiting) == 1 or (suiting and kid is not None) else None

    async def _fetch_if_due(self) -> None:
        now_ms = self._clock.now_ms()
        if self._tried_at_ms is not None and now_ms - self._tried_at_ms < AGAIN_MS:
            return
        self._tried_at_ms = now_ms
        try:
            with anyio.fail_after(self._timeout_s):
                self._keys = tuple(_usable(json.loads(await self._body())))
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError, RecursionError) as error:
            _log.warning("the issuer's keys cannot be fetched: %s: %s", type(error).__name__, error)
        else:
            self._fetched_at_ms = now_ms

    async def _body(self) -> bytes:
        async with (
            httpx2.AsyncClient(follow_redirects=False, timeout=self._timeout_s) as client,
            client.stream("GET", self._url, headers={"accept": "application/json"}) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"the answer's status is {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes(16_384):
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise ValueError(f"the answer has more than {_MAX_BYTES:,} bytes")
        return bytes(body)


def _usable(document: object) -> Iterable[jwt.PyJWK]:
    """Yield the keys of a set that can verify signatures; others are left out."""
    keys = cast("dict[str, object]", document).get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("the answer is no set of keys")  # noqa: TRY004 - it came from outside
    for each in cast("list[dict[str, Any]]", keys)[:_MAX_KEYS]:
        try:
            key = jwt.PyJWK(each)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            continue
        if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig"):
            yield key
