"""Checks of `samovar doctor` on storage: the key file, the location of the cache, a Redis and its policy."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from cache import (
    KeyMismatchError,
    KeyRing,
    RedisStore,
    StoreDeniedError,
    StoreError,
    UnsupportedStoreError,
    parse_address,
    shown,
)
from gateway.cli.doctor.finding import Checks, Finding, Mark, nearest_existing, size

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only inspected
GOOD_POLICIES: Final = ("volatile-ttl", "volatile-lru", "allkeys-lru", "volatile-lfu", "allkeys-lfu")


class StorageChecks(Checks):
    """Read-only checks: a key or file that does not exist yet is not created."""

    def findings(self) -> Iterator[Finding]:
        """Yield the findings. The key comes first: without it nothing stored can be read."""
        try:
            keys = self._keys()
            yield self._key(keys)
        except StoreError as error:
            yield self._bad(Mark.FAIL, "key", "reason", "fix_key", reason=error)
            return
        except OSError as error:
            yield self._closed("key", error)
            return
        if keys is not None:
            yield from self._accessible("state", self._conversations(keys))
        yield from self._accessible("cache", self._cache(keys))

    def _accessible(self, subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
        """Yield `findings`, and a failure if a file or folder of theirs is closed to this user."""
        try:
            yield from findings
        except OSError as error:
            yield self._closed(subject, error)

    def _closed(self, subject: str, error: OSError) -> Finding:
        return self._bad(
            Mark.FAIL, subject, "no_database", "other_folder", path=error.filename, reason=error.strerror or error
        )

    def _keys(self) -> KeyRing | None:
        where = self._settings.key_source
        return None if isinstance(where, Path) and not where.exists() else KeyRing.load(where)

    def _key(self, keys: KeyRing | None) -> Finding:
        where = self._settings.key_source
        if keys is None:
            return self._good("key", "key_later", path=where)
        if isinstance(where, Path) and stat.S_IMODE(where.stat().st_mode) & 0o077:
            return self._bad(Mark.WARN, "key", "key_open", "close_key", path=where)
        return self._good("key", "key_good", fingerprint=keys.fingerprints[0])

    def _conversations(self, keys: KeyRing) -> Iterator[Finding]:
        path = self._settings.state_dir / "conversations.db"
        try:
            with suppress(sqlite3.Error):  # another check reports a file that is not a database
                keys.check(_mark(path) if path.exists() else None, str(path))
        except KeyMismatchError as error:
            yield self._bad(Mark.FAIL, "key", "reason", "fix_key", reason=error)

    def _cache(self, keys: KeyRing | None) -> Iterator[Finding]:
        url = self._settings.cache_url
        address = parse_address(url)
        file = Path(address.path)
        if address.scheme == "memory":
            yield from self._room(SHARED_MEMORY, "cache_memory")
        elif address.scheme == "sqlite" and not file.exists():
            yield from self._room(file, "cache_file")
        else:
            yield from self._stored(url, file, keys)

    def _stored(self, url: str, file: Path, keys: KeyRing | None) -> Iterator[Finding]:
        try:
            yield self._file(file, keys) if url.startswith("sqlite") else self._redis(url, keys)
        except KeyMismatchError as error:
            yield self._bad(Mark.FAIL, "cache", "reason", "fix_key", reason=error)
        except UnsupportedStoreError as error:
            reason = str(error).removeprefix("cache: ")
            yield self._bad(Mark.FAIL, "cache", "reason", "other_cache", reason=reason)
        except (StoreError, sqlite3.Error) as error:
            reason = str(error).removeprefix("cache: ")
            fix = "fix_file" if url.startswith("sqlite") else "fix_cache"
            yield self._bad(Mark.WARN, "cache", "cache_away", fix, store=shown(url), reason=reason)

    def _file(self, file: Path, keys: KeyRing | None) -> Finding:
        found = _mark(file)
        if keys is not None:
            keys.check(found, str(file))
        most = self._settings.cache_max_bytes
        return self._good("cache", "cache_used", store=file, size=size(file.stat().st_size), most=size(most))

    def _redis(self, url: str, keys: KeyRing | None) -> Finding:
        store = RedisStore(url, ttl=self._settings.cache_ttl)
        try:
            store.ping()
            if keys is not None:
                keys.check(store.read_mark(), shown(url))
            return self._server(store, url)
        finally:
            store.close()

    def _server(self, store: RedisStore, url: str) -> Finding:
        """Return the finding on the role and policy of a reachable server, if its user may read them."""
        try:
            about = {**store.about("memory"), **store.about("replication")}
        except StoreDeniedError:
            return self._bad(Mark.WARN, "cache", "redis_unasked", "allow_info", store=shown(url))
        if about.get("role") == "slave":
            return self._bad(Mark.WARN, "cache", "redis_replica", "fix_replica", store=shown(url))
        return self._policy(about, url)

    def _policy(self, about: dict[str, Any], url: str) -> Finding:
        most, policy = int(about.get("maxmemory", 0)), str(about.get("maxmemory_policy", "noeviction"))
        values = {"store": shown(url), "size": size(most), "policy": policy}
        if not most:
            return self._bad(Mark.WARN, "cache", "redis_unbounded", "bound_redis", **values)
        if policy not in GOOD_POLICIES:
            return self._bad(Mark.WARN, "cache", "redis_policy", "fix_policy", **values)
        return self._good("cache", "redis_good", **values)

    def _room(self, path: Path, text: str) -> Iterator[Finding]:
        free, most = shutil.disk_usage(nearest_existing(path)).free, self._settings.cache_max_bytes
        values = {"path": path, "free": size(free), "most": size(most)}
        if free < most:
            yield self._bad(Mark.WARN, "cache", "cache_short", "less_cache", **values)
        else:
            yield self._good("cache", text, **values)


def _mark(path: Path) -> str | None:
    """Return the key fingerprint of a conversation or block database. Raises sqlite3.Error if it is not one."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT fingerprint FROM marks").fetchall()
    return rows[0][0] if rows else None
