"""Logs when engines are loaded and unloaded."""

from __future__ import annotations

import structlog

from engine import Engine, State


class EngineLog:
    """Logs each engine that is ready or was unloaded. The pool, which restarts engines, logs failures."""

    def __init__(self) -> None:
        """Assume that all engines are stopped."""
        self._states: dict[str, State] = {}

    def changed(self, engine: Engine) -> None:
        """Log an engine's change of state, except changes between idle and busy."""
        before = self._states.get(engine.name, State.STOPPED)
        self._states[engine.name] = engine.state
        log = structlog.get_logger()
        if engine.state is State.IDLE and before is State.LOADING:
            log.info(
                "engine ready",
                engine=engine.name,
                cells=engine.cells,
                seconds=round(engine.load_seconds, 3),
                weights_seconds=round(engine.weights_seconds, 3),
                context_seconds=round(engine.context_seconds, 3),
            )
        elif engine.state is State.STOPPED:
            log.info("engine stopped", engine=engine.name)
