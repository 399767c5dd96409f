"""The engine room: child processes that compute tokens, and the handles by which the gateway keeps them."""

from engine.errors import DecodeError, EngineDiedError, EngineError, ModelLoadError, QuantizeError
from engine.llama import Model, Vocabulary, build_features, repacks_weights
from engine.messages import Finished, Generate, Grammar, Logprob, Sampling, Started, Tokens
from engine.pool import EnginePool
from engine.process import EngineProcess, State
from engine.quantization import KINDS as QUANTIZATIONS
from engine.quantization import quantize
from engine.worker import WorkerConfig

__all__ = [
    "QUANTIZATIONS",
    "DecodeError",
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
    "QuantizeError",
    "Sampling",
    "Started",
    "State",
    "Tokens",
    "Vocabulary",
    "WorkerConfig",
    "build_features",
    "quantize",
    "repacks_weights",
]
