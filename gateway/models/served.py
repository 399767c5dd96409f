"""The model that this gateway serves, as far as the gateway needs it: vocabulary, template, sizes; no weights."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cache import CacheConfig
from engine import (
    ANNEX_CELLS,
    WIDEST,
    CostModel,
    Mark,
    Sampling,
    WorkerConfig,
    mark,
    model_size,
    repacks_weights,
)
from gateway.config.machine import total_memory
from gateway.config.settings import Settings
from gateway.models.catalogue import Entry, ModelNotAvailableError, SamplingDefaults, find, sampling_defaults
from gateway.models.cost_models import planned
from gateway.models.digests import model_digest
from gateway.models.inspection import Description, describe
from gateway.models.token_table import TokenTable
from gateway.prompts.messages import Configuration
from gateway.protocol.requests import ResponseCreate

SEQUENCES = 32
"""Sequence numbers of one engine, running and remembered."""
GATEWAY_BYTES = 160 << 20
"""Bytes of the gateway and its prompt workers with a vocabulary of 152 000 tokens (measured: 150 MB)."""
OVERHEAD = 250 << 20
"""Bytes of an engine beside weights and cells: interpreter, libraries, vocabulary, contexts' buffers (measured)."""
IDLE_CELLS = 2048
"""Cells of ended answers that stay in an engine. 1 000 of them slow its steps by about 1.8 %, and fetching them again
takes 20 ms: an answer of 128 tokens is done sooner without them."""
MOST_CONTEXTS = 8
"""Cells are paid for when an engine starts, and idle ones slow its steps: no more than so many full conversations."""


@dataclass(frozen=True)
class ServedModel:
    """One model with everything derived from it."""

    entry: Entry
    created: int
    """When the file was written, in seconds of the epoch; the file may be gone later."""
    tokens: TokenTable
    template: str
    """Jinja source of the chat template."""
    mark: Mark
    """The file's mark when it was read."""
    defaults: SamplingDefaults
    context: int
    """Tokens that a conversation may hold."""
    cells: int
    """KV cells of one engine."""
    memory: int
    """Bytes that one engine may take."""
    cell_bytes: int
    """Bytes that the cells of one engine, and its recurrent states, take."""
    has_blocks: bool
    """Whether its KV can be kept in blocks."""
    plan: CostModel
    engines: int
    """Engine processes at most."""

    def footprint(self, engines: int) -> int:
        """Return the bytes that the gateway and so many engines take, all cells in use. Raises OSError.

        Cells are allocated when an engine starts; weights are shared unless they are repacked.
        """
        weights, engine = model_size(self.entry.path), self.cell_bytes + OVERHEAD
        if repacks_weights():
            return GATEWAY_BYTES + engines * (engine + weights)
        return GATEWAY_BYTES + weights + engines * engine

    def worker(self, cache: CacheConfig, state_dir: Path) -> WorkerConfig:
        """What its engines are started with; digests of files are remembered in `state_dir`. Raises OSError."""
        before = mark(self.entry.path)
        return WorkerConfig(
            str(self.entry.path),
            self.cells,
            SEQUENCES,
            self.plan,
            cache if self.has_blocks else None,
            {
                "model": model_digest(self.entry.path, state_dir),
                "llama-cpp-python": version("llama-cpp-python"),
                "context": "f16 keys and values, flash attention, unified, full sliding windows, rope of the model",
            },
            mark=before,
            idle_cells=IDLE_CELLS,
        )

    def prompts(self, instructions: str) -> Configuration:
        """What its prompt workers are started with; `instructions` are the operator's."""
        return Configuration(
            model=str(self.entry.path), mark=self.mark, template=self.template, instructions=instructions
        )

    def sampling(self, request: ResponseCreate) -> Sampling:
        """How the request wants its tokens drawn, with the model's defaults for what it leaves open."""
        defaults = self.defaults
        return Sampling(
            temperature=_given(request.temperature, defaults.temperature),
            top_p=_given(request.top_p, defaults.top_p),
            top_k=int(_given(request.top_k, defaults.top_k)),
            min_p=_given(request.min_p, defaults.min_p),
            presence_penalty=_given(request.presence_penalty, 0.0),
            frequency_penalty=_given(request.frequency_penalty, 0.0),
            repeat_penalty=_given(request.repeat_penalty, defaults.repeat_penalty),
            seed=secrets.randbits(32) if request.seed is None else request.seed,
            logit_bias=request.logit_bias or {},
        )


def load(settings: Settings) -> ServedModel:
    """Read the model of the settings. Raises ModelNotAvailableError, ModelLoadError, TemplateError or OSError."""
    entry = find(settings.model)
    before = mark(entry.path)
    model = describe(entry.path)
    if model.trained_context == 0:
        raise ModelNotAvailableError(
            f"model: {entry.name} states no trained context ({model.context_key} is 0 or missing), so that no "
            "request would fit: set that key in its file, or use another file of the model"
        )
    context = min(settings.context, model.trained_context)
    plan = planned(entry.path, settings)
    engines = settings.engine_count if settings.engines != "auto" else _engines(plan)
    memory = _memory(settings, engines)
    cells = _cells(memory - model_size(entry.path), context, model)
    return ServedModel(
        entry=entry,
        created=int(entry.path.stat().st_mtime),
        tokens=model.tokens,
        template=model.template,
        mark=before,
        defaults=sampling_defaults(entry, model.sampling),
        context=context,
        cells=cells,
        cell_bytes=cells * model.bytes_a_token + SEQUENCES * model.bytes_a_sequence,
        has_blocks=model.has_blocks,
        memory=memory,
        plan=plan.limited(engines),
        engines=engines,
    )


def _engines(plan: CostModel) -> int:
    """As many as the plan ever wants, and where it can be a second one, for long prompts beside those who stream."""
    return min(plan.times[-1].engines, max(2, *(plan.engines(n) for n in range(1, WIDEST + 1))))


def _memory(settings: Settings, engines: int) -> int:
    """Bytes that one engine may take."""
    return min(total_memory() // 4 // engines, 1 << 30) if settings.engine_memory == "auto" else settings.engine_memory


def _cells(memory: int, context: int, model: Description) -> int:
    """Return the KV cells of one engine that has `memory` bytes beside its weights."""
    most = MOST_CONTEXTS * context
    if model.bytes_a_token == 0:  # the state of a recurrent model does not grow with its tokens
        return most
    cells = (memory - OVERHEAD - SEQUENCES * model.bytes_a_sequence) // model.bytes_a_token - ANNEX_CELLS
    return max(context, min(cells, most))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
