"""Users and their API keys, in one SQLite file that several processes share. A key is never stored, only its digest."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cache import Database, Ledger, StoreError
from gateway.auth.principal import Limits
from gateway.auth.user import Key, Use, User

FILE: Final = "users.db"
RECORD: Final = "keys.required"
"""Name of the file that says, outside of users.db, that the gateway has had keys: without users.db it stays closed."""
_RECORDED: Final = """\
This gateway has had API keys. While this file is here, it serves nobody without users.db.
"""
TABLE: Final = "users"
"""In the ledger."""
USE: Final = "use"
"""Likewise, of what each gateway did for users."""
PREFIX: Final = "smv_"
_NAME: Final = re.compile(r"[\w.@+-]{1,64}")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS users (
    name TEXT PRIMARY KEY, tenant TEXT NOT NULL UNIQUE, digest BLOB NOT NULL UNIQUE, admin INTEGER NOT NULL,
    weight REAL NOT NULL, concurrency INTEGER, tokens_per_minute INTEGER,
    created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER,
    last_used INTEGER, requests INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
    day TEXT NOT NULL DEFAULT '', requests_today INTEGER NOT NULL DEFAULT 0, tokens_today INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS here (only INTEGER PRIMARY KEY CHECK (only = 1), id TEXT NOT NULL) STRICT;
"""
_USED: Final = """
UPDATE users SET last_used = ?2, requests = requests + ?4, tokens = tokens + ?5, day = ?3,
    requests_today = CASE day WHEN ?3 THEN requests_today ELSE 0 END + ?4,
    tokens_today = CASE day WHEN ?3 THEN tokens_today ELSE 0 END + ?5
WHERE tenant = ?1
"""


class UserError(Exception):
    """A user cannot be added or revoked; the text says why."""


class UsersLostError(StoreError):
    """There were users, and users.db has none any more: nobody can tell whose keys are good."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the state folder."""
        super().__init__(
            f"{FILE}: the API keys of this gateway are gone: restore {folder / FILE} from a backup, or delete "
            f"{folder / RECORD} to let everybody in"
        )


@dataclass
class Usage:
    """What one user had, since it was last written down."""

    requests: int = 0
    tokens: int = 0


_COLUMNS: Final = ", ".join(User.__struct_fields__)
# A later one of the same name may have been made here while others' were read.
_TAKE: Final = """
INSERT OR REPLACE INTO users (name, tenant, digest, admin, weight, concurrency, tokens_per_minute, created_at,
    expires_at, revoked_at) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10
WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = ?1 AND (created_at, tenant) >= (?8, ?2))
"""
_END: Final = "UPDATE users SET revoked_at = ? WHERE tenant = ?"


