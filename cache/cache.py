"""The gateway's side of the cache: opens the store, configures engines for it, and monitors it."""

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
"""Seconds between two sweeps of expired values."""
CHECK_SECONDS: Final = 10.0
"""Seconds between two checks of the store, so that an outage is logged even while no request uses it."""
UNAVAILABLE: Final = "the cache is away: everything is computed until it is back"
READ_ONLY: Final = "the cache takes no writes: what is computed now is not stored"
CAUSE_SECONDS: Final = 3.0
"""Longest wait, at start, for the cause of an error that the circuit breaker reported as a timeout."""


class Cache:
    """The store that the engines of this gateway share, and other gateways too if it is a Redis."""

    def __init__(
        self, url: str, keys: KeyRing, *, ttl: float, max_bytes: int, observe: Observe = lambda _: None
    ) -> None:
        """Open the store. An unavailable store is not an error: it is retried later.

        Raises KeyMismatchError if its data was sealed under another key, and StoreError if it can never be used.
        """
        raw = open_store(url, ttl=ttl, max_bytes=max_bytes)
        self.store = CircuitBreaker(raw, observe=observe)
        self.copies = Copies(url, keys, ttl=ttl, observe=observe) if isinstance(raw, RedisStore) else None
        """Copies of conversations for other gateways; None if the store is not a Redis."""
        self.users = Ledger(url, keys, observe=observe) if Ledger.serves(url) else None
        """Users and their keys, shared between gateways; None if the store is not a Redis."""
        self.documents = Ledger(url, keys, observe=observe) if Ledger.serves(url) else None
        """Conversations of users, shared between gateways; None if the store is not a Redis."""
        self.config = CacheConfig(raw.url, ttl, max_bytes, keys.text)
        self._keys = keys
        self._checked = False
        self._foreign = False
        """Whether the data was found, after the start, to be sealed under another key."""
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
        """Compare the stored key fingerprint with the key ring, and store it if it is missing or `write` is set.

        Raises KeyMismatchError, or StoreError if the fingerprint cannot be read or stored.
        """
        if self._keys.check(self.store.read_mark(), shown(self.config.url)) or write:
            self.store.write_mark(self._keys.fingerprints[0])
        self._checked = True

    def prefixes(self, what: Mapping[str, str | int | bool]) -> PrefixCache:
        """Return the blocks that engines of `what` store, to delete some of them. The cache closes it."""
        return PrefixCache(self.store, self._keys, what)

    async def run(self) -> None:
        """Check the store and delete expired values, also while no request uses it, until cancelled."""
        swept = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._report()
            try:
                await asyncio.to_thread(self._check)
                if time.monotonic() - swept > SWEEP_SECONDS:
                    swept = time.monotonic()
                    await asyncio.to_thread(self.store.sweep)
            except KeyMismatchError as error:
                # Logged once. Nothing sealed under another key is ever found, so no harm is done.
                self._checked = self._foreign = True
                log.error("the cache is another's", reason=str(error))
            except StoreError:  # the circuit breaker has counted the error and retries
                continue
            finally:
                self._report()

    def _check(self) -> None:
        """Raise StoreError unless the store is up.

        If the store accepts no writes, try one here: there may be no other write that would notice its recovery.
        """
        if not self._checked:
            self.check_key()
        elif self.store.writable and not self.store.up and not self._foreign:
            self.check_key(write=True)
        else:
            self.store.ping()

    def _report(self, reason: str = "") -> None:
        """Log once that the store became unavailable, accepts no writes, or is available again."""
        where = shown(self.config.url)
        stores = (self.store, self.copies.store) if self.copies is not None else (self.store,)
        down = next((store for store in stores if not store.up), None)
        if down is None and not self._was_up:
            log.info("the cache is back", store=where)
        elif down is not None and self._was_up:
            event = READ_ONLY if down.reachable else UNAVAILABLE
            log.warning(event, store=where, reason=reason or down.reason)
        self._was_up = down is None

    def close(self) -> None:
        """Close the store. A store in memory is deleted."""
        self.store.close()
        for shared in (self.copies, self.users, self.documents):
            if shared is not None:
                shared.close()


def _cause(store: Store, error: StoreError) -> str:
    """Return why `store` is unavailable: the error of a ping with a longer deadline than that which led to `error`."""
    pinger = ThreadPoolExecutor(1, thread_name_prefix="store-cause")
    try:
        pinger.submit(store.ping).result(CAUSE_SECONDS)
    except TimeoutError:
        store.interrupt()
    except StoreError as cause:
        return str(cause)
    finally:
        pinger.shutdown(wait=False)
    return str(error)
