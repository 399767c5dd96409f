from .annex import ANNEX_CELLS
from .child import environment, module_command
from .comparison import Pace, Rate, compare
from .errors import DecodeError, EngineDiedError, EngineError, ModelLoadError, QuantizeError
from .llama import Model, Vocabulary, build_features, repacks_weights
from .messages import (
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
from .modelfile import digest, mark
from .plan import WIDEST, Plan, Times, groups, heuristic, round_seconds, seconds
from .pool import EnginePool
from .process import Answer, EngineProcess, State
from .quality import Drift, drift
from .quantization import QUANTIZATIONS, bits, quantize
from .residents import common_prefix
from .resources import Usage, engines_of, usage
from .tuning import measure

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
    "module_command",
    "quantize",
    "repacks_weights",
    "round_seconds",
    "seconds",
    "usage",
]
