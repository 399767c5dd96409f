"""The engine room: child processes that compute tokens, and the handles by which the gateway keeps them."""

from engine.annex import CELLS as ANNEX_CELLS
from engine.child import environment
from engine.comparison import Pace, Rate, compare
from engine.errors import DecodeError, EngineDiedError, EngineError, ModelLoadError, QuantizeError
from engine.llama import Model, Vocabulary, build_features, repacks_weights
from engine.messages import (
    Finished,
    Generate,
    Grammar,
    Logprob,
    Sampling,
    Started,
    Stepped,
    StoreUsed,
    Tokens,
    WorkerConfig,
)
from engine.modelfile import digest, mark
from engine.plan import WIDEST, Plan, Times, groups, heuristic, round_seconds, seconds
from engine.pool import EnginePool
from engine.process import Answer, EngineProcess, State
from engine.quality import Drift, drift
from engine.quantization import KINDS as QUANTIZATIONS
from engine.quantization import bits, quantize
from engine.residents import common_prefix
from engine.resources import Usage, engines_of, usage
from engine.tuning import measure

__all__ = [
    "ANNEX_CELLS",
    "QUANTIZATIONS",
    "WIDEST",
    "Answer",
    "DecodeError",
    "Drift",
    "EngineDiedError",
    "EngineError",
    "EnginePool",
    "EngineProcess",
    "Finished",
    "Generate",
    "Grammar",
    "Logprob",
    "Model",
    "ModelLoadError",
    "Pace",
    "Plan",
    "QuantizeError",
    "Rate",
    "Sampling",
    "Started",
    "State",
    "Stepped",
    "StoreUsed",
    "Times",
    "Tokens",
    "Usage",
    "Vocabulary",
    "WorkerConfig",
    "bits",
    "build_features",
    "common_prefix",
    "compare",
    "digest",
    "drift",
    "engines_of",
    "environment",
    "groups",
    "heuristic",
    "mark",
    "measure",
    "quantize",
    "repacks_weights",
    "round_seconds",
    "seconds",
    "usage",
]
