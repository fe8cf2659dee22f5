"""The one gate in front of every route: from where, with which token, on whose behalf."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.authentication import AuthCredentials
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iris_kv.credentials import TOKEN, TokenFile
from iris_kv.errors import ForbiddenError, InvalidArgumentError, IrisError, NotFoundError, UnauthorizedError
from iris_kv.http_settings import HttpSettings
from iris_kv.model import Clock
from iris_kv.policy import Principal, check_right
from iris_kv.surfaces.http.access_doors import Doors, is_direct, is_loopback
from iris_kv.surfaces.http.access_identity import Identity, Verifier
from iris_kv.surfaces.http.access_jwt import JwtVerifier
from iris_kv.surfaces.http.access_keys import PublicKeys
from iris_kv.surfaces.http.access_metadata import WELL_KNOWN, challenge, is_mcp, metadata
from iris_kv.surfaces.http.problems import problem_response

RECHECK_S: Final = 2.0
"""How soon a stream that is open ends after its token was revoked or has expired."""

_HEALTH: Final = frozenset({"/healthz", "/readyz"})
_OPEN: Final = _HEALTH | {"/api/docs", "/api/openapi.json"}
"""What anybody may read: it holds nothing of a workspace."""
_METRICS: Final = "/metrics"
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_TOKEN_PARAMETERS: Final = frozenset(
    {"access_token", "api_key", "apikey", "authorization", "bearer", "id_token", "jwt", "token"}
)
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])(?>[A-Za-z0-9_-]*eyJ)[A-Za-z0-9_-]*+\.eyJ[A-Za-z0-9_-]++\.[A-Za-z0-9_-]")
"""Each part is looked at once: one that began at every `eyJ` took seconds for a URL of nothing else."""
_HARDENING: Final = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_STORED_HARDENING: Final = (*_HARDENING, (b"content-security-policy", b"default-src 'none'; sandbox"))
"""A stored value may be a page, and must not speak for this server's origin."""
_REQUEST_HEADERS: Final = (
    "Authorization", "If-Match", "If-None-Match", "Last-Event-ID", "Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version",
    "Mcp-Session-Id", "Range",
)  # fmt: skip
_ANSWER_HEADERS: Final = (
    "Content-Range", "ETag", "Iris-Kv-Entry", "Location", "Mcp-Session-Id", "Retry-After", "WWW-Authenticate",
    "X-Request-Id",
)  # fmt: skip


class Place(NamedTuple):
    """Where a server listens, and what it offers."""

    host: str
    """The address or name that it listens on."""
    is_shared: bool
    """Whether it offers sandboxes, and not one workspace."""


class Access:
    """What a server lets in."""

    def __init__(
        self, settings: HttpSettings, tokens: TokenFile, clock: Clock, place: Place, *, recheck_s: float = RECHECK_S
    ) -> None:
        """Let in what is configured; blocks on the file system.

        Raises:
            ForbiddenError: Others could have written the file of static tokens.
            UnavailableError: It cannot be read.
        """
        keys = (
            None
            if settings.jwks_url is None
            else PublicKeys(settings.jwks_url, clock, timeout_s=settings.jwks_timeout_s)
        )
        has_jwts = settings.jwt_secret is not None or keys is not None
        self.settings = settings
        self.recheck_s = recheck_s
        self.doors = Doors(settings, place.host)
        self.verifier = Verifier(tokens, JwtVerifier(settings, keys, clock) if has_jwts else None)
        has_tokens = bool(tokens.tokens())
        # Decided once: revoking the last token must not open the server.
        self.needs_token = (
            place.is_shared
            or not is_loopback(place.host)
            or settings.require_token
            or has_jwts
            or settings.public_url is not None
            or bool(settings.allowed_hosts)
            or has_tokens
        )
        self.waits_for_tokens = self.needs_token and not has_jwts and not has_tokens


