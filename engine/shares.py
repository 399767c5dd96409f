"""Who may use how many cores: the sum of what engines compute with never passes the budget.

Oversubscribed, llama.cpp's spinning barriers fall to a fraction of the speed (12 tokens/s where 87 were possible). So a
thread is taken back before it is given again: a *revocation* counts only when the engine has confirmed it, after its
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class CoreShares:
    """Shares `cores` out between the engines that have work, evenly, the first of them getting the rest."""

    def __init__(self, cores: int, grant: Callable[[str, int], None]) -> None:
        """`grant(engine, threads)` tells an engine its new number; `confirm` answers it."""
        self._cores = cores
        self._grant = grant
        self._told: dict[str, int] = {}
        """What each engine was told last."""
        self._held: dict[str, int] = {}
        """What each engine may be using at this moment: never less than told."""
        self._unconfirmed: dict[str, int] = {}
        """Numbers told and not answered yet: only the answer to the last one says what is used."""
        self._working: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """Threads that may compute at this moment, in all."""
        return sum(self._held.values())

    def work(self, engines: Sequence[str]) -> None:
        """From now on just these engines have work; more of them than cores wait for a thread."""
        self._working = tuple(engines)
        self._share()

    def confirm(self, engine: str, threads: int) -> None:
        """The engine answers what it was told, in order; its last answer says that it uses `threads` from here on."""
        self._unconfirmed[engine] -= 1
        if self._unconfirmed[engine] == 0:
            self._held[engine] = threads
            self._share()

    def lost(self, engine: str) -> None:
        """The engine's process is gone, and its threads with it."""
        self._told.pop(engine, None)
        self._held.pop(engine, None)
        self._unconfirmed.pop(engine, None)
        self._working = tuple(name for name in self._working if name != engine)
        self._share()

    def _targets(self) -> dict[str, int]:
        working = self._working[: self._cores]
        each, rest = divmod(self._cores, len(working)) if working else (0, 0)
        return {name: each + (i < rest) for i, name in enumerate(working)}

    def _share(self) -> None:
        targets = self._targets()
        for name, told in list(self._told.items()):
            if targets.get(name, 0) < told:
                self._tell(name, targets.get(name, 0))
        for name, target in targets.items():
            told = self._told.get(name, 0)
            held = self._held.get(name, 0)
            # What others still hold can't be given; it is shared again when they confirm.
            possible = min(target, held + self._cores - self.held)
            if possible > told:
                self._held[name] = max(held, possible)
                self._tell(name, possible)

    def _tell(self, name: str, threads: int) -> None:
        self._told[name] = threads
        self._unconfirmed[name] = self._unconfirmed.get(name, 0) + 1
        self._grant(name, threads)
