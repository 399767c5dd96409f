"""Users and their API keys, in one SQLite file that several processes share. Only digests of keys are stored."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from cache import Database, Ledger, StoreError
from gateway.auth import erasures, usage
from gateway.auth.erasures import Erasures
from gateway.auth.principal import Limits
from gateway.auth.usage import UsageCounters
from gateway.auth.user import Key, User, digest

FILE: Final = "users.db"
RECORD: Final = "keys.required"
"""Name of the file that records, outside users.db, that the gateway has had keys: without users.db it stays closed."""
_RECORDED: Final = """\
This gateway has had API keys. While this file exists, the gateway rejects all requests if users.db is missing.
"""
TABLE: Final = "users"
"""Table of keys in the ledger."""
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
"""
_LATER_COLUMNS: Final = {
    "rotated_at": "INTEGER NOT NULL DEFAULT 0",
    "old_digest": "BLOB",
    "old_until": "INTEGER NOT NULL DEFAULT 0",
    "tokens_per_day": "INTEGER",
    "limits_at": "INTEGER NOT NULL DEFAULT 0",
}
"""Columns that files of earlier versions lack."""


class UserError(Exception):
    """A user cannot be added, changed or revoked. The text gives the reason."""


class UsersLostError(StoreError):
    """There were users, but users.db has none: no key can be checked."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the state folder."""
        super().__init__(
            f"{FILE}: the API keys of this gateway are gone: restore {folder / FILE} from a backup, or delete "
            f"{folder / RECORD} to serve without keys"
        )


_COLUMNS: Final = ", ".join(User.__struct_fields__)
_KEY_FIELDS: Final = Key.__struct_fields__
_KEY_COLUMNS: Final = ", ".join(_KEY_FIELDS)
_KEY_VALUES: Final = ", ".join(f"?{number}" for number, _ in enumerate(_KEY_FIELDS, 1))
_ADD: Final = f"INSERT OR REPLACE INTO users ({_KEY_COLUMNS}) VALUES ({_KEY_VALUES})"  # noqa: S608 - own names
# A later key of the same name may have been added here while the ledger was read.
_ADOPT: Final = f"""
INSERT OR REPLACE INTO users ({_KEY_COLUMNS}) SELECT {_KEY_VALUES}
WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = ?{_KEY_FIELDS.index("name") + 1}
    AND (created_at, tenant) >= (?{_KEY_FIELDS.index("created_at") + 1}, ?{_KEY_FIELDS.index("tenant") + 1}))
"""  # noqa: S608 - own names
_UPDATE: Final = f"""
UPDATE users SET {", ".join(f"{name} = ?{number}" for number, name in enumerate(_KEY_FIELDS, 1))}
WHERE tenant = ?{_KEY_FIELDS.index("tenant") + 1}
"""  # noqa: S608 - own names


