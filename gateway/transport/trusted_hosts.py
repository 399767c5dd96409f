"""Checks of `Host`, `Origin` and content type on every route, before all other processing."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import InvalidRequestError
from gateway.transport.dialects import OLLAMA
from gateway.transport.origins import Origins, is_own
from gateway.transport.refusals import refuse

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\\\[\]]+)(:\d*)?")
"""The form of the header `Host`: a name or an address, and a port (RFC 9110, section 7.2)."""
_PRIVATE: Final = re.compile(r"[a-z0-9_-]+|([a-z0-9_-]+\.)+internal")
"""Names that the public DNS does not have: of Compose services, and such as `host.docker.internal`."""

DOCUMENTS: Final = "/v1/documents/text"
"""The route whose body is a document."""
DOCUMENT_TYPES: Final = (
    "application/pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
)
"""Content types of documents. Like JSON, they need a preflight."""


class TrustedHosts:
    """ASGI middleware against DNS rebinding, cross-origin pages, and cross-site form posts.

    DNS rebinding: a page of evil.example lets its name point to this machine, and its browser takes the gateway for
    that page's own server. The browser then sends the name in `Host`. An address in `Host`, or no `Host` at all, cannot
    come from such a page.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], origins: Collection[str], exposed: bool = False) -> None:
        """`hosts` are names that may contain `*`; `origins` are allowed in addition to the server's own.

        Private names are accepted from programs, which send no `Origin`. If the server is `exposed` to other machines,
        pages may use them, too: whoever controls the names of the network can then connect anyway.
        """
        self._app = app
        self._hosts = re.compile("|".join(_pattern(host) for host in hosts) or r"(?!)")
        self._origins = Origins(origins)
        self._exposed = exposed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app if the request is allowed; otherwise respond with 403, or 415 if its body is not JSON."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin, status = headers.get("host"), headers.get("origin"), 403
        if host is not None and not self._is_known(host, origin):
            name = _name(host)
            reason = f"the host {host} is not served here; to allow it, set allowed_hosts (--allowed-hosts {name})"
        elif origin is not None and not self._is_allowed(origin, host, _port(scope)):
            reason = f"pages of {origin} may not call; to allow them, set allowed_origins (--allowed-origins {origin})"
        elif scope["type"] == "http" and not _has_allowed_type(scope, headers):
            reason, status = "a request's body must be JSON: send the header `Content-Type: application/json`", 415
        else:
            await self._app(scope, receive, send)
            return
        # So that the page's developer can read the reason, which is all that the response contains.
        more = {} if origin is None else {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        await refuse(InvalidRequestError(reason), scope, receive, send, status=status, headers=more)

    def _is_known(self, host: str, origin: str | None) -> bool:
        name = _name(host) if _HOST.fullmatch(host) else ""
        if self._hosts.fullmatch(name) or _is_address(name):
            return True
        return (self._exposed or origin is None) and _PRIVATE.fullmatch(name) is not None

    def _is_allowed(self, origin: str, host: str | None, port: int | None) -> bool:
        try:
            return self._origins.allow(origin) or (host is not None and is_own(origin, host, port=port))
        except ValueError:
            return False


def _name(host: str) -> str:
    """Return the name or address in a `Host` header or in an entry of allowed_hosts; empty if there is none."""
    try:
        return (urlsplit(host if "://" in host else f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _pattern(host: str) -> str:
    return ".*".join(re.escape(part) for part in (_name(host) or host.lower()).split("*"))


def _is_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name) is not None
    except ValueError:
        return False


def _port(scope: Scope) -> int | None:
    server = scope.get("server")
    return server[1] if server else None


def _is_ollama(scope: Scope, headers: Headers) -> bool:
    """Return whether a body under Ollama's paths is read as JSON whatever its content type, as Ollama does.

    curl declares a form, and a page can send one without a preflight. But a browser names the page in `Origin`, which
    has been checked, and in `Sec-Fetch-Site`, which says whether the page is the gateway's own.
    """
    own = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    return scope["path"].startswith(OLLAMA) and ("origin" in headers or own)


def _has_allowed_type(scope: Scope, headers: Headers) -> bool:
    """Return whether there is no body, or one that a cross-origin page cannot send without a CORS preflight."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return True
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if scope["path"] == DOCUMENTS and kind in DOCUMENT_TYPES:
        return True
    return kind == "application/json" or _is_ollama(scope, headers)
