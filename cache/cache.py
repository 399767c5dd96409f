"""The gateway's hold on the cache: opens the store, tells engines of it, and sees that it is up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from cache.address import shown
from cache.circuit_breaker import CircuitBreaker, Observe
from cache.config import CacheConfig
from cache.copies import Copies
from cache.errors import KeyMismatchError, StoreError, UnsupportedStoreError
from cache.keys import KeyRing
from cache.ledger import Ledger
from cache.prefixes import PrefixCache
from cache.redis import RedisStore
from cache.store import Store, open_store

log = structlog.get_logger("cache")

SWEEP_SECONDS: Final = 3_600.0
CHECK_SECONDS: Final = 10.0
"""Between two looks at the store, which tell of an outage while nobody uses it."""
AWAY: Final = "the cache is away: everything is computed until it is back"
TAKES_NOTHING: Final = "the cache takes no writes: what is computed now is not stored"
CAUSE_SECONDS: Final = 3.0
"""Longest search for the cause, at start, of what Guarded gave up earlier."""


class Cache:
    """The gateway's hold on the store that its engines share, and other gateways too when it is a Redis."""

    def __init__(
        self, url: str, keys: KeyRing, *, ttl: float, max_bytes: int, observe: Observe = lambda _: None
    ) -> None:
        """Open it. A store that is away is no error: it is asked for again later.

        Raises KeyMismatchError when what lies there was sealed under another key, StoreError when it can never be had.
        """
        raw = open_store(url, ttl=ttl, max_bytes=max_bytes)
        self.store = CircuitBreaker(raw, observe=observe)
        self.copies = Copies(url, keys, ttl=ttl, observe=observe) if isinstance(raw, RedisStore) else None
        """Where conversations are copied to for other gateways."""
        self.users = Ledger(url, keys, observe=observe) if Ledger.serves(url) else None
        """Where gateways tell each other of users."""
        self.config = CacheConfig(raw.url, ttl, max_bytes, keys.text)
        self._keys = keys
        self._checked = False
        self._foreign = False
        """Whether what lies there was sealed under another key, which was noticed after the start."""
        self._was_up = True
        try:
            self.check_key()
        except (KeyMismatchError, UnsupportedStoreError):
            self.close()
            raise
        except StoreError as error:
            self._report(_cause(raw, error))
        self._report()

    def check_key(self, *, write: bool = False) -> None:
        """Compare the fingerprint beside the data, and write it if it is missing or `write` says so.

        Raises KeyMismatchError, or StoreError when it can't be read or written.
        """
        if self._keys.check(self.store.read_mark(), shown(self.config.url)) or write:
            self.store.write_mark(self._keys.fingerprints[0])
        self._checked = True

    def prefixes(self, what: Mapping[str, str | int | bool]) -> PrefixCache:
        """The blocks that an engine of `what` keeps, to forget some of them; it is closed with the cache."""
        return PrefixCache(self.store, self._keys, what)

    async def keep(self) -> None:
        """See that the store is up, and drop what is past its time, also while nobody uses it. Runs until cancelled."""
        swept = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._report()
            try:
                await asyncio.to_thread(self._look)
                if time.monotonic() - swept > SWEEP_SECONDS:
                    swept = time.monotonic()
                    await asyncio.to_thread(self.store.sweep)
            except KeyMismatchError as error:
                # Logged once: under another key nothing of it is ever found, so nothing is harmed.
                self._checked = self._foreign = True
                log.error("the cache is another's", reason=str(error))
            except StoreError:  # the guard has counted it and tries again
                continue
            finally:
                self._report()

    def _look(self) -> None:
        """Raise StoreError unless the store is up. One that takes no writes is written to: nobody else may try."""
        if not self._checked:
            self.check_key()
        elif self.store.writable and not self.store.up and not self._foreign:
            self.check_key(write=True)
        else:
            self.store.ping()

    def _report(self, reason: str = "") -> None:
        """Log once that the store went away, takes no writes, or is back."""
        where = shown(self.config.url)
        stores = (self.store, self.copies.store) if self.copies is not None else (self.store,)
        bad = next((store for store in stores if not store.up), None)
        if bad is None and not self._was_up:
            log.info("the cache is back", store=where)
        elif bad is not None and self._was_up:
            event = TAKES_NOTHING if bad.reachable else AWAY
            log.warning(event, store=where, reason=reason or bad.reason)
        self._was_up = bad is None

    def close(self) -> None:
        """Close the store; one in memory is gone then."""
        self.store.close()
        for shared in (self.copies, self.users):
            if shared is not None:
                shared.close()


def _cause(store: Store, error: StoreError) -> str:
    """Return why `store` is away, in the words of an unhurried call: a deadline may have hidden it in `error`."""
    asking = ThreadPoolExecutor(1, thread_name_prefix="store-cause")
    try:
        asking.submit(store.ping).result(CAUSE_SECONDS)
    except TimeoutError:
        store.interrupt()
    except StoreError as cause:
        return str(cause)
    finally:
        asking.shutdown(wait=False)
    return str(error)
