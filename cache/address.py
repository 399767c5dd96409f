"""The address of a store: its URL, parsed once. The form for display is built from the parts that are not secret."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

SCHEMES: Final = ("sqlite", "memory", "redis", "rediss", "redis+sentinel", "unix")
SERVERS: Final = ("redis", "rediss", "redis+sentinel", "unix")
"""URL schemes of stores that gateways on several machines can share."""
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_NODE: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[\w.-]+))(?::(?P<port>\d{1,5}))?")
_ENCODE: Final = "percent-encode the password (# is %23, / is %2F, ? is %3F, @ is %40, % is %25)"


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError
    return text.lower() in ("true", "yes", "1")


def _requirement(text: str) -> str:
    if text not in ("none", "optional", "required"):
        raise ValueError
    return text


_PLAIN: Final[Mapping[str, Callable[[str], Any]]] = {
    "db": int,
    "username": str,
    "password": str,
    "client_name": str,
    "protocol": int,
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "health_check_interval": int,
    "max_connections": int,
}
_TLS: Final[Mapping[str, Callable[[str], Any]]] = {
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_ca_data": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": _requirement,
    "ssl_check_hostname": _flag,
    "ssl_ciphers": str,
}
_SENTINEL: Final[Mapping[str, Callable[[str], Any]]] = {"sentinel_username": str, "sentinel_password": str}
_KNOWN: Final = {**_PLAIN, **_TLS, **_SENTINEL}


@dataclass(frozen=True)
class Address:
    """The parts of a store's URL. `str(address)` contains no secret."""

    scheme: str
    nodes: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the Redis server or of the Sentinels; empty for files and Unix sockets."""
    path: str = ""
    """Path of the file or the Unix socket."""
    service: str = ""
    """Name of the master in the Sentinels' configuration."""
    db: int = 0
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Connection options of redis-py by name, including user name and password."""

    def __str__(self) -> str:
        """Return the URL without user, password and options."""
        if not self.nodes:
            return f"{self.scheme}://{self.path}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"{self.scheme}://{hosts}/{self.service}{'/' if self.service else ''}{self.db}"


def parse_address(url: str) -> Address:
    """Return the parts of `url`. Raises ValueError; its text contains no part of a password."""
    scheme, separator, rest = url.partition("://")
    if scheme not in SCHEMES or not separator:
        raise ValueError(
            "must be sqlite:///PATH, redis://…, rediss://…, redis+sentinel://HOST,HOST/NAME/DB, unix://PATH or memory://"
        )
    if "#" in rest:
        raise ValueError(f"must not contain #; {_ENCODE if scheme in SERVERS else 'write # as %23'}")
    main, _, query = rest.partition("?")
    authority, slash, path = main.partition("/")
    if scheme in SERVERS:
        if "@" in query or "@" in path:
            raise ValueError(f"must have no @ after the host; {_ENCODE}")
        return _server(scheme, authority, slash + path, query)
    if query:
        raise ValueError("takes no options; write ? as %3F in a path")
    if scheme == "sqlite" and (authority or not unquote(path).strip("/")):
        raise ValueError("must have three slashes and a path: sqlite:///var/lib/samovar/blocks.db")
    return Address(scheme, path=unquote(slash + path))


def _server(scheme: str, authority: str, path: str, query: str) -> Address:
    userinfo, _, hosts = authority.rpartition("@")
    options = _options(scheme, query)
    username, _, password = userinfo.partition(":")
    options |= {name: unquote(text) for name, text in (("username", username), ("password", password)) if text}
    if scheme == "unix":
        if hosts or not path.strip("/"):
            raise ValueError(f"must have a path: unix:///run/redis/redis.sock; {_ENCODE}")
        return Address(scheme, path=unquote(path), db=options.pop("db", 0), options=options)
    nodes = _nodes(scheme, hosts)
    service, db = _service_and_db(scheme, [unquote(part) for part in path.strip("/").split("/")])
    return Address(scheme, nodes, service=service, db=options.pop("db", db), options=options)


def _nodes(scheme: str, hosts: str) -> tuple[tuple[str, int], ...]:
    """Return hosts and ports. Error messages never quote the input, which may be part of a password."""
    sentinel = scheme == "redis+sentinel"
    nodes = []
    for node in hosts.split(",") if sentinel else [hosts]:
        match = _NODE.fullmatch(node)
        if match is None or not 0 < int(match["port"] or 1) < 1 << 16:
            example = "HOST:26379,HOST:26379/NAME/0" if sentinel else "HOST:6379/0"
            raise ValueError(f"must have a host, and a number as port if any: {scheme}://{example}; {_ENCODE}")
        nodes.append((match["v6"] or match["name"], int(match["port"] or (SENTINEL_PORT if sentinel else REDIS_PORT))))
    return tuple(nodes)


def _service_and_db(scheme: str, parts: list[str]) -> tuple[str, int]:
    """Return the name of the Sentinels' master (empty without Sentinels) and the database number."""
    service = ""
    if scheme == "redis+sentinel":
        service, *parts = parts
        if not service:
            raise ValueError("must have the name of the master: redis+sentinel://HOST:26379,HOST:26379/NAME/0")
    db = parts[0] if parts else ""
    if len(parts) > 1 or not re.fullmatch(r"\d{0,6}", db, re.ASCII):
        raise ValueError(f"must have the number of a database after the {'name' if service else 'host'}; {_ENCODE}")
    return service, int(db or 0)


def _options(scheme: str, query: str) -> dict[str, Any]:
    """Return the connection options for redis-py.

    An error message quotes an unknown option only if its name resembles a known one: it may be part of a password.
    """
    extra = {"rediss": _TLS, "redis+sentinel": _SENTINEL}.get(scheme, {})
    allowed = {**_PLAIN, **extra}
    options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in _KNOWN and name not in allowed:
            needed = "rediss" if name in _TLS else "redis+sentinel"
            raise ValueError(f"the option {name} requires {needed}://, not {scheme}://")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            if near:
                raise ValueError(f"has an unknown option {name}; did you mean {near[0]}?")
            known = ", ".join(sorted(allowed))
            raise ValueError(f"has an unknown option; the options are {known}; in a password write & as %26")
        try:
            options[name] = allowed[name](text)
        except ValueError:
            raise ValueError(f"the option {name} has an invalid value") from None
    return options


def check_url(url: str) -> str:
    """Return `url` if it names a store. Raises ValueError; its text contains no part of a password."""
    parse_address(url)
    return url


def shown(url: str) -> str:
    """Return `url` without user name, password and options, for logs and messages."""
    return str(parse_address(url))
