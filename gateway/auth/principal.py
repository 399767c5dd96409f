"""Who asks: whose data may be seen, and who shares the machine fairly with whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import HTTPConnection

ANONYMOUS: Final = "anonymous"
"""The one tenant, as long as there are no keys."""
SHOWN: Final = 8
"""Characters of a tenant's id that logs and lists have."""


@dataclass(frozen=True)
class Limits:
    """What one user may have; None is no limit."""

    concurrency: int | None = None
    """Responses in flight at a time; the rest wait."""
    tokens_per_minute: int | None = None
    """Prompt tokens computed and tokens generated."""
    weight: float = 1.0
    """Share of the engines beside those of others who wait."""


@dataclass(frozen=True)
class Principal:
    """The one behind a connection or an HTTP request, as far as the rest of the gateway cares."""

    tenant: str
    """Whose conversations and KV cells: what one tenant stored, no other sees or profits from."""
    user: str
    """The key of fairness. Without keys every connection, over HTTP every client address, is a user of its own."""
    limits: Limits = Limits()
    admin: bool = False
    """May see what the operator sees."""

    @property
    def shown(self) -> str:
        """Who it is, for the log: enough of the tenant to tell two apart, as `samovar keys list` has it."""
        return shown(self.tenant)


def shown(tenant: str) -> str:
    """A tenant's id, shortened to what people compare."""
    return tenant[:SHOWN] if tenant != ANONYMOUS else tenant


def principal_of(connection: HTTPConnection) -> Principal:
    """The caller of a WebSocket or an HTTP request, as `transport/authentication.py` found it at the door."""
    principal = connection.state.principal
    assert isinstance(principal, Principal)  # noqa: S101 - for the type checker: `state` is untyped
    return principal
