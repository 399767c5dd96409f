"""Authentication: identify the principal of each connection and request, and limit concurrent connections."""

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
from gateway.transport.dialects import OLLAMA
from gateway.transport.refusals import refuse

SUBPROTOCOL: Final = "samovar"
"""The subprotocol that a browser offers next to its key, and that the gateway accepts."""
KEY_SUBPROTOCOL: Final = "openai-insecure-api-key."
"""Prefix of the subprotocol that carries a key, since a browser's WebSocket cannot set headers."""
RETRY_SECONDS: Final = 10
"""Seconds after which a client with too many connections may retry."""
CLOSE_SECONDS: Final = 5.0
"""Seconds that sending the close frame of a revoked key may take."""
_MONITOR: Final = "/monitor"
_MONITOR_CHALLENGE: Final = 'Basic realm="Samovar: any name, and an admin key as password", charset="UTF-8"'


class Authentication:
    """ASGI middleware that adds a `Principal` to the state of every connection and request, or refuses it."""

    def __init__(self, app: ASGIApp, *, registry: UserRegistry, per_user: int, per_address: int) -> None:
        """`per_user` and `per_address` limit the concurrent connections and requests under `/v1` and `/api`."""
        self._app = app
        self._registry = registry
        self._per_user = per_user
        self._per_address = per_address
        self._connections = itertools.count(1)
        self._order = itertools.count(1)
        self._refresh_lock = asyncio.Lock()
        self._refreshed = 0
        """Position of the last refresh in the order of requests for one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate the request and call the app with its principal."""
        if scope["type"] == "lifespan" or not _needs_principal(scope["path"]):
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        address = client[0] if client else ""
        try:
            principal = await self._identify(scope, address)
            self._check(scope, principal, address)
            if scope["type"] == "http":
                self._registry.count_message(principal)  # for a WebSocket, each message counts instead
        except ApiError as error:
            await refuse(error, scope, receive, send, headers=_headers(scope, error))
            return
        scope.setdefault("state", {})["principal"] = principal
        connection = ActiveConnection(principal, address, leave=_do_nothing)
        self._registry.enter(connection)
        try:
            await (self._socket if scope["type"] == "websocket" else self._request)(connection, scope, receive, send)
        finally:
            self._registry.leave(connection)

    async def _identify(self, scope: Scope, address: str) -> Principal:
        """Return the principal, so that a new key works as soon as it is created. Raises InvalidApiKeyError."""
        key, anonymous = _key(scope), self._anonymous_user(scope, address)
        could_be_new = key is not None and key.startswith(PREFIX)
        if not self._registry.needs_keys and could_be_new:
            await self._refresh()  # if this is the very first key, its data must not go to the shared anonymous tenant
        try:
            return self._registry.identify(key, anonymous)
        except InvalidApiKeyError:
            if not could_be_new:
                raise
            await self._refresh()
            return self._registry.identify(key, anonymous)

    async def _refresh(self) -> None:
        """Reload the users; requests that wait share one reload, so that wrong keys cost little."""
        requested = next(self._order)
        async with self._refresh_lock:
            if self._refreshed < requested:
                self._refreshed = next(self._order)
                with suppress(StoreError):  # known users remain valid
                    await self._registry.refresh()

    def _anonymous_user(self, scope: Scope, address: str) -> str:
        """Return the user of a client without a key: one per connection, or over HTTP one per address."""
        return f"connection {next(self._connections)}" if scope["type"] == "websocket" else f"address {address}"

    def _check(self, scope: Scope, principal: Principal, address: str) -> None:
        if scope["path"].startswith(_MONITOR) and self._registry.needs_keys and not principal.admin:
            raise InvalidApiKeyError("this page needs an admin key; create one with `samovar keys add NAME --admin`")
        subject = "this address"
        if self._registry.by_address[address] >= self._per_address:
            limit, setting = self._per_address, "connections_per_address"
        elif principal.tenant != ANONYMOUS and self._registry.by_user[principal.user] >= self._per_user:
            subject, limit, setting = "this key", self._per_user, "connections_per_user"
        else:
            return
        text = f"{subject} has reached the limit of {limit} connections; close some"
        if scope["type"] == "websocket":
            raise ConnectionLimitError(text)
        raise RateLimitExceededError(text, RETRY_SECONDS, limit=setting)

    async def _socket(self, connection: ActiveConnection, scope: Scope, receive: Receive, send: Send) -> None:
        closed = False
        task = asyncio.current_task()

        async def send_while_open(message: Message) -> None:
            if not closed:
                await send(message)

        async def leave() -> None:
            nonlocal closed
            closed = True
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await send({"type": "websocket.close", "code": 1008, "reason": InvalidApiKeyError.code})
            except TimeoutError:
                if task is not None:
                    task.cancel()

        connection.leave = leave
        await self._app(scope, receive, send_while_open)

    async def _request(self, connection: ActiveConnection, scope: Scope, receive: Receive, send: Send) -> None:
        started, ended = False, False
        task = asyncio.current_task()

        async def send_and_record(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def leave() -> None:
            nonlocal ended
            ended = True
            if task is not None:
                task.cancel()

        connection.leave = leave
        try:
            await self._app(scope, receive, send_and_record)
        except asyncio.CancelledError:
            if not ended:
                raise
            if task is not None:
                task.uncancel()
            if not started:  # otherwise the server notices the unfinished response and closes the connection
                await refuse(InvalidApiKeyError("this API key is no longer valid"), scope, receive, send)


async def _do_nothing() -> None:
    """Stand in until the connection has a function that closes it."""


def _needs_principal(path: str) -> bool:
    return path.startswith(("/v1/", OLLAMA, _MONITOR))


def _key(scope: Scope) -> str | None:
    """Return the key of a request: a bearer token, `x-api-key`, a browser's subprotocol, or the monitor's password."""
    headers = Headers(scope=scope)
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() == "basic" and scope["path"].startswith(_MONITOR):
        try:
            return base64.b64decode(value).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    if key := headers.get("x-api-key", "").strip():  # of Anthropic's clients
        return key
    offered = [name for name in scope.get("subprotocols", ()) if name.startswith(KEY_SUBPROTOCOL)]
    return offered[0].removeprefix(KEY_SUBPROTOCOL) if offered else None


def _headers(scope: Scope, error: ApiError) -> dict[str, str]:
    if isinstance(error, InvalidApiKeyError):
        return {"WWW-Authenticate": _MONITOR_CHALLENGE if scope["path"].startswith(_MONITOR) else "Bearer"}
    return {"Retry-After": str(RETRY_SECONDS)} if isinstance(error, ConnectionLimitError) else {}
