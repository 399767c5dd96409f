"""The model that this gateway serves: vocabulary, template, and sizes, without weights."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

from cache import CacheConfig
from engine import (
    WIDEST,
    CostModel,
    Mark,
    Sampling,
    WorkerConfig,
    mark,
    model_size,
    repacks_weights,
)
from gateway.config.settings import Settings
from gateway.errors import ModelNotFoundError
from gateway.models.catalogue import Entry, ModelNotAvailableError, SamplingDefaults, find, sampling_defaults
from gateway.models.cost_models import LearnedFile, planned
from gateway.models.digests import model_digest
from gateway.models.inspection import Details, describe
from gateway.models.sizing import OVERHEAD, SEQUENCES, ModelBytes, Sizes, sizes
from gateway.models.token_table import TokenTable
from gateway.prompts.abilities import Abilities
from gateway.prompts.messages import Configuration
from gateway.protocol.requests import ResponseCreate

N = TypeVar("N", int, float)

GATEWAY_BYTES = 160 << 20
"""Bytes of the gateway and its prompt workers with a vocabulary of 152 000 tokens (measured: 150 MB)."""
ANY = "*"
"""The alias that stands for every name."""
IDLE_CELLS = 2048
"""Maximum cells of ended requests in an engine. 1 000 idle cells slow its steps by about 1.8 %, while fetching them
again takes 20 ms: an answer of 128 tokens is faster without them."""


@dataclass(frozen=True)
class ServedModel:
    """A model and the values derived from it."""

    entry: Entry
    created: int
    """Modification time of the file in seconds since the epoch, stored because the file may be deleted later."""
    tokens: TokenTable
    template: str
    """Jinja source of the chat template."""
    mark: Mark
    """Mark (size, time and inode) of the file when it was read."""
    defaults: SamplingDefaults
    sizes: Sizes
    cell_bytes: int
    """Bytes of the KV cells and recurrent states of one engine."""
    has_blocks: bool
    """Whether the KV can be stored in blocks."""
    plan: CostModel
    learned: LearnedFile
    """The file with the step times that earlier runs learned."""
    engines: int
    """Maximum number of engine processes."""
    details: Details
    abilities: Abilities
    """What the chat template can do."""
    aliases: tuple[str, ...] = ()
    """Other names of the model; ANY stands for all."""

    @property
    def context(self) -> int:
        """Context length of a conversation in tokens."""
        return self.sizes.context

    @property
    def cells(self) -> int:
        """KV cells of one engine."""
        return self.sizes.cells

    @property
    def listed_aliases(self) -> list[str]:
        """Other names of the model, without the wildcard."""
        return [name for name in self.aliases if name not in (ANY, self.entry.name)]

    def check_name(self, name: str | None) -> None:
        """Raise ModelNotFoundError if a request for the model `name` cannot be served; None is any model."""
        if name is None or name == self.entry.name or name in self.aliases or ANY in self.aliases:
            return
        raise ModelNotFoundError(
            f"the model {name} is not served here; {self.entry.name} is; to serve it under other names, set aliases",
            param="model",
        )

    def footprint(self, engines: int) -> int:
        """Return the bytes of the gateway and `engines` engines with all cells in use. Raises OSError.

        Cells are allocated when an engine starts. Engines share weights unless llama.cpp repacks them.
        """
        weights, engine = model_size(self.entry.path), self.cell_bytes + OVERHEAD
        if repacks_weights():
            return GATEWAY_BYTES + engines * (engine + weights)
        return GATEWAY_BYTES + weights + engines * engine

    def worker(self, cache: CacheConfig, state_dir: Path, *, speculation: bool) -> WorkerConfig:
        """Return the configuration of the engines. File digests are cached in `state_dir`. Raises OSError."""
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
            speculation=speculation,
        )

    def prompts(self, instructions: str) -> Configuration:
        """Return the configuration of the prompt workers; `instructions` are the operator's."""
        return Configuration(
            model=str(self.entry.path), mark=self.mark, template=self.template, instructions=instructions
        )

    def sampling(self, request: ResponseCreate) -> Sampling:
        """Return the sampling parameters of the request, completed by the model's defaults."""
        defaults = self.defaults
        return Sampling(
            temperature=_given(request.temperature, defaults.temperature),
            top_p=_given(request.top_p, defaults.top_p),
            top_k=_given(request.top_k, defaults.top_k),
            min_p=_given(request.min_p, defaults.min_p),
            presence_penalty=_given(request.presence_penalty, 0.0),
            frequency_penalty=_given(request.frequency_penalty, 0.0),
            repeat_penalty=_given(request.repeat_penalty, defaults.repeat_penalty),
            seed=_given(request.seed, 0 if request.reproducible else secrets.randbits(32)),
            logit_bias=request.logit_bias or {},
        )


def load(settings: Settings) -> ServedModel:
    """Load the model named in the settings. Raises ModelNotAvailableError, ModelLoadError, TemplateError or OSError."""
    entry = find(settings.model)
    before = mark(entry.path)
    model = describe(entry.path)
    if model.trained_context == 0:
        raise ModelNotAvailableError(
            f"model: {entry.name} states no trained context ({model.context_key} is 0 or missing), so no request would "
            "fit; set that key in the file, or use another file of the model"
        )
    plan = planned(entry.path, settings, model.features)
    engines = settings.engine_count if settings.engines != "auto" else _engines(plan)
    needs = ModelBytes(model_size(entry.path), not repacks_weights(), model.bytes_a_token, model.bytes_a_sequence)
    found = sizes(
        needs,
        trained=model.trained_context,
        engines=engines,
        memory=settings.memory,
        engine_memory=_unless_auto(settings.engine_memory),
        context=_unless_auto(settings.context),
    )
    return ServedModel(
        entry=entry,
        created=int(entry.path.stat().st_mtime),
        tokens=model.tokens,
        template=model.template,
        mark=before,
        defaults=sampling_defaults(entry, model.sampling),
        sizes=found,
        cell_bytes=found.cells * model.bytes_a_token + SEQUENCES * model.bytes_a_sequence,
        has_blocks=model.has_blocks,
        plan=plan.limited(engines),
        learned=LearnedFile.of(entry.path, settings, model.features),
        engines=engines,
        details=model.details,
        abilities=model.abilities,
        aliases=_aliases(settings, entry.name),
    )


def _aliases(settings: Settings, served: str) -> tuple[str, ...]:
    """Return the other names of the served model. Raises ModelNotAvailableError if one stands for another model."""
    for alias, name in settings.aliases.items():
        if name not in (served, settings.model):
            raise ModelNotAvailableError(f"aliases: {alias} stands for {name}, which is not served; {served} is")
    return tuple(settings.aliases)


def fingerprint(build: Mapping[str, str | int | bool]) -> str:
    """Return what answers depend on besides the request; `build` is that of the engines' configuration."""
    package = "llama-cpp-python"  # pinned exactly, so that its version stands for one build of llama.cpp
    return f"samovar-{version('samovar')}-{package}-{build[package]}-{str(build['model'])[:12]}"


def _engines(plan: CostModel) -> int:
    """Return the most engines that the cost model ever uses, but at least two if possible, one for long prompts."""
    return min(plan.times[-1].engines, max(2, *(plan.engines(n) for n in range(1, WIDEST + 1))))


def _unless_auto(value: int | Literal["auto"]) -> int | None:
    return None if value == "auto" else value


def _given(value: N | None, default: N) -> N:
    return default if value is None else value
