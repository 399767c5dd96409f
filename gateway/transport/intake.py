"""State that all connections, HTTP requests included, share for reading messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import HTTPConnection

from gateway.auth.principal import ANONYMOUS, Principal
from gateway.protocol.lanes import Backlog
from gateway.transport.pacing import Pacer

SMALL: Final = 1 << 13
"""Bytes up to which a message is decoded and converted immediately, in about a millisecond. Larger ones take turns."""


INTAKE: Final = "intake"
"""Key of the intake in the state of the app's lifespan."""


class Intake:
    """Limits on received messages, shared by all connections of a gateway, HTTP requests included."""

    def __init__(self) -> None:
        """Start with no waiting message."""
        self.backlog = Backlog()
        """Bytes of messages that wait for their lanes."""
        self.pacer = Pacer()
        """Turns of large messages, each from its arrival to its decoding."""


def owner(connection: HTTPConnection, principal: Principal) -> str:
    """Return the owner of messages, for limits and turns: the user, or without keys the client's address.

    Without keys a client could open any number of connections, each a user.
    """
    if principal.tenant != ANONYMOUS or connection.client is None:
        return principal.user
    return connection.client.host


def intake_of(connection: HTTPConnection) -> Intake:
    """Return the intake of the gateway that has this connection or request."""
    return intake_in(connection.scope["state"])


def intake_in(state: Mapping[str, Any]) -> Intake:
    """Return the intake in the state of the app's lifespan, which every connection has a copy of."""
    intake = state[INTAKE]
    assert isinstance(intake, Intake)  # noqa: S101 - for the type checker
    return intake
