"""What can be configured of the HTTP faces."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError("a proxy is named by its address or network, such as 127.0.0.1 or 10.0.0.0/8") from None


class HttpSettings(BaseModel):
    """Only arguments, the environment and the user's configuration set these, never a workspace's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["unlimited"] = 200
    """How many requests a second one token, or one address without a token, may make; twice as many at once."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """The reverse proxies whose `X-Forwarded-For` tells the client's address; others' is not believed."""
