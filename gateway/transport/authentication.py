"""Who comes in: found out once at the door, by key or by connection, and counted while inside."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cache import StoreError
from gateway.auth.principal import ANONYMOUS, Principal
from gateway.auth.registry import ActiveConnection, UserRegistry
from gateway.auth.users import PREFIX
from gateway.errors import ApiError, ConnectionLimitError, InvalidApiKeyError, RateLimitExceededError
from gateway.transport.refusals import refuse

SUBPROTOCOL: Final = "samovar"
"""What a browser offers, and is given, beside its key."""
KEY_SUBPROTOCOL: Final = "openai-insecure-api-key."
"""Begins the subprotocol that carries a key: a browser's WebSocket can set no header."""
RETRY_SECONDS: Final = 10
LEAVE_SECONDS: Final = 5.0
"""How long a client may take to hear that its key was revoked."""
_OPERATOR: Final = "/monitor"
_OPERATORS_CHALLENGE: Final = 'Basic realm="Samovar: any name, and an admin key as password", charset="UTF-8"'


class Authentication:
    """ASGI middleware that puts a `Principal` into the state of every connection and request, or refuses it."""

    def __init__(self, app: ASGIApp, *, registry: UserRegistry, per_user: int, per_address: int) -> None:
        """`per_user` and `per_address` connections and requests under `/v1` may be in at a time."""
        self._app = app
        self._registry = registry
        self._per_user = per_user
        self._per_address = per_address
        self._connections = itertools.count(1)
        self._asked = itertools.count(1)
        self._reading = asyncio.Lock()
        self._read = 0
        """When the last reading began, in the order of those who asked."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the caller said."""
        if scope["type"] == "lifespan" or not _needs_caller(scope["path"]):
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        address = client[0] if client else ""
        try:
            principal = await self._identify(scope, address)
            self._check(scope, principal, address)
            if scope["type"] == "http":
                self._registry.count_message(principal)  # a socket's messages count one by one
        except ApiError as error:
            await refuse(error, scope, receive, send, headers=_headers(scope, error))
            return
        scope.setdefault("state", {})["principal"] = principal
        connection = ActiveConnection(principal, address, leave=_nobody)
        self._registry.enter(connection)
        try:
            await (self._socket if scope["type"] == "websocket" else self._request)(connection, scope, receive, send)
        finally:
            self._registry.leave(connection)

    async def _identify(self, scope: Scope, address: str) -> Principal:
        """Who it is, by the users as they are now: a key is good from its making on. Raises InvalidApiKeyError."""
        key, stranger = _key(scope), self._stranger(scope, address)
        could_be_new = key is not None and key.startswith(PREFIX)
        if not self._registry.needs_keys and could_be_new:
            await self._refresh()  # perhaps the first key of all: what is said under it must not become everybody's
        try:
            return self._registry.identify(key, stranger)
        except InvalidApiKeyError:
            if not could_be_new:
                raise
            await self._refresh()
            return self._registry.identify(key, stranger)

    async def _refresh(self) -> None:
        """Read the users as they are from now on: once for all who ask meanwhile, so that wrong keys cost little."""
        asked = next(self._asked)
        async with self._reading:
            if self._read < asked:
                self._read = next(self._asked)
                with suppress(StoreError):  # who was known stays known
                    await self._registry.refresh()

    def _stranger(self, scope: Scope, address: str) -> str:
        """Without keys: every connection is a user of its own, over HTTP every address."""
        return f"connection {next(self._connections)}" if scope["type"] == "websocket" else f"address {address}"

    def _check(self, scope: Scope, principal: Principal, address: str) -> None:
        if scope["path"].startswith(_OPERATOR) and self._registry.needs_keys and not principal.admin:
            raise InvalidApiKeyError("this page needs the key of an admin: samovar keys add NAME --admin")
        here = "this address"
        if self._registry.by_address[address] >= self._per_address:
            most = self._per_address
        elif principal.tenant != ANONYMOUS and self._registry.by_user[principal.user] >= self._per_user:
            here, most = "this key", self._per_user
        else:
            return
        text = f"{here} has {most} connections, as many as it may have; close some"
        if scope["type"] == "websocket":
            raise ConnectionLimitError(text)
        raise RateLimitExceededError(text, RETRY_SECONDS)

    async def _socket(self, connection: ActiveConnection, scope: Scope, receive: Receive, send: Send) -> None:
        closed = False
        task = asyncio.current_task()

        async def say(message: Message) -> None:
            if not closed:  # what an answer still says after that goes nowhere
                await send(message)

        async def leave() -> None:
            nonlocal closed
            closed = True
            try:
                async with asyncio.timeout(LEAVE_SECONDS):
                    await send({"type": "websocket.close", "code": 1008, "reason": InvalidApiKeyError.code})
            except TimeoutError:
                if task is not None:
                    task.cancel()

        connection.leave = leave
        await self._app(scope, receive, say)

    async def _request(self, connection: ActiveConnection, scope: Scope, receive: Receive, send: Send) -> None:
        begun, ended = False, False
        task = asyncio.current_task()

        async def say(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async def leave() -> None:
            nonlocal ended
            ended = True
            if task is not None:
                task.cancel()

        connection.leave = leave
        try:
            await self._app(scope, receive, say)
        except asyncio.CancelledError:
            if not ended:
                raise
            if task is not None:
                task.uncancel()
            if not begun:  # else the server sees an answer without its end, and closes the connection
                await refuse(InvalidApiKeyError("this API key is not valid any more"), scope, receive, send)


async def _nobody() -> None:
    """Nobody has to leave yet."""


def _needs_caller(path: str) -> bool:
    return path.startswith(("/v1/", _OPERATOR))


def _key(scope: Scope) -> str | None:
    """The key of a request: as bearer, as a browser's subprotocol, or as the password of the operator's page."""
    kind, _, value = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() == "basic" and scope["path"].startswith(_OPERATOR):
        try:
            return base64.b64decode(value).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    offered = [name for name in scope.get("subprotocols", ()) if name.startswith(KEY_SUBPROTOCOL)]
    return offered[0].removeprefix(KEY_SUBPROTOCOL) if offered else None


def _headers(scope: Scope, error: ApiError) -> dict[str, str]:
    if isinstance(error, InvalidApiKeyError):
        return {"WWW-Authenticate": _OPERATORS_CHALLENGE if scope["path"].startswith(_OPERATOR) else "Bearer"}
    return {"Retry-After": str(RETRY_SECONDS)} if isinstance(error, ConnectionLimitError) else {}
