"""A store with a deadline for every call and a circuit breaker, so that no request waits for a failed store.

The circuit breaker is Nygard's (*Release It!*). While a store is unavailable, its calls fail immediately. A thread
probes the store at growing intervals, so that no request pays for the probing.
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
"""Deadline of a read in seconds: a request whose cache fails loses at most this much, once."""
WRITE_SECONDS: Final = 2.0
"""Deadline in seconds of a write, which no request waits for."""
VALUE_SECONDS: Final = 0.02
"""Seconds added to the deadline per value: 1.6 MB in this time is 80 MB/s, below which computing is hardly slower."""
FIRST_PAUSE: Final = 0.5
"""Seconds before the first probe."""
LONGEST_PAUSE: Final = 30.0
"""Longest pause in seconds if the store answers a ping but fails at the next call, or if it is full."""
LONGEST_PROBE_PAUSE: Final = 1.0
"""Longest pause in seconds between two pings of a store that does not answer, and between two writes to a replica.

No request waits for these, and a failover has to be noticed soon.
"""


class Operation(msgspec.Struct, frozen=True):
    """One call of a store, for metrics."""

    backend: str
    operation: str
    """get, has, put, delete, …"""
    outcome: str
    """ok (of a get: hit, partial or miss), error, timeout, full, corrupt, or skipped: not tried while unavailable."""
    seconds: float
    bytes: int


Observe = Callable[[Operation], None]


class CircuitBreaker:
    """A Store whose methods all return or raise StoreError in bounded time."""

    def __init__(
        self,
        store: Store,
        *,
        observe: Observe = lambda _: None,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        """Wrap and own `store`; `observe` is called for every operation, in the calling thread."""
        self._store = store
        self._observe = observe
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        # Reads and writes have one thread each: a fetch must not wait for 20 MB being written in the background.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._state = threading.Lock()
        self._closed = threading.Event()
        self._prober: threading.Thread | None = None
        self._pause = FIRST_PAUSE
        self._full_pause = FIRST_PAUSE
        self._full_until = 0.0
        self.reason = ""
        """The error because of which the store is not up; empty while it is up."""

    @property
    def backend(self) -> str:
        """See Store."""
        return self._store.backend

    @property
    def url(self) -> str:
        """See Store."""
        return self._store.url

    @property
    def reachable(self) -> bool:
        """Whether calls are passed to the store."""
        return self._prober is None and not self._closed.is_set()

    @property
    def up(self) -> bool:
        """Whether the store accepts reads and writes."""
        return self.reachable and not self._full_until

    @property
    def writable(self) -> bool:
        """Whether a write would be passed to the store now."""
        return self.reachable and time.monotonic() >= self._full_until

    def get_many(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """See Store."""
        return self.read("get", lambda: self._store.get_many(ids), values=len(ids), outcome=_hits, size=_bytes)

    def has_many(self, ids: Sequence[bytes]) -> list[bool]:
        """See Store."""
        return self.read("has", lambda: self._store.has_many(ids))

    def read_mark(self) -> str | None:
        """See Store."""
        return self.read("mark", self._store.read_mark)

    def ping(self) -> None:
        """See Store."""
        self.read("ping", self._store.ping)

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]], renew: Sequence[bytes] = ()) -> None:
        """See Store."""
        size = sum(len(value) for _, value in pairs)
        self.write("put", lambda: self._store.put_many(pairs, renew), values=len(pairs), size=size)

    def delete(self, ids: Sequence[bytes]) -> None:
        """See Store."""
        self.write("delete", lambda: self._store.delete(ids), though_full=True)

    def sweep(self) -> None:
        """See Store."""
        self.write("sweep", self._store.sweep, though_full=True)

    def write_mark(self, fingerprint: str) -> None:
        """See Store."""
        self.write("mark", lambda: self._store.write_mark(fingerprint))

    def count(self, operation: str, outcome: str, seconds: float = 0.0, size: int = 0) -> None:
        """Report an operation to `observe`, for example one on values that the store has returned."""
        self._observe(Operation(self.backend, operation, outcome, seconds, size))

    def interrupt(self) -> None:
        """See Store."""
        self._store.interrupt()

    def close(self) -> None:
        """Interrupt pending calls and close the store."""
        self._closed.set()
        self._store.interrupt()
        for thread in (self._reader, self._writer):
            thread.shutdown(wait=True, cancel_futures=True)
        if self._prober is not None:
            self._prober.join()
        self._store.close()

    def read(
        self,
        operation: str,
        work: Callable[[], T],
        *,
        values: int = 0,
        outcome: Callable[[T], str] = lambda _: "ok",
        size: Callable[[T], int] = lambda _: 0,
    ) -> T:
        """Run a read, also one that is no method of Store. Raises StoreError.

        The deadline grows with the number of `values`. `outcome` and `size` describe the result to `observe`.
        """
        if not self.reachable:
            raise self._skipped(operation)
        return self._call(self._reader, operation, work, self._read_seconds + values * VALUE_SECONDS, outcome, size)

    def write(
        self, operation: str, work: Callable[[], T], *, values: int = 0, size: int = 0, though_full: bool = False
    ) -> T:
        """Run a write of `values` values with `size` bytes; if `though_full`, also while the store is full.

        Raises StoreError.
        """
        if not (self.reachable if though_full else self.writable):
            raise self._skipped(operation)
        seconds = self._write_seconds + values * VALUE_SECONDS
        result = self._call(self._writer, operation, work, seconds, lambda _: "ok", lambda _: size)
        if not though_full:
            with self._state:
                self._full_pause, self._full_until, self.reason = FIRST_PAUSE, 0.0, ""
        return result

    def _skipped(self, operation: str) -> StoreError:
        self.count(operation, "skipped")
        return StoreError(self.reason or "the store is closed")

    def _call(
        self,
        thread: ThreadPoolExecutor,
        operation: str,
        work: Callable[[], T],
        seconds: float,
        outcome: Callable[[T], str],
        size: Callable[[T], int],
    ) -> T:
        """Run `work` in `thread` for at most `seconds`, and record the outcome."""
        started = time.monotonic()
        try:
            future = thread.submit(work)
        except RuntimeError as error:  # closed meanwhile
            raise self._skipped(operation) from error
        try:
            result = future.result(seconds)
        except CancelledError as error:  # closed meanwhile
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
            self._fill(error, LONGEST_PROBE_PAUSE)
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
        """Pass no writes to the store for a pause of at most `longest` seconds."""
        with self._state:
            self.reason = str(error)
            self._full_until = time.monotonic() + min(self._full_pause, longest)
            self._full_pause = min(2 * self._full_pause, LONGEST_PAUSE)

    def _fail(self, error: StoreError) -> None:
        """Pass no calls to the store until a probe is answered."""
        with self._state:
            self.reason = str(error)
            if self._prober is None and not self._closed.is_set():
                prober = threading.Thread(target=self._probe, name="store-probe", daemon=True)
                with contextlib.suppress(RuntimeError):  # no memory for a thread: the next failure retries
                    prober.start()
                    self._prober = prober

    def _probe(self) -> None:
        pause, next_pause = self._next_pause(), FIRST_PAUSE
        while not self._closed.wait(pause):
            pause, next_pause = next_pause, min(2 * next_pause, LONGEST_PROBE_PAUSE)
            try:
                future = self._reader.submit(self._store.ping)
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
                    self._prober = None
                return

    def _next_pause(self) -> float:
        """Return the pause before the first probe.

        It doubles with each failure until a real call succeeds: an answered ping alone proves little.
        """
        with self._state:
            pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause


def _hits(values: list[bytes | None]) -> str:
    missing = values.count(None)
    return "hit" if not missing else "miss" if missing == len(values) else "partial"


def _bytes(values: list[bytes | None]) -> int:
    return sum(len(value) for value in values if value is not None)