class AccessMiddleware:
    """Lets a request through with its principal in its state, or answers it."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Stand in front of an application."""
        self._app = app
        self._access = access
        self._shared: ASGIApp = self._admit
        if access.settings.cors_origins:
            self._shared = CORSMiddleware(
                self._admit,
                allow_origins=access.settings.cors_origins,
                allow_methods=("GET", "HEAD", "POST", "DELETE"),
                allow_headers=_REQUEST_HEADERS,
                expose_headers=_ANSWER_HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            refusal = self._refusal(scope)
            await (self._shared if refusal is None else refusal)(scope, receive, _hardened(scope, send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that does not get as far as its token."""
        if _has_token_in_url(scope):
            # What logs the URL after this finds nothing in it.
            scope["query_string"], scope["path"], scope["raw_path"] = b"", "/", b"/"
            return problem_response(
                InvalidArgumentError(
                    "there is a token in the URL, where logs and histories keep it",
                    "a token is sent in the header, `Authorization: Bearer TOKEN`, and nowhere else",
                    "revoke this token, get a new one and send that in the header",
                ),
                status=400,
            )
        if scope["path"].endswith("\n"):
            # Routes ignore a line break at the end, and what is compared here does not.
            return problem_response(_nothing_there())
        try:
            if scope["path"] not in _HEALTH:
                self._access.doors.check_host(scope)
        except ForbiddenError as error:
            return problem_response(error, status=421)
        try:
            self._access.doors.check_origin(scope)
        except ForbiddenError as error:
            return problem_response(error)
        return None

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.startswith(WELL_KNOWN):
            await self._metadata(scope)(scope, receive, send)
        elif path in _OPEN or path.startswith("/api/docs/") or (path == _METRICS and is_direct(scope)):
            await self._app(scope, receive, send)
        else:
            await self._admit_principal(scope, receive, send)

    def _metadata(self, scope: Scope) -> Response:
        found = metadata(scope, self._access.doors, self._access.settings)
        if found is not None:
            return JSONResponse(found)
        return problem_response(_nothing_there())

    async def _admit_principal(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            token = _bearer(Headers(scope=scope))
            if token is None:
                self._check_tokenless(scope)
                identity = None
            else:
                identity = await self._access.verifier.identify(token)
            self._introduce(scope, token, identity)
        except IrisError as error:
            await self._refused(scope, error)(scope, receive, send)
            return
        if identity is None or token is None or not is_mcp(scope["path"]):
            await self._app(scope, receive, send)
        else:
            await self._while_accepted(token, scope, receive, send)

    def _check_tokenless(self, scope: Scope) -> None:
        if self._access.needs_token or not is_direct(scope):
            raise UnauthorizedError(
                "a token is needed",
                "it is sent as `Authorization: Bearer TOKEN`; without one only programs on the server's own machine"
                " come in, and only if it offers one workspace and is not configured for tokens",
                "ask an administrator for one, who makes it with `iris-kv token new`",
            )

    def _introduce(self, scope: Scope, token: str | None, identity: Identity | None) -> None:
        """Put who asks into the request, for our routes and for the SDK."""
        face = "mcp" if is_mcp(scope["path"]) else "rest"
        if identity is None or token is None:
            author = "agent" if face == "mcp" else "user"
            principal = Principal(author=author, face=face)
        else:
            principal = identity.principal(face)
            # The SDK ties a session to the user who opened it, so that nobody else can go on with it.
            scope["user"] = AuthenticatedUser(identity.access_token(token, scope["path"]))
            scope["auth"] = AuthCredentials(sorted(identity.rights))
        if scope["path"] == _METRICS:
            check_right(principal, "kv:read", "reading metrics")
        scope.setdefault("state", {})["principal"] = principal

    def _refused(self, scope: Scope, error: IrisError) -> Response:
        doors = self._access.doors
        if isinstance(error, InvalidArgumentError):
            return problem_response(error, status=400, headers=challenge(scope, doors, "invalid_request"))
        if isinstance(error, UnauthorizedError):
            was_sent = "authorization" in Headers(scope=scope)
            return problem_response(error, headers=challenge(scope, doors, "invalid_token" if was_sent else None))
        if scope["path"] == _METRICS and isinstance(error, ForbiddenError):
            return problem_response(error, headers=challenge(scope, doors, "insufficient_scope", "kv:read"))
        return problem_response(error, headers={"Retry-After": "10"})

    async def _while_accepted(self, token: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may stay open for hours, as long as its token is accepted."""
        answer, refusals = _Answer(send), list[IrisError]()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_when_refused, token, tasks.cancel_scope, refusals)
            await self._app(scope, receive, answer.send)
            tasks.cancel_scope.cancel()
        for refusal in refusals:
            await answer.end_early(self._refused(scope, refusal), scope, receive)

    async def _cancel_when_refused(self, token: str, answering: anyio.CancelScope, refusals: list[IrisError]) -> None:
        while not refusals:
            await anyio.sleep(self._access.recheck_s)
            try:
                await self._access.verifier.identify(token)
            except UnauthorizedError as error:
                refusals.append(error)
                answering.cancel()
            except IrisError:
                # It was accepted once; that it cannot be looked at again now does not end it.
                continue


class _Answer:
    """An answer that may have to be ended before its time."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False
        self._is_over = False

    async def send(self, message: Message) -> None:
        self._has_begun = True
        self._is_over = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def end_early(self, refusal: Response, scope: Scope, receive: Receive) -> None:
        """Refuse what has no answer yet, and end what was cut, so that the client sees no broken connection."""
        if not self._has_begun:
            await refusal(scope, receive, self._send)
        elif not self._is_over:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _nothing_there() -> NotFoundError:
    return NotFoundError(
        "no such resource", "/mcp and /sandboxes/{id}/mcp are those that there are", "use one of these"
    )


def _has_token_in_url(scope: Scope) -> bool:
    query = scope["query_string"].decode("latin-1")
    names = {unquote_plus(pair.partition("=")[0]).lower() for pair in query.split("&")}
    url = f"{scope['path']}?{unquote_plus(query)}"
    return bool(names & _TOKEN_PARAMETERS or TOKEN.search(url) or _JWT.search(url))


def _bearer(headers: Headers) -> str | None:
    """Return the token of a request; None: there is none.

    Raises:
        InvalidArgumentError: There are several, or the header is malformed.
    """
    given = headers.getlist("authorization")
    if not given:
        return None
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    if found is None:
        raise InvalidArgumentError(
            "the Authorization header is none that this server reads",
            "one header, `Authorization: Bearer TOKEN`",
            "send the token in this form",
        )
    return found[1]


def _hardened(scope: Scope, send: Send) -> Send:
    """Return a sender whose answers a browser takes for what they say they are, and runs nothing of."""
    hardening = _STORED_HARDENING if scope["path"].startswith("/api/sandboxes") else _HARDENING

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list[tuple[bytes, bytes]](message.get("headers", ()))
            given = {name for name, _ in headers}
            message = {**message, "headers": headers + [pair for pair in hardening if pair[0] not in given]}
        await send(message)

    return sender
