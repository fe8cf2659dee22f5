"""Who a request comes from, as its token says."""

from __future__ import annotations

import hashlib
import logging
from typing import Final, NamedTuple, Protocol

from anyio import to_thread
from mcp.server.auth.provider import AccessToken, TokenVerifier

from iris_kv.credentials import PREFIX, TOKEN, TokenFile
from iris_kv.errors import IrisError, UnauthorizedError
from iris_kv.model import Author, Face
from iris_kv.policy import Principal, Right

MAX_TOKEN_CHARS: Final = 16_384

_AUTHORS: Final[dict[Face, Author]] = {"mcp": "agent", "rest": "user"}
_log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """What a verified token says."""

    name: str
    """Who it is in the log: a static token's name, or `jwt:` and the subject."""
    rights: frozenset[Right]
    sandboxes: frozenset[str] | None
    """The ids of the sandboxes that it may touch; None: every one."""
    subject: str
    """What tells this credential's owner from all others of the issuer."""
    issuer: str | None = None
    expires_at_ms: int | None = None

    def principal(self, face: Face) -> Principal:
        """Return on whose behalf an operation runs that came through a face."""
        return Principal(author=_AUTHORS[face], face=face, name=self.name, rights=self.rights, sandboxes=self.sandboxes)

    def access_token(self, token: str, place: str = "") -> AccessToken:
        """Return it as the SDK knows it, without the token: the SDK needs to tell credentials apart only.

        Args:
            token: What it was verified from.
            place: Where it is used; a session of one place is none of another.
        """
        return AccessToken(
            token="sha256:" + hashlib.sha256(token.encode()).hexdigest(),
            client_id=f"{self.name} {place}".strip(),
            scopes=sorted(self.rights),
            expires_at=None if self.expires_at_ms is None else self.expires_at_ms // 1000,
            subject=self.subject,
            claims=None if self.issuer is None else {"iss": self.issuer},
        )


class JwtReader(Protocol):
    """Verifies JSON Web Tokens."""

    async def identify(self, token: str) -> Identity:
        """Return who a token is of; see `Verifier.identify`."""
        ...


class Verifier(TokenVerifier):
    """Verifies every kind of token that the server accepts; also for the SDK's own middleware."""

    def __init__(self, tokens: TokenFile, jwts: JwtReader | None) -> None:
        """Accept static tokens, and JWTs if there is something to verify them with."""
        self._tokens = tokens
        self._jwts = jwts

    async def identify(self, token: str) -> Identity:
        """Return who a token is of.

        Raises:
            UnauthorizedError: It is not accepted.
            ForbiddenError: The file of static tokens cannot be trusted.
            UnavailableError: What is needed to verify it cannot be had now.
        """
        if TOKEN.fullmatch(token):
            return await self._static(token)
        if self._jwts is None or token.startswith(PREFIX) or token.count(".") != 2 or len(token) > MAX_TOKEN_CHARS:
            raise UnauthorizedError(
                "the token is none that this server knows",
                f"tokens start with {PREFIX}" + ("" if self._jwts is None else ", or are signed JSON Web Tokens"),
                "ask an administrator of this server for one",
            )
        return await self._jwts.identify(token)

    async def _static(self, token: str) -> Identity:
        found = await to_thread.run_sync(self._tokens.find, token)
        return Identity(
            name=found.name,
            rights=frozenset(found.rights),
            sandboxes=None if found.sandboxes is None else frozenset(found.sandboxes),
            # A new token under an old name is another credential.
            subject=hashlib.sha256(token.encode()).hexdigest(),
            expires_at_ms=found.expires_at,
        )

    async def verify_token(self, token: str) -> AccessToken | None:
        """See the SDK's `TokenVerifier`; what cannot be verified now is refused, and the log says why."""
        try:
            identity = await self.identify(token)
        except UnauthorizedError:
            return None
        except IrisError as error:
            _log.error("tokens cannot be verified: %s", error)
            return None
        return identity.access_token(token)
