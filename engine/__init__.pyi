from .amx import repacks_weights
from .bandwidth import bandwidth
from .child import environment, module_command
from .comparison import Pace, Rate, compare
from .constraint import GRAMMAR_LIMITS, GRAMMAR_STACK
from .cost_model import WIDEST, CostModel, StepTimes, groups, heuristic, round_seconds, seconds
from .dimensions import Dimensions
from .errors import DecodeError, EngineDiedError, EngineError, ModelLoadError, QuantizeError
from .handle import Engine
from .kv.annex import ANNEX_CELLS
from .kv.manager import common_prefix
from .learning import LearnedStep, LearningCostModel
from .llama import Model, Vocabulary, build_features
from .messages import (
    Answer,
    Finished,
    Generate,
    Grammar,
    Logprob,
    PromptProgress,
    Sampling,
    Started,
    Stepped,
    StoreUsed,
    Tokens,
    WorkerConfig,
)
from .modelfile import Mark, digest, file_digest, file_mark, mark, model_files, model_path, model_size, shard
from .pool import EnginePool
from .process import State
from .quality import Drift, drift
from .quantization import QUANTIZATIONS, bits, precision, quantize
from .resources import Usage, engines_of, usage
from .splits import split_fault
from .tuning import measure

__all__ = [
    "ANNEX_CELLS",
    "GRAMMAR_LIMITS",
    "GRAMMAR_STACK",
    "QUANTIZATIONS",
    "WIDEST",
    "Answer",
    "CostModel",
    "DecodeError",
    "Dimensions",
    "Drift",
    "Engine",
    "EngineDiedError",
    "EngineError",
    "EnginePool",
    "Finished",
    "Generate",
    "Grammar",
    "LearnedStep",
    "LearningCostModel",
    "Logprob",
    "Mark",
    "Model",
    "ModelLoadError",
    "Pace",
    "PromptProgress",
    "QuantizeError",
    "Rate",
    "Sampling",
    "Started",
    "State",
    "StepTimes",
    "Stepped",
    "StoreUsed",
    "Tokens",
    "Usage",
    "Vocabulary",
    "WorkerConfig",
    "bandwidth",
    "bits",
    "build_features",
    "common_prefix",
    "compare",
    "digest",
    "drift",
    "engines_of",
    "environment",
    "file_digest",
    "file_mark",
    "groups",
    "heuristic",
    "mark",
    "measure",
    "model_files",
    "model_path",
    "model_size",
    "module_command",
    "precision",
    "quantize",
    "repacks_weights",
    "round_seconds",
    "seconds",
    "shard",
    "split_fault",
    "usage",
]
