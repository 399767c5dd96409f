"""Origins of web pages (RFC 6454): comparison with the server's own, and with those that the operator allows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
"""Default ports by scheme."""
_WILDCARD: Final = r"[^/]*"


class Origins:
    """The allowed origins. An entry may contain `*`: `*` alone, `chrome-extension://*`, `https://*.example.org`."""

    def __init__(self, entries: Iterable[str]) -> None:
        """`entries` are those of the setting `allowed_origins`."""
        self.pattern = "|".join(map(_pattern, entries))
        """Regular expression that matches whole normalized origins; empty if none is allowed."""
        self._pattern = re.compile(self.pattern) if self.pattern else None

    def allow(self, origin: str) -> bool:
        """Return whether pages of `origin`, the value of a header, may call."""
        return self._pattern is not None and self._pattern.fullmatch(normalized(origin)) is not None


def normalized(origin: str) -> str:
    """Return an origin in lower case, without its scheme's default port."""
    origin = origin.strip().rstrip("/").lower()
    scheme, separator, rest = origin.partition("://")
    port = PORTS.get(scheme)
    return origin if port is None else f"{scheme}{separator}{rest.removesuffix(f':{port}')}"


def is_own(origin: str, host: str, *, port: int | None) -> bool:
    """Return whether `origin` is that of the page that this server serves under `host`, a header's value.

    `port` is the port that the server listens on. A browser omits only default ports, so a host without port at a
    server with another port comes from a proxy that removed the port; then only the names are compared. Raises
    ValueError.
    """
    page, own = urlsplit(origin), urlsplit(f"//{host}")
    if page.scheme not in PORTS or page.hostname is None or page.hostname != own.hostname:
        return False
    default = PORTS[page.scheme]
    if own.port is None and port not in (None, *PORTS.values()):
        return True
    return (page.port or default) == (own.port or default)


def _pattern(entry: str) -> str:
    if entry == "*":
        return ".*"
    return _WILDCARD.join(re.escape(part) for part in normalized(entry).split("*"))
