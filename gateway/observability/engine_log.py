"""What becomes of the engines, as lines of the log."""

from __future__ import annotations

import structlog

from engine import EngineProcess, State


class EngineLog:
    """A line for each engine that is ready or was unloaded; of its failures the pool tells, who mends them."""

    def __init__(self) -> None:
        """No engine was seen yet: they begin stopped."""
        self._states: dict[str, State] = {}

    def changed(self, engine: EngineProcess) -> None:
        """It came into another state; that it works or rests is no line."""
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
