"""WebSocket client for a gateway. It runs on a separate thread, so that it answers pings while the user thinks.

Incoming events go into the queue `events`, which a signal handler may append to as well.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import ssl
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from gateway.config.settings import Settings

OPEN_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0
MAX_FRAME: Final = 64 << 20
"""Bytes. Far more than any response has, but still bounded."""
CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

Lost = Literal["lost"]
Interrupt = Literal["interrupt"]
Arrival = dict[str, Any] | Lost | Interrupt
"""An event of the gateway, or "lost" (the connection ended), or "interrupt" (Ctrl-C was pressed)."""


class UnreachableError(Exception):
    """Nothing responds at the address; the message is the operating system's reason."""


class RefusedError(Exception):
    """A server responds, but rejects the connection or speaks another protocol."""


class KeyNeededError(RefusedError):
    """The gateway requires an API key, or rejects the one that was sent."""


class Client:
    """Sends messages to the gateway and puts incoming events into `events`."""

    def __init__(self, settings: Settings) -> None:
        """Prepare to connect to the gateway of `settings`. Raises OSError or ValueError for an unusable `tls_cert`."""
        self.events: SimpleQueue[Arrival] = SimpleQueue()
        self._url = settings.url.replace("http", "ws", 1) + "/v1/responses"
        self.key = settings.api_key
        """API key sent with the handshake; empty: none."""
        self._tls = pinned(settings.tls_cert)
        self._connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="client", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as is known before something is sent."""
        return self._connection is not None and self._connection.state is State.OPEN

    def open(self) -> None:
        """Connect, unless connected. Raises UnreachableError or RefusedError."""
        if not self.is_open:
            # Discard events of the old connection: its end must not be taken for the end of the new one.
            self.disconnect()
            self._await(self._open())

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. If the connection is lost, "lost" appears in `events`."""
        self._await(self._send(msgspec.json.encode(message).decode()))

    def disconnect(self) -> None:
        """Close the connection and discard its events, except for an interrupt; `open` connects again."""
        self._await(self._disconnect())
        if "interrupt" in self.clear():
            self.events.put("interrupt")

    def clear(self) -> list[Arrival]:
        """Remove and return everything in `events`."""
        taken: list[Arrival] = []
        with suppress(Empty):
            while True:
                taken.append(self.events.get_nowait())
        return taken

    def close(self) -> None:
        """Close the connection and stop the thread; the client cannot be used afterwards."""
        self._await(self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> None:
        try:
            # No proxy: the gateway is on this machine or near it. No deflate: it does not shrink small text frames.
            self._connection = await connect(
                self._url,
                additional_headers=credentials(self.key),
                ssl=self._tls,
                proxy=None,
                compression=None,
                max_size=MAX_FRAME,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
            )
        except InvalidStatus as error:
            kind = KeyNeededError if error.response.status_code == 401 else RefusedError
            raise kind(_reason(error.response.status_code, error.response.body)) from error
        except (InvalidHandshake, ssl.SSLError, EOFError) as error:
            raise RefusedError(str(error) or type(error).__name__) from error
        except TimeoutError as error:
            raise UnreachableError(f"no answer within {OPEN_SECONDS:g} s") from error
        except OSError as error:
            # asyncio's message repeats the address, or lists several errors.
            raise UnreachableError(
                os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            ) from error
        self._reader = asyncio.create_task(self._read(self._connection))

    async def _read(self, connection: ClientConnection) -> None:
        with suppress(ConnectionClosed, msgspec.DecodeError):
            async for frame in connection:
                self.events.put(msgspec.json.decode(frame, type=dict[str, Any]))
        await connection.close()
        self.events.put("lost")

    async def _send(self, frame: str) -> None:
        if self._connection is not None:
            with suppress(ConnectionClosed):
                await self._connection.send(frame)

    async def _disconnect(self) -> None:
        if self._connection is not None and self._reader is not None:
            await self._connection.close()
            await self._reader
        self._connection = self._reader = None


def pinned(certificate: Path | None) -> ssl.SSLContext | None:
    """Return a TLS context that trusts only the gateway's own certificate, for any host name; None without TLS.

    Raises OSError or ValueError if the file cannot be used.
    """
    if certificate is None:
        return None
    leaf = CERTIFICATE.search(certificate.read_text(errors="replace"))
    if leaf is None:
        raise ValueError(f"{certificate} contains no certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Trust only the leaf, as an anchor even if it is not self-signed: its issuer's other certificates are no gateway.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=leaf[0])
    return context


def credentials(key: str) -> dict[str, str]:
    """Return the header that carries `key`, without whitespace and control characters of a paste; {} for no key."""
    key = re.sub("[^!-~]", "", key)
    return {"Authorization": f"Bearer {key}"} if key else {}


def get(settings: Settings, path: str, *, key: str = "", timeout: float = OPEN_SECONDS) -> tuple[int, Any]:
    """Fetch a route of the gateway. Return status and JSON body, None for a body that is not JSON.

    Raises OSError or HTTPException.
    """
    where = urlsplit(settings.url)
    host, port, tls = where.hostname or "", where.port or 0, pinned(settings.tls_cert)
    if tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
    try:
        connection.request("GET", path, headers=credentials(key))
        response = connection.getresponse()
        return response.status, _json(response.read(1 << 20))
    finally:
        connection.close()


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _reason(status: int, body: bytes | None) -> str:
    """Return the reason that a rejected WebSocket upgrade gives."""
    answer = _json(body or b"")
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f"{message} (HTTP {status})" if message else f"HTTP {status}"
