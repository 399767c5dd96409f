"""A store that never keeps anybody waiting: a deadline for every call, and a circuit breaker.

Idea: Nygard's circuit breaker. While a store is away its calls fail at once; a thread asks for it again, at growing
intervals, so that no request pays for the asking.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from cache.errors import StoreError, StoreFullError, StoreReadOnlyError
from cache.store import Store

T = TypeVar("T")

READ_SECONDS: Final = 0.3
"""Most that a call may take; a request whose cache is gone loses no more than this, once."""
WRITE_SECONDS: Final = 2.0
"""Likewise for what nobody waits for."""
VALUE_SECONDS: Final = 0.02
"""More for every value that is carried: 1.6 MB in this time is 80 MB/s, below which computing is hardly slower."""
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Longest pause of a store that answers a ping and fails at the next call, or that is full."""
LONGEST_AWAY: Final = 1.0
"""Longest pause between two pings of a store that answers none, and between two writes to a replica.

No request waits for these, and a failover has to be noticed soon.
"""


class Operation(msgspec.Struct, frozen=True):
    """One call of a store, as metrics tell it."""

    backend: str
    operation: str
    """get, has, put, touch, delete, …"""
    outcome: str
    """ok; of a get hit, partial or miss; error, timeout, full; skipped: not tried, as the store is away; corrupt."""
    seconds: float
    bytes: int


Observe = Callable[[Operation], None]


