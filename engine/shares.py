"""Divides the cores between engines, so that together they never use more threads than there are cores.

When cores are oversubscribed, llama.cpp's spinning barriers are many times slower (12 tokens/s where 87 were possible).
So a thread is revoked before it is granted to another engine, and a revocation takes effect only when the engine has
confirmed it, after its current step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class CoreShares:
    """Divides `cores` evenly between the engines that have work. The first ones get the remainder."""

    def __init__(self, cores: int, grant: Callable[[str, int], None]) -> None:
        """`grant(engine, threads)` sends an engine its new number of threads; the engine's reply goes to `confirm`."""
        self._cores = cores
        self._grant = grant
        self._granted: dict[str, int] = {}
        """Threads last granted to each engine."""
        self._held: dict[str, int] = {}
        """Threads that each engine may be using at this moment: never fewer than granted."""
        self._unconfirmed: dict[str, int] = {}
        """Number of unconfirmed grants of each engine. Only the confirmation of the last one updates `_held`."""
        self._working: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """Total threads that engines may be using at this moment."""
        return sum(self._held.values())

    def work(self, engines: Sequence[str]) -> None:
        """Set the engines that have work. If they outnumber the cores, the last ones get no thread yet."""
        self._working = tuple(engines)
        self._distribute()

    def confirm(self, engine: str, threads: int) -> None:
        """Handle an engine's confirmation that it uses at most `threads` from now on. Confirmations arrive in order."""
        self._unconfirmed[engine] -= 1
        if self._unconfirmed[engine] == 0:
            self._held[engine] = threads
            self._distribute()

    def lost(self, engine: str) -> None:
        """Remove an engine whose process has ended, and free its threads."""
        self._granted.pop(engine, None)
        self._held.pop(engine, None)
        self._unconfirmed.pop(engine, None)
        self._working = tuple(name for name in self._working if name != engine)
        self._distribute()

    def _targets(self) -> dict[str, int]:
        working = self._working[: self._cores]
        each, rest = divmod(self._cores, len(working)) if working else (0, 0)
        return {name: each + (i < rest) for i, name in enumerate(working)}

    def _distribute(self) -> None:
        targets = self._targets()
        for name, granted in list(self._granted.items()):
            if targets.get(name, 0) < granted:
                self._send(name, targets.get(name, 0))
        for name, target in targets.items():
            granted = self._granted.get(name, 0)
            held = self._held.get(name, 0)
            # Threads that other engines still hold are distributed when these engines confirm their revocation.
            possible = min(target, held + self._cores - self.held)
            if possible > granted:
                self._held[name] = max(held, possible)
                self._send(name, possible)

    def _send(self, name: str, threads: int) -> None:
        self._granted[name] = threads
        self._unconfirmed[name] = self._unconfirmed.get(name, 0) + 1
        self._grant(name, threads)
