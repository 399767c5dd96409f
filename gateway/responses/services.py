"""The shared services of the gateway."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cache import Cache, PrefixCache
from engine import EnginePool, LearningCostModel
from gateway.auth.penalties import Penalties
from gateway.auth.registry import UserRegistry
from gateway.config.settings import Settings
from gateway.conversations.directory import Conversations
from gateway.conversations.histories import Histories
from gateway.conversations.prompt_builder import PromptBuilder
from gateway.conversations.turns import Sessions
from gateway.models.served import ServedModel
from gateway.observability.activity import Activity
from gateway.observability.metrics import Metrics
from gateway.prompts.pool import PromptWorkers
from gateway.protocol.ids import RANDOM_DIGITS, response_id
from gateway.responses.idle_work import IdleWork
from gateway.scheduling.admission import Admission
from gateway.scheduling.dispatcher import Dispatcher


@dataclass
class Services:
    """The services that requests use; one instance per gateway."""

    settings: Settings
    model: ServedModel
    cache: Cache
    prefixes: PrefixCache
    """KV blocks of the served model, used to delete some of them; engines store and fetch blocks themselves."""
    sessions: Sessions
    conversations: Conversations
    pool: EnginePool
    costs: LearningCostModel
    """Step times, as learned until now."""
    dispatcher: Dispatcher
    admission: Admission
    prompts: PromptWorkers
    prompt_builder: PromptBuilder
    metrics: Metrics
    registry: UserRegistry
    fingerprint: str
    """Version of Samovar, version of llama.cpp and digest of the model: the same seed gives the same answer as long as
    it is the same."""
    digest: str
    """SHA-256 of the served model."""
    idle_work: IdleWork = field(default_factory=IdleWork)
    """What the gateway does until the first request."""
    activity: Activity = field(default_factory=Activity)
    histories: Histories = field(default_factory=Histories)
    penalties: Penalties = field(default_factory=Penalties)
    clock: Callable[[], float] = time.time


def new_response_id() -> str:
    """Return an unguessable id of a response."""
    return response_id(secrets.token_hex(RANDOM_DIGITS // 2))


def new_id(prefix: str) -> str:
    """Return an unguessable id: `prefix` and 32 random hex digits."""
    return f"{prefix}_{secrets.token_hex(16)}"
