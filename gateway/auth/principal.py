"""The authenticated caller: decides which data a request may access and which fair share it uses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import HTTPConnection

ANONYMOUS: Final = "anonymous"
"""The only tenant while no API keys exist."""
SHOWN: Final = 8
"""Characters of a tenant's id in logs and lists."""


@dataclass(frozen=True)
class Limits:
    """Limits of one user; None means no limit."""

    concurrency: int | None = None
    """Responses in progress at a time; further requests wait."""
    tokens_per_minute: int | None = None
    """Prompt tokens computed plus tokens generated, per minute."""
    weight: float = 1.0
    """Share of the engines relative to other waiting users."""
    tokens_per_day: int | None = None
    """The same tokens as per minute, per local day of the gateway."""

    @property
    def order(self) -> tuple[float, ...]:
        """Values by which two sets of limits can be compared; the order has no other meaning."""
        return tuple(0 if value is None else value for value in dataclasses.astuple(self))


@dataclass(frozen=True)
class Principal:
    """The authenticated caller of a connection or an HTTP request."""

    tenant: str
    """Owner of conversations and KV cells. No tenant sees another's data or gets faster responses through it."""
    user: str
    """Key of fair scheduling. Without API keys each WebSocket connection, and each address of HTTP clients, is one."""
    limits: Limits = Limits()
    admin: bool = False
    """Whether the operator's pages are accessible."""
    credential: bytes = field(default=b"", repr=False, compare=False)
    """SHA-256 of the key that was presented; empty without API keys."""

    @property
    def shown(self) -> str:
        """Short tenant id for logs, as in `samovar keys list`."""
        return shown(self.tenant)


def shown(tenant: str) -> str:
    """Return a tenant's id, shortened for display."""
    return tenant[:SHOWN] if tenant != ANONYMOUS else tenant


def principal_of(connection: HTTPConnection) -> Principal:
    """Return the caller of a WebSocket or HTTP request, as set by `gateway/transport/authentication.py`."""
    principal = connection.state.principal
    assert isinstance(principal, Principal)  # noqa: S101 - for the type checker: `state` is untyped
    return principal