class CircuitBreaker:
    """A Store whose every method returns or raises StoreError in bounded time."""

    def __init__(
        self,
        store: Store,
        *,
        observe: Observe = lambda _: None,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        """Own `store`; `observe` hears of every call, in the calling thread."""
        self._store = store
        self._observe = observe
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        # Reads and writes have a thread each: a fetch must not wait for 20 MB that are written in the background.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._state = threading.Lock()
        self._closed = threading.Event()
        self._mender: threading.Thread | None = None
        self._pause = FIRST_PAUSE
        self._full_pause = FIRST_PAUSE
        self._full_until = 0.0
        self.reason = ""
        """Why the store is not up, in words; empty while it is."""

    @property
    def backend(self) -> str:
        """Its name in metrics."""
        return self._store.backend

    @property
    def url(self) -> str:
        """What another process opens to share it."""
        return self._store.url

    @property
    def reachable(self) -> bool:
        """Whether it is asked at all."""
        return self._mender is None and not self._closed.is_set()

    @property
    def up(self) -> bool:
        """Whether it gives and takes."""
        return self.reachable and not self._full_until

    @property
    def writable(self) -> bool:
        """Whether a write would be tried now."""
        return self.reachable and time.monotonic() >= self._full_until

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """See Store."""
        return self._read("get", lambda: self._store.get_many(ids), values=len(ids), outcome=_hits, size=_bytes)

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """See Store."""
        return self._read("has", lambda: self._store.has_many(ids))

    def size(self) -> int:
        """See Store."""
        return self._read("size", self._store.size)

    def read_mark(self) -> str | None:
        """See Store."""
        return self._read("mark", self._store.read_mark)

    def ping(self) -> None:
        """See Store."""
        self._read("ping", self._store.ping)

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """See Store."""
        size = sum(len(value) for _, value in pairs)
        self._write("put", lambda: self._store.put_many(pairs, renew), values=len(pairs), size=size)

    def touch(self, ids: Sequence[bytes]) -> None:
        """See Store."""
        self._write("touch", lambda: self._store.touch(ids))

    def delete(self, ids: Sequence[bytes]) -> None:
        """See Store."""
        self._write("delete", lambda: self._store.delete(ids), though_full=True)

    def sweep(self) -> None:
        """See Store."""
        self._write("sweep", self._store.sweep, though_full=True)

    def write_mark(self, fingerprint: str) -> None:
        """See Store."""
        self._write("mark", lambda: self._store.write_mark(fingerprint))

    def ask(self, operation: str, work: Callable[[], T]) -> T:
        """What `work` reads from this store in a way of its own, as bounded and counted as the rest."""
        return self._read(operation, work)

    def tell(self, operation: str, work: Callable[[], T]) -> T:
        """Likewise for what it writes."""
        return self._write(operation, work)

    def count(self, operation: str, outcome: str, seconds: float = 0.0, size: int = 0) -> None:
        """Tell of something that was done with what the store gave."""
        self._observe(Operation(self.backend, operation, outcome, seconds, size))

    def interrupt(self) -> None:
        """See Store."""
        self._store.interrupt()

    def close(self) -> None:
        """End what is under way and close the store."""
        self._closed.set()
        self._store.interrupt()
        for lane in (self._reading, self._writing):
            lane.shutdown(wait=True, cancel_futures=True)
        if self._mender is not None:
            self._mender.join()
        self._store.close()

    def _read(
        self,
        operation: str,
        work: Callable[[], T],
        *,
        values: int = 0,
        outcome: Callable[[T], str] = lambda _: "ok",
        size: Callable[[T], int] = lambda _: 0,
    ) -> T:
        if not self.reachable:
            raise self._skipped(operation)
        return self._call(self._reading, operation, work, self._read_seconds + values * VALUE_SECONDS, outcome, size)

    def _write(
        self, operation: str, work: Callable[[], T], *, values: int = 0, size: int = 0, though_full: bool = False
    ) -> T:
        if not (self.reachable if though_full else self.writable):
            raise self._skipped(operation)
        seconds = self._write_seconds + values * VALUE_SECONDS
        result = self._call(self._writing, operation, work, seconds, lambda _: "ok", lambda _: size)
        if not though_full:
            with self._state:
                self._full_pause, self._full_until, self.reason = FIRST_PAUSE, 0.0, ""
        return result

    def _skipped(self, operation: str) -> StoreError:
        self.count(operation, "skipped")
        return StoreError(self.reason or "the store is closed")

    def _call(
        self,
        lane: ThreadPoolExecutor,
        operation: str,
        work: Callable[[], T],
        seconds: float,
        outcome: Callable[[T], str],
        size: Callable[[T], int],
    ) -> T:
        """Do `work` in `lane`, for so many seconds at most, and note how it went."""
        started = time.monotonic()
        try:
            future = lane.submit(work)
        except RuntimeError as error:  # it was closed meanwhile
            raise self._skipped(operation) from error
        try:
            result = future.result(seconds)
        except CancelledError as error:  # likewise
            raise self._skipped(operation) from error
        except TimeoutError:
            future.cancel()
            self._fail(StoreError(f"no answer within {seconds:.2f} s"))
            self._store.interrupt()
            self.count(operation, "timeout", time.monotonic() - started)
            raise StoreError(self.reason) from None
        except StoreFullError as error:
            self._fill(error, LONGEST_PAUSE)
            self.count(operation, "full", time.monotonic() - started)
            raise
        except StoreReadOnlyError as error:
            self._fill(error, LONGEST_AWAY)
            self.count(operation, "error", time.monotonic() - started)
            raise
        except StoreError as error:
            self._fail(error)
            self.count(operation, "error", time.monotonic() - started)
            raise
        with self._state:
            self._pause = FIRST_PAUSE
            self.reason = self.reason if self._full_until else ""
        self.count(operation, outcome(result), time.monotonic() - started, size(result))
        return result

    def _fill(self, error: StoreError, longest: float) -> None:
        """Try no write for a while, at most `longest` seconds."""
        with self._state:
            self.reason = str(error)
            self._full_until = time.monotonic() + min(self._full_pause, longest)
            self._full_pause = min(2 * self._full_pause, LONGEST_PAUSE)

    def _fail(self, error: StoreError) -> None:
        """Ask nothing until the mender has had an answer."""
        with self._state:
            self.reason = str(error)
            if self._mender is None and not self._closed.is_set():
                mender = threading.Thread(target=self._mend, name="store-mender", daemon=True)
                with contextlib.suppress(RuntimeError):  # no memory for a thread: the next failure tries again
                    mender.start()
                    self._mender = mender

    def _mend(self) -> None:
        pause, away = self._next_pause(), FIRST_PAUSE
        while not self._closed.wait(pause):
            pause, away = away, min(2 * away, LONGEST_AWAY)
            try:
                future = self._reading.submit(self._store.ping)
                future.result(self._read_seconds)
            except TimeoutError:
                future.cancel()
                self._store.interrupt()
            except StoreError as error:
                self.reason = str(error)
            except (RuntimeError, CancelledError):  # closed meanwhile
                return
            else:
                with self._state:
                    self._mender = None
                return

    def _next_pause(self) -> float:
        """Grows until a call that somebody needed went well: an answered ping alone proves little."""
        with self._state:
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause


def _hits(values: list[bytes | None]) -> str:
    missing = values.count(None)
    return "hit" if not missing else "miss" if missing == len(values) else "partial"


def _bytes(values: list[bytes | None]) -> int:
    return sum(len(value) for value in values if value is not None)
