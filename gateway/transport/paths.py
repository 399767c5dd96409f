"""The spellings of a path that clients use: their common forms lead to one route."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import InvalidRequestError
from gateway.transport.refusals import refuse

API: Final = "/v1"
"""Prefix of the routes of the API."""
PAGES: Final = ("/admin", "/monitor", "/usage")
"""Paths of pages with relative addresses: starlette redirects them to the form without a slash."""
_OTHER_NAMES: Final = {"/health": "/healthz"}
_SLASHES: Final = re.compile("//+")
_ABSOLUTE: Final = re.compile(rb"https?://([^/]*)(.*)", re.IGNORECASE)
"""A request target in absolute form: the host and the path."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Paths:
    """ASGI middleware that replaces the path by the one of the route that is meant.

    It removes `root_path`, duplicate and trailing slashes and a repeated `/v1`, and adds a missing `/v1`. All other
    middleware sees only the result, so that no spelling evades a check. No path has control characters: a route's
    regular expression would match before a line break at the end.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute], root_path: str = "") -> None:
        """`root_path` is the prefix under which a proxy serves the gateway; a proxy may also remove it itself."""
        self._app = app
        self._root = root_path
        paths = (str(getattr(route, "path", "")) for route in routes)
        self._names = frozenset(path.split("/")[2] for path in paths if path.startswith(f"{API}/"))
        """First segments of the API's routes after the prefix."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app with the replaced path."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        _split_absolute(scope)
        if _CONTROL.search(scope["path"]):
            await refuse(InvalidRequestError("Not Found"), scope, receive, send, status=404)
        elif self._root and scope["path"] == self._root:  # the page's relative addresses need the slash
            await RedirectResponse(f"{self._root}/", status_code=308)(scope, receive, send)
        else:
            scope["path"] = self.route(scope["path"])  # in place, so that log and metrics have it, too
            await self._app(scope, receive, send)

    def route(self, path: str) -> str:
        """Return the path of the route that `path` means, or `path` without needless slashes."""
        path = _SLASHES.sub("/", path)
        if self._root and path.startswith(f"{self._root}/"):
            path = path.removeprefix(self._root)
        if path.rstrip("/") in PAGES:
            return path
        if not path.startswith(("/monitor/", "/static")):
            path = f"/{path.strip('/')}"
        while path.startswith(f"{API}{API}/"):
            path = path.removeprefix(API)
        if path.split("/")[1] in self._names:
            path = API + path
        return _OTHER_NAMES.get(path, path)


def _split_absolute(scope: Scope) -> None:
    """Replace a request target in absolute form by its path, and the header `Host` by its host (RFC 9112, 3.2.2)."""
    found = _ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
    if found is not None:
        MutableHeaders(scope=scope)["host"] = found[1].decode("ascii", "replace").replace("\ufffd", "?")
        scope["path"] = unquote(found[2].decode("ascii", "replace")) or "/"


class Options:
    """ASGI middleware that answers `OPTIONS` with the methods of the path. CORS preflights end before it."""

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute]) -> None:
        """`routes` are those of the app."""
        self._app = app
        self._routes = list(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with the header `Allow`; unknown paths are left to the app."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and (methods := self._methods(scope)):
            headers = {"Allow": ", ".join([*methods, "OPTIONS"])}
            await Response(status_code=204, headers=headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _methods(self, scope: Scope) -> list[str]:
        def serves(method: str) -> bool:
            return any(route.matches({**scope, "method": method})[0] is Match.FULL for route in self._routes)

        return [method for method in _METHODS if serves(method)]