class Users:
    """The file users.db. All methods raise StoreError if the disk fails."""

    def __init__(self, folder: Path, *, ledger: Ledger | None = None, clock: Callable[[], float] = time.time) -> None:
        """Open or create the file in `folder`. `ledger` is shared with other gateways; `close` leaves it open."""
        self._folder = folder
        self._database = Database(folder / FILE, _SCHEMA + usage.SCHEMA + erasures.SCHEMA, prepare=_add_columns)
        self.erasures = Erasures(self._database, ledger, clock)
        """Users whose data has to be erased."""
        self.usage = UsageCounters(self._database, ledger, self.erasures, clock)
        """What users have used."""
        self._ledger = ledger
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._revision: int | None = None
        self._sharing = asyncio.Lock()
        self.unpublished = ledger is not None
        """Whether the ledger may lack keys of this gateway. `share` publishes them when the ledger is available."""

    async def add(
        self,
        name: str,
        *,
        admin: bool = False,
        expires_at: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> str:
        """Add a user and return the key, which cannot be displayed again. Raises UserError."""
        if not _NAME.fullmatch(name):
            raise UserError("a name must be 1 to 64 letters, digits or . @ + - _")
        await self.share()
        await self.check()
        before = next((user for user in await self.all() if user.name == name), None)
        if before is not None and before.revoked_at is None:
            raise UserError(f"user {name} already exists; revoke it first: samovar keys revoke {name}")
        key = PREFIX + secrets.token_urlsafe(32)
        # Later than the key it replaces, whatever the clock of the gateway that created that one.
        created = max(int(self._clock()), before.created_at + 1 if before is not None else 0)
        new = Key(
            name=name,
            tenant=secrets.token_hex(16),
            digest=digest(key),
            admin=admin,
            weight=limits.weight,
            concurrency=limits.concurrency,
            tokens_per_minute=limits.tokens_per_minute,
            tokens_per_day=limits.tokens_per_day,
            created_at=created,
            limits_at=created,
            expires_at=expires_at,
            revoked_at=None,
        )
        await self._database.run(_ADD, msgspec.structs.astuple(new))
        await self._publish_change()
        return key

    async def revoke(self, name: str) -> None:
        """Revoke a key. The user stays listed, and the gateway still requires keys. Raises UserError."""
        await self.share()
        await self.check()
        done = await self._database.run(
            "UPDATE users SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL RETURNING name",
            (int(self._clock()), name),
        )
        if not done:
            raise UserError(f"no user {name} has a valid key; see: samovar keys list")
        await self._publish_change()

    async def rotate(self, name: str, *, grace: float = 0.0, expires_at: int | None = None) -> str:
        """Replace a user's key and return the new one; tenant, limits and usage stay. Raises UserError.

        The old key works for another `grace` seconds. `expires_at` replaces the expiry of the user, if it is given.
        """
        user = await self._unrevoked(name)
        now = int(self._clock())
        if not user.is_valid(now) and expires_at is None:
            raise UserError(f"the key of {name} has expired; say until when the new one works: --expires 90d")
        key = PREFIX + secrets.token_urlsafe(32)
        changed = msgspec.structs.replace(
            user.key,
            digest=digest(key),
            expires_at=user.expires_at if expires_at is None else expires_at,
            rotated_at=max(now, user.rotated_at + 1),
            old_digest=user.digest,
            old_until=now + int(grace),
        )
        await self._update(changed)
        await self._publish_change()
        return key

    async def limit(self, name: str, changes: Mapping[str, float | None]) -> None:
        """Change limits of a user, by the names of the fields of `Limits`; None means no limit. Raises UserError."""
        user = await self._unrevoked(name)
        moment = max(int(self._clock()), user.limits_at + 1)
        await self._update(msgspec.structs.replace(user.key, **changes, limits_at=moment))
        await self._publish_change()

    async def _unrevoked(self, name: str) -> User:
        """Return the user of this name, as all gateways know it. Raises UserError if the key is revoked."""
        await self.share()
        await self.check()
        user = next((user for user in await self.all() if user.name == name), None)
        if user is None or user.revoked_at is not None:
            raise UserError(f"no user {name} has a valid key; see: samovar keys list")
        return user

    async def erase(self, name: str) -> str:
        """Revoke a user's key and have all data of the user erased; return the tenant. Raises UserError.

        Of the user remain the name and the tenant's random id, by which other gateways learn of it.
        """
        await self.share()
        await self.check()
        gone = await self.erasures.tenants()
        user = next((user for user in await self.all() if user.name == name and user.tenant not in gone), None)
        if user is None:
            raise UserError(f"there is no user {name}; see: samovar keys list")
        if user.revoked_at is None:
            await self._update(msgspec.structs.replace(user.key, revoked_at=int(self._clock())))
        await self.erasures.ask(user.tenant)
        await self._publish_change()
        return user.tenant

    async def finish_erasure(self, tenant: str) -> None:
        """Record that this gateway has erased the data of a tenant."""
        await self.erasures.finish(tenant, use=await self.usage.record_name(tenant))

    async def _update(self, key: Key) -> None:
        await self._database.run(_UPDATE, msgspec.structs.astuple(key))

    async def find(self, tenant: str) -> User | None:
        """Return the user of a tenant."""
        return next((user for user in await self.all() if user.tenant == tenant), None)

    async def all(self) -> list[User]:
        """Return all users by name, including revoked ones."""
        rows = await self._database.work(self._read_all)
        fields = User.__struct_fields__
        return [msgspec.convert(dict(zip(fields, row, strict=True)), User, strict=False) for row in rows]

    def _read_all(self, connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
        """Read all rows, and record outside the file that there are any."""
        rows = connection.execute(f"SELECT {_COLUMNS} FROM users ORDER BY name").fetchall()  # noqa: S608 - own names
        record = self._folder / RECORD
        if rows and not record.exists():
            _write(record, _RECORDED)
        return rows

    @property
    def is_open(self) -> bool:
        """Whether the file is open; False after it was replaced by a file that is not a database."""
        return self._database.is_open

    async def check(self) -> None:
        """Raise UsersLostError if there were users and there are none now: users are revoked, never deleted."""
        if not await self.all() and await self._database.work(lambda _: (self._folder / RECORD).exists()):
            raise UsersLostError(self._folder)

    async def changed(self) -> bool:
        """Return whether users were changed, or the file was replaced, since the last call; True at the first call."""
        [[version]] = await self._database.run("PRAGMA data_version")
        before, self._seen = self._seen, (self._database.generation, version)
        changed = self._seen != before
        self.unpublished |= changed and self._ledger is not None
        return changed

    async def share(self) -> bool:
        """Merge other gateways' keys into the file, publish keys that they lack, and return whether the file changed.

        While the ledger is unavailable nothing is merged, `unpublished` stays set, and no error is raised: the local
        file is authoritative.
        """
        if self._ledger is None:
            return False
        async with self._sharing:
            try:
                revision = await self._ledger.revision(TABLE)
                if revision is not None and revision == self._revision and not self.unpublished:
                    return False
                theirs = await self._ledger.read(TABLE)
            except StoreError:
                self._revision, self.unpublished = None, True
                return False
            changed = await self._merge(theirs)
            try:
                self._revision, self.unpublished = await self._publish(theirs, revision), False
            except StoreError:
                self._revision, self.unpublished = None, True
            return changed

    async def _merge(self, records: list[bytes]) -> bool:
        """Store other gateways' newer keys and revocations, and return whether there were any."""
        ours = {user.name: user.key for user in await self.all()}
        changed = False
        for theirs in map(_decode, records):
            mine = ours.get(theirs.name)
            merged = theirs if mine is None else mine.merged(theirs)
            if merged == mine:
                continue
            changed, ours[merged.name] = True, merged
            if mine is not None and mine.tenant == merged.tenant:
                await self._update(merged)
            else:
                await self._database.run(_ADOPT, msgspec.structs.astuple(merged))
        return changed

    async def _publish(self, records: list[bytes], revision: int | None) -> int | None:
        """Write keys that differ from the ledger's `records`. Return the revision with all of ours, None if unknown."""
        assert self._ledger is not None  # noqa: S101 - see share
        theirs: dict[str, Key] = {}
        for key in map(_decode, records):
            theirs[key.name] = key.merged(theirs[key.name]) if key.name in theirs else key
        users = await self.all()
        if revision is None:  # the ledger is new or has lost its data
            self.usage.republish(user.tenant for user in users)
        ours = {user.name: user.key for user in users}
        newer = {name: _encode(key) for name, key in ours.items() if theirs.get(name) != key}
        if not newer:
            return revision
        written = await self._ledger.write(TABLE, newer)
        return written if written == (revision or 0) + 1 else None  # else another gateway wrote too: read again

    async def _publish_change(self) -> None:
        self._seen = None  # SQLite's version counts changes of other connections only
        await self.all()  # records that there are keys before the first key is published
        self.unpublished = self._ledger is not None
        await self.share()

    async def all_with_total_usage(self) -> list[User]:
        """Return all users but erased ones with their usage at all gateways; without the ledger, at this one."""
        gone = await self.erasures.tenants()
        return await self.usage.totals([user for user in await self.all() if user.tenant not in gone])

    def close(self) -> None:
        """Close the file."""
        self._database.close()


async def exist(folder: Path, ledger: Ledger | None = None) -> bool:
    """Return whether a key exists or existed, here or at a gateway that shares `ledger`. Creates no files.

    An unavailable ledger counts as empty. Raises StoreError, or UsersLostError if there were keys that are lost.
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


def _add_columns(connection: sqlite3.Connection) -> None:
    """Add the columns that a file of an earlier version lacks."""
    found = {row[1] for row in connection.execute("PRAGMA table_info(users)")}
    for name, kind in _LATER_COLUMNS.items():
        if name not in found:
            with suppress(sqlite3.OperationalError):  # another process has just added it
                connection.execute(f"ALTER TABLE users ADD COLUMN {name} {kind}")


def _decode(record: bytes) -> Key:
    """Return the key of a ledger record. Only holders of the cache key can have written the record."""
    return msgspec.msgpack.decode(record, type=Key)


def _encode(key: Key) -> bytes:
    return msgspec.msgpack.encode(key)


def _write(path: Path, text: str) -> None:
    """Write a small file, readable only by its owner, that survives a power failure."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
