"""What can be configured of the HTTP faces: who may come in, from where, and with which tokens."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from iris_kv.policy import Right

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The names of this machine as they stand in a URL."""

_HOST: Final = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LEAST_SECRET_BYTES: Final = 32
"""RFC 7518 section 3.2: a key for HS256 is as long as its hash."""


def _host(host: str) -> str:
    lower = host.lower()
    if _HOST.fullmatch(lower) is None:
        raise ValueError("a host is a name such as kv.example.com, with or without a port; no scheme, no path, no *")
    return lower


def _split(url: str) -> SplitResult:
    try:
        found = urlsplit(url)
        if found.scheme in _DEFAULT_PORTS and found.port != 0 and _HOST.fullmatch(found.netloc.lower()):
            return found
    except ValueError:
        pass  # such as a port that is no number
    raise ValueError("it is a URL such as https://kv.example.com, without a user and a password")


def _origin(url: str) -> str:
    found = _split(url)
    if found.path not in ("", "/") or found.query or found.fragment:
        raise ValueError("it is a scheme and a host such as https://kv.example.com, without a path; * is not taken")
    port = found.port
    name = found.netloc.lower().removesuffix(f":{port}")
    return f"{found.scheme}://{name}" + ("" if port in (None, _DEFAULT_PORTS[found.scheme]) else f":{port}")


def _key_url(url: str) -> str:
    found = _split(url)
    if found.scheme != "https" and found.netloc.lower().removesuffix(f":{found.port}") not in LOOPBACK_NAMES:
        raise ValueError("keys are fetched over https, or from this machine")
    return url


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < _LEAST_SECRET_BYTES:
        raise ValueError(f"a secret for HS256 has at least {_LEAST_SECRET_BYTES} bytes")
    return secret


def _network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError("a proxy is named by its address or network, such as 127.0.0.1 or 10.0.0.0/8") from None


class HttpSettings(BaseModel):
    """Only arguments, the environment and the user's configuration set these, never a workspace's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    public_url: Annotated[str, AfterValidator(_origin)] | None = None
    """The scheme and the host that clients use, such as `https://kv.example.com`; None: what they asked for."""
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = ()
    """The names that a request's Host may have, besides this machine's, the address listened on and `public_url`'s."""
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    """The origins whose pages may call the server from a browser."""
    require_token: bool = False
    """True: a token is needed on loopback with one workspace, too."""
    jwt_secret: Annotated[SecretStr, AfterValidator(_long_enough)] | None = None
    """The secret of HS256; None: no such token is accepted."""
    jwks_url: Annotated[str, AfterValidator(_key_url)] | None = None
    """Where the issuer publishes its public keys; None: no such token is accepted."""
    jwks_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5
    """How long fetching them may take, in seconds."""
    jwt_audience: Annotated[str, Field(min_length=1)] = "authenticated"
    """What a token's `aud` must name; the default is that of Supabase Auth."""
    jwt_issuer: Annotated[str, Field(min_length=1)] | None = None
    """What a token's `iss` must be, and where clients are sent for one; None: `iss` is not looked at."""
    jwt_leeway_s: Annotated[float, Field(ge=0, le=300)] = 30
    """How far the issuer's clock may be off, in seconds."""
    jwt_sandboxes_claim: Annotated[str, Field(min_length=1)] | None = None
    """The claim that lists the sandboxes, dotted: `app_metadata.teams`.

    None: `app_metadata.sandboxes`, else `sandboxes`, else `sub`, the sandbox of the user's own id.
    """
    jwt_default_scopes: tuple[Right, ...] = ("kv:read", "kv:write")
    """What a token may do whose claims name no scope of ours."""
    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["unlimited"] = 200.0
    """How many requests a second one token, or one address without a token, may make; twice as many at once."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """The reverse proxies whose `X-Forwarded-For` tells the client's address; others' is not believed."""
