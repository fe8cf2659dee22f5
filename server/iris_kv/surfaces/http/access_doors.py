"""From where a request may come: its Host, its Origin, and whether it has come through a proxy."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from iris_kv.errors import ForbiddenError
from iris_kv.http_settings import LOOPBACK_NAMES, HttpSettings

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")


@lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    """Tell whether an address or a name means this machine only."""
    try:
        found = ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


class Doors:
    """Which hosts and origins are let in: a page that was rebound to this address is not."""

    def __init__(self, settings: HttpSettings, listening: str) -> None:
        """Let in what is configured, and this machine's names.

        Args:
            settings: The hosts and origins.
            listening: The address or name that the server listens on; a wildcard such as `0.0.0.0` is no host.
        """
        hosts = {*LOOPBACK_NAMES, *settings.allowed_hosts, _as_host(listening)}
        self._public = settings.public_url
        if self._public is not None:
            hosts.add(urlsplit(self._public).netloc)
        self._hosts = hosts
        self._origins = frozenset(settings.cors_origins)

    def check_host(self, scope: Scope) -> None:
        """Refuse a Host that is not one of ours.

        Raises:
            ForbiddenError: It is missing, malformed, given twice, or another.
        """
        found = _host(scope)
        if found is None or not self._hosts & {found[0], found[1]}:
            raise ForbiddenError(
                "the request's Host is not one that this server answers to",
                "its own address, this machine's names, and those in http.allowed_hosts and http.public_url",
                "use one of these in the URL, or have an administrator add the name to http.allowed_hosts",
            )

    def check_origin(self, scope: Scope) -> None:
        """Refuse what a page of another origin sends from a browser.

        Raises:
            ForbiddenError: The origin is not ours and not configured.
        """
        headers = Headers(scope=scope)
        given = headers.getlist("origin")
        if not given and not _is_from_another_page(headers):
            return
        allowed = {*self._origins, self._public, f"{scope['scheme']}://{headers.get('host', '').lower()}"}
        if len(given) != 1 or given[0].lower() not in allowed:
            raise ForbiddenError(
                "a page of another origin sent the request",
                "pages of this server, and of the origins in http.cors_origins",
                "have an administrator add the page's origin to http.cors_origins, or call from a program",
            )

    def base_url(self, scope: Scope) -> str:
        """Return the scheme and host under which the client knows this server; its Host was checked."""
        return self._public or f"{scope['scheme']}://{Headers(scope=scope).get('host', '').lower()}"


def is_direct(scope: Scope) -> bool:
    """Tell whether a request comes from a program on this machine, with no proxy between."""
    headers, client = Headers(scope=scope), scope.get("client")
    host = _host(scope)
    return (
        client is not None
        and is_loopback(client[0])
        and host is not None
        and host[1] in LOOPBACK_NAMES
        and not any(name in headers for name in _FORWARDED)
    )


def _as_host(address: str) -> str:
    try:
        found = ip_address(address)
    except ValueError:
        return address.lower()
    if found.is_unspecified:
        return "localhost"
    return f"[{found}]" if found.version == 6 else str(found)


def _host(scope: Scope) -> tuple[str, str] | None:
    """Return the Host as it was given in small letters, and its name alone; None: there is no good one."""
    given = Headers(scope=scope).getlist("host")
    found = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
    return None if found is None else (found[0], found[1])


def _is_from_another_page(headers: Headers) -> bool:
    """Tell whether a browser says so of a request without an Origin; a link that a person follows is none."""
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    return (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document")
