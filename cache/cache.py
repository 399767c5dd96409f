"""The gateway's hold on the cache: opens the store, tells engines of it, and sees that it is up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import structlog

from cache.config import CacheConfig
from cache.copies import Copies
from cache.errors import KeyMismatchError, StoreError
from cache.guarded import Guarded, Observe
from cache.keys import KeyRing
from cache.ledger import Ledger
from cache.prefixes import PrefixCache
from cache.redis import RedisStore
from cache.store import open_store, shown

log = structlog.get_logger("cache")

SWEEP_SECONDS: Final = 3_600.0
CHECK_SECONDS: Final = 10.0
"""Between two looks at the store, which tell of an outage while nobody uses it."""


class Cache:
    """The gateway's hold on the store that its engines share, and other gateways too when it is a Redis."""

    def __init__(
        self, url: str, keys: KeyRing, *, ttl: float, max_bytes: int, observe: Observe = lambda _: None
    ) -> None:
        """Open it. A store that is away is no error: it is asked for again later.

        Raises KeyMismatchError when what lies there was sealed under another key, StoreError when it can never be had.
        """
        raw = open_store(url, ttl=ttl, max_bytes=max_bytes)
        self.store = Guarded(raw, observe=observe)
        self.copies = Copies(url, keys, ttl=ttl, observe=observe) if isinstance(raw, RedisStore) else None
        """Where conversations are copied to for other gateways."""
        self.users = Ledger(url, keys, observe=observe) if Ledger.serves(url) else None
        """Where gateways tell each other of users."""
        self.config = CacheConfig(raw.url, ttl, max_bytes, keys.text)
        self._keys = keys
        self._checked = False
        try:
            self.check_key()
        except KeyMismatchError:
            self.close()
            raise
        except StoreError as error:
            log.warning(
                "the cache is away: everything is computed until it is back", store=shown(url), reason=str(error)
            )

    def check_key(self) -> None:
        """Compare the fingerprint beside the data. Raises KeyMismatchError, or StoreError when it can't be read."""
        if self._keys.check(self.store.read_mark(), shown(self.config.url)):
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
            try:
                await asyncio.to_thread(self.store.ping if self._checked else self.check_key)
                if time.monotonic() - swept > SWEEP_SECONDS:
                    swept = time.monotonic()
                    await asyncio.to_thread(self.store.sweep)
            except KeyMismatchError as error:
                self._checked = True  # said once; under another key nothing of it is ever found, so nothing is harmed
                log.error("the cache is another's", reason=str(error))
            except StoreError:  # the guard has counted it and tries again
                continue

    def close(self) -> None:
        """Close the store; one in memory is gone then."""
        self.store.close()
        for shared in (self.copies, self.users):
            if shared is not None:
                shared.close()