class Users:
    """The file. Every method raises StoreError when the disk does not do its part."""

    def __init__(self, folder: Path, *, ledger: Ledger | None = None, clock: Callable[[], float] = time.time) -> None:
        """Open or create the file in `folder`; `ledger`, which other gateways share, stays open."""
        self._folder = folder
        self._database = Database(folder / FILE, _SCHEMA)
        self._ledger = ledger
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._revision: int | None = None
        self._sharing = asyncio.Lock()
        self._unshared: set[str] = set()
        """Tenants whose use here others have still to be told."""
        self.untold = ledger is not None
        """Whether other gateways may lack something of ours; `share` tells it, as soon as the ledger answers."""

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
        await self.share()
        await self.check()
        before = next((user for user in await self.all() if user.name == name), None)
        if before is not None and before.revoked_at is None:
            raise UserError(f"there is a user {name} already; revoke it first: samovar keys revoke {name}")
        key = PREFIX + secrets.token_urlsafe(32)
        # Later than what it takes the place of, whatever the clock of the gateway that made that.
        created = max(int(self._clock()), before.created_at + 1 if before is not None else 0)
        values = (name, secrets.token_hex(16), digest(key), admin, limits.weight, limits.concurrency)
        await self._database.run(
            "INSERT OR REPLACE INTO users (name, tenant, digest, admin, weight, concurrency, tokens_per_minute,"
            " created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, limits.tokens_per_minute, created, expires_at),
        )
        await self._changed_here()
        return key

    async def revoke(self, name: str) -> None:
        """End a key. The user stays listed, and the gateway closed to those without a key. Raises UserError."""
        await self.share()
        await self.check()
        done = await self._database.run(
            "UPDATE users SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL RETURNING name",
            (int(self._clock()), name),
        )
        if not done:
            raise UserError(f"there is no user {name} with a key; see: samovar keys list")
        await self._changed_here()

    async def all(self) -> list[User]:
        """Everybody by name, the revoked ones too."""
        rows = await self._database.work(self._read_all)
        fields = User.__struct_fields__
        return [msgspec.convert(dict(zip(fields, row, strict=True)), User, strict=False) for row in rows]

    def _read_all(self, connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
        """Read all rows. That there are any is recorded outside of the file."""
        rows = connection.execute(f"SELECT {_COLUMNS} FROM users ORDER BY name").fetchall()  # noqa: S608 - own names
        record = self._folder / RECORD
        if rows and not record.exists():
            _write(record, _RECORDED)
        return rows

    @property
    def is_open(self) -> bool:
        """Whether the file can be used at all; False after it was replaced by one that is no database."""
        return self._database.is_open

    async def check(self) -> None:
        """Raise UsersLostError if there were users and there are none any more: they are revoked, never removed."""
        if not await self.all() and await self._database.work(lambda _: (self._folder / RECORD).exists()):
            raise UsersLostError(self._folder)

    async def changed(self) -> bool:
        """Whether another process wrote since this was last asked, or replaced the file; the first time, yes."""
        [[version]] = await self._database.run("PRAGMA data_version")
        before, self._seen = self._seen, (self._database.generation, version)
        changed = self._seen != before
        self.untold |= changed and self._ledger is not None
        return changed

    async def share(self) -> bool:
        """Take over what other gateways know, and tell them what they lack; whether anything changed here.

        While the ledger is away nothing is taken, `untold` stays, and no error is raised: the file here is what counts.
        """
        if self._ledger is None:
            return False
        async with self._sharing:
            try:
                revision = await self._ledger.revision(TABLE)
                if revision is not None and revision == self._revision and not self.untold:
                    return False
                theirs = await self._ledger.read(TABLE)
            except StoreError:
                self._revision, self.untold = None, True
                return False
            taken = await self._take(theirs)
            try:
                self._revision, self.untold = await self._tell(theirs, revision), False
            except StoreError:
                self._revision, self.untold = None, True
            return taken

    async def _take(self, records: list[bytes]) -> bool:
        """Keep what others know better; whether there was any."""
        ours = {user.name: user.key for user in await self.all()}
        taken = False
        for theirs in map(_read, records):
            mine = ours.get(theirs.name)
            known = theirs if mine is None else mine.merged(theirs)
            if known == mine:
                continue
            taken, ours[known.name] = True, known
            if mine is not None and mine.tenant == known.tenant:
                await self._database.run(_END, (known.revoked_at, known.tenant))
            else:
                await self._database.run(_TAKE, msgspec.structs.astuple(known))
        return taken

    async def _tell(self, records: list[bytes], revision: int | None) -> int | None:
        """Let others know what they know worse, and give the revision that holds all of ours, if any is known to."""
        assert self._ledger is not None  # noqa: S101 - see share
        theirs: dict[str, Key] = {}
        for key in map(_read, records):
            theirs[key.name] = key.merged(theirs[key.name]) if key.name in theirs else key
        everybody = await self.all()
        if revision is None:  # all of it was lost, if there was any
            self._unshared |= {user.tenant for user in everybody}
        ours = {user.name: user.key for user in everybody}
        better = {name: _written(key) for name, key in ours.items() if theirs.get(name) != key}
        if not better:
            return revision
        told = await self._ledger.write(TABLE, better)
        return told if told == (revision or 0) + 1 else None  # else somebody wrote at the same time: look again

    async def _changed_here(self) -> None:
        await self.all()  # records that there are keys, before the first one is told
        self.untold = self._ledger is not None
        await self.share()

    async def used(self, usage: Mapping[str, Usage]) -> None:
        """Write down what tenants had."""
        now = self._clock()
        for tenant, had in usage.items():
            await self._database.run(_USED, (tenant, int(now), day(now), had.requests, had.tokens))
        if self._ledger is not None:
            self._unshared |= set(usage)
            await self._tell_use()

    async def everywhere(self) -> list[User]:
        """Everybody, as `all`, with what all gateways did for them, as far as the ledger answers."""
        users, uses = await self.all(), list[Use]()
        if self._ledger is not None:
            with suppress(StoreError):
                uses = [msgspec.msgpack.decode(record, type=Use) for record in await self._ledger.read(USE)]
        here, today = await self._here(), day(self._clock())
        for use in uses:
            if use.gateway != here:
                users = [user.and_used(use, today) if user.tenant == use.tenant else user for user in users]
        return users

    async def _tell_use(self) -> None:
        """Let other gateways know what was used here; what they cannot be told now waits for the next time."""
        if not self._unshared or self._ledger is None:
            return
        here, records = await self._here(), {}
        for user in await self.all():
            if user.tenant in self._unshared:
                use = Use(here, *(getattr(user, name) for name in Use.__struct_fields__[1:]))
                records[f"{here} {user.tenant}"] = msgspec.msgpack.encode(use)
        try:
            if records:
                await self._ledger.write(USE, records)
            self._unshared.clear()
        except StoreError:
            return

    async def _here(self) -> str:
        """What other gateways know this one by."""
        await self._database.run("INSERT OR IGNORE INTO here VALUES (1, ?)", (secrets.token_hex(8),))
        [[id_]] = await self._database.run("SELECT id FROM here")
        return str(id_)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


async def exist(folder: Path, ledger: Ledger | None = None) -> bool:
    """Whether anybody has, or had, a key, here or at a gateway that shares `ledger`; nothing is created.

    Raises StoreError, and UsersLostError where there were keys that are gone; a ledger that is away knows nobody.
    """
    if (folder / FILE).exists():
        users = Users(folder)
        try:
            if await users.all():
                return True
        finally:
            users.close()
    with suppress(StoreError):
        if ledger is not None and await ledger.read(TABLE):
            return True
    if (folder / RECORD).exists():
        raise UsersLostError(folder)
    return False


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


def _read(record: bytes) -> Key:
    """A record of the ledger; only holders of the cache key can have written it."""
    return msgspec.msgpack.decode(record, type=Key)


def _written(key: Key) -> bytes:
    return msgspec.msgpack.encode(key)


def _write(path: Path, text: str) -> None:
    """Write a small file for its owner alone, so that it outlives a power cut."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def day(now: float) -> str:
    """The local date."""
    return time.strftime("%Y-%m-%d", time.localtime(now))
