"""Users and their API keys, in one SQLite file that several processes share. A key is never stored, only its digest."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cache import Database
from gateway.caller import Limits

FILE: Final = "users.db"
PREFIX: Final = "smv_"
_NAME: Final = re.compile(r"[\w.@+-]{1,64}")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS users (
    name TEXT PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, digest BLOB NOT NULL UNIQUE, admin INTEGER NOT NULL,
    weight REAL NOT NULL, concurrency INTEGER, tokens_per_minute INTEGER,
    created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER,
    last_used INTEGER, requests INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
    day TEXT NOT NULL DEFAULT '', requests_today INTEGER NOT NULL DEFAULT 0, tokens_today INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID
"""
_USED: Final = """
UPDATE users SET last_used = ?2, requests = requests + ?4, tokens = tokens + ?5, day = ?3,
    requests_today = CASE day WHEN ?3 THEN requests_today ELSE 0 END + ?4,
    tokens_today = CASE day WHEN ?3 THEN tokens_today ELSE 0 END + ?5
WHERE tenant = ?1
"""


class UserError(Exception):
    """A user cannot be added or revoked; the text says why."""


@dataclass
class Usage:
    """What one user had, since it was last written down."""

    requests: int = 0
    tokens: int = 0


class User(msgspec.Struct, frozen=True):
    """One user; times are in seconds of the epoch."""

    name: str
    tenant: str
    """A random id: whose conversations and KV blocks. A new key for an old name begins with nothing."""
    digest: bytes
    """SHA-256 of the key, whose 256 random bits need no slower hash."""
    admin: bool
    weight: float
    concurrency: int | None
    tokens_per_minute: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used: int | None
    requests: int
    tokens: int
    day: str
    """The local day that `requests_today` and `tokens_today` are of."""
    requests_today: int
    tokens_today: int

    def is_valid(self, now: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def limits(self) -> Limits:
        """What this user may have."""
        return Limits(self.concurrency, self.tokens_per_minute, self.weight)


_COLUMNS: Final = ", ".join(User.__struct_fields__)


class Users:
    """The file. Every method raises StoreError when the disk does not do its part."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create the file in `folder`."""
        self._database = Database(folder / FILE, _SCHEMA)
        self._clock = clock
        self._seen: int | None = None

    async def add(
        self,
        name: str,
        *,
        admin: bool = False,
        expires_at: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> str:
        """Add a user and give the key, which nobody can tell again. Raises UserError."""
        if not _NAME.fullmatch(name):
            raise UserError("a name is 1 to 64 letters, digits or . @ + - _")
        if any(user.name == name and user.revoked_at is None for user in await self.all()):
            raise UserError(f"there is a user {name} already; revoke it first: samovar keys revoke {name}")
        key = PREFIX + secrets.token_urlsafe(32)
        values = (name, secrets.token_hex(16), digest(key), admin, limits.weight, limits.concurrency)
        await self._database.run(
            "INSERT OR REPLACE INTO users (name, tenant, digest, admin, weight, concurrency, tokens_per_minute,"
            " created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, limits.tokens_per_minute, int(self._clock()), expires_at),
        )
        return key

    async def revoke(self, name: str) -> None:
        """End a key. The user stays listed, and the gateway closed to those without a key. Raises UserError."""
        done = await self._database.run(
            "UPDATE users SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL RETURNING name",
            (int(self._clock()), name),
        )
        if not done:
            raise UserError(f"there is no user {name} with a key; see: samovar keys list")

    async def all(self) -> list[User]:
        """Everybody by name, the revoked ones too."""
        rows = await self._database.run(f"SELECT {_COLUMNS} FROM users ORDER BY name")  # noqa: S608 - own names
        fields = User.__struct_fields__
        return [msgspec.convert(dict(zip(fields, row, strict=True)), User, strict=False) for row in rows]

    async def changed(self) -> bool:
        """Whether another process wrote since this was last asked; the first time, yes."""
        [[version]] = await self._database.run("PRAGMA data_version")
        before, self._seen = self._seen, version
        return bool(version != before)

    async def used(self, usage: Mapping[str, Usage]) -> None:
        """Write down what tenants had."""
        now = self._clock()
        for tenant, had in usage.items():
            await self._database.run(_USED, (tenant, int(now), day(now), had.requests, had.tokens))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def exist(folder: Path) -> bool:
    """Whether anybody has, or had, a key; nothing is created. Raises StoreError."""
    if not (folder / FILE).exists():
        return False
    users = Users(folder)
    try:
        return bool(asyncio.run(users.all()))
    finally:
        users.close()


def find(users: Iterable[User], key: str) -> User | None:
    """Whose key it is. All are compared, each in constant time, so that no timing tells how near a guess came."""
    wanted, found = digest(key), None
    for user in users:
        if hmac.compare_digest(user.digest, wanted):
            found = user
    return found


def digest(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def day(now: float) -> str:
    """The local date."""
    return time.strftime("%Y-%m-%d", time.localtime(now))
