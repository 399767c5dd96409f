"""The route that returns the text of a document, for the chat page."""

from __future__ import annotations

import asyncio
from typing import Final
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.auth.principal import principal_of
from gateway.prompts.documents import document_text
from gateway.transport.bodies import body, with_errors
from gateway.transport.intake import owner
from gateway.transport.trusted_hosts import DOCUMENTS

MAX_DOCUMENT: Final = 10 << 20
"""Maximum bytes of a document."""
AT_ONCE: Final = 4
"""Documents that are received and read at the same time; of one user, one."""


class Documents:
    """Reads documents, whose number in memory is bounded."""

    def __init__(self) -> None:
        """Start without documents."""
        self._room = asyncio.Semaphore(AT_ONCE)
        self._owners: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def routes(self) -> list[BaseRoute]:
        """Return the routes for the app."""
        return [Route(DOCUMENTS, with_errors(self.text), methods=["POST"])]

    async def text(self, request: Request) -> Response:
        """Return the text of the document in the body."""
        turn = self._owners.setdefault(owner(request, principal_of(request)), asyncio.Lock())
        async with turn, self._room:
            found = await document_text(await body(request, MAX_DOCUMENT))
        return JSONResponse({"object": "document.text", "text": found.text, "truncated": found.is_cut})
