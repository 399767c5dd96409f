"""Models without attention: their files state 0 heads, and their state depends on all tokens of a sequence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import Generate, Model, Sampling, Started, Tokens, WorkerConfig
from engine.dimensions import Dimensions
from engine.kv.manager import KVCacheManager
from engine.kv.places import Places
from engine.process import EngineProcess
from gateway.cli.doctor import Doctor
from gateway.cli.doctor.finding import Mark
from gateway.cli.doctor.messages import TEXTS
from gateway.cli.language import Phrases
from gateway.config.settings import load
from gateway.models import served
from gateway.models.sizing import SEQUENCES
from tests.support.cells import Cells
from tests.support.plans import MEASURED
from tests.support.tiny_model import write_tiny_mamba

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=1)
MAMBA = {
    "general.architecture": "mamba",
    "mamba.attention.head_count": "0",
    "mamba.embedding_length": "32",
    "mamba.block_count": "2",
    "mamba.ssm.conv_kernel": "4",
    "mamba.ssm.inner_size": "64",
    "mamba.ssm.state_size": "8",
}


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recurrent model."""
    return write_tiny_mamba(tmp_path_factory.mktemp("mamba") / "mamba.gguf")


@pytest.fixture
async def engine(mamba: Path) -> AsyncIterator[EngineProcess]:
    """An engine process with the recurrent model."""
    process = EngineProcess("0", WorkerConfig(str(mamba), 2048, 8, MEASURED), on_change=lambda _: None)
    await process.start()
    process.set_threads(1)
    yield process
    await process.stop()


async def answer(engine: EngineProcess, request: int, prompt: list[int]) -> tuple[int, list[int]]:
    """Return the number of cached tokens of the prompt, and the tokens of the response."""
    known, tokens = -1, list[int]()
    async for message in engine.generate(Generate(request, prompt, 8, GREEDY, scope="a")):
        match message:
            case Started(cached=cached):
                known = cached
            case Tokens(ids=ids):
                tokens += ids
    return known, tokens


async def test_a_recurrent_model_answers_prompts_with_a_common_prefix(engine: EngineProcess) -> None:
    beginning = list(range(60))
    alone = await answer(engine, 1, [*beginning, 7])
    engine.forget([1])
    assert (await answer(engine, 2, [*beginning, 9]))[0] == 0
    assert await answer(engine, 3, [*beginning, 7]) == alone == (0, alone[1])
    continued = [*beginning, 7, *alone[1], 5]
    known, tokens = await answer(engine, 4, continued)
    assert known == len(continued) - 2, "the last token of an answer is not computed"
    engine.forget([2, 3, 4])
    assert await answer(engine, 5, continued) == (0, tokens)


def test_a_prompt_continues_all_of_an_indivisible_sequence_or_nothing() -> None:
    residents = KVCacheManager(Cells(3), cells=100, sequences=3, divisible=False)
    first = residents.acquire(1, [1, 2, 3, 4], "a", 8)
    assert first is not None
    first.tokens = [1, 2, 3, 4]
    residents.release(first)
    other = residents.acquire(2, [1, 2, 3, 9], "a", 8)
    same = residents.acquire(3, [1, 2, 3, 4], "a", 8)
    assert other is not None
    assert same is not None
    assert (other.tokens, same.tokens) == ([], [])
    more = residents.acquire(4, [1, 2, 3, 4, 5], "a", 8)
    assert more is first
    assert more.tokens == [1, 2, 3, 4]


def test_a_state_changed_by_a_failed_step_is_dropped(mamba: Path) -> None:
    model = Model(mamba)
    places = Places(model, cells=256, sequences=2)
    resident = SimpleNamespace(sequence=0, tokens=[1, 2, 3])
    places.home.decode([(token, position, 0, True) for position, token in enumerate([1, 2, 3, 4])])
    places.leave(SimpleNamespace(request=1, resident=resident))  # type: ignore[arg-type]
    assert (resident.tokens, places.home.length(0)) == ([], 0)
    places.home.close()
    model.close()


def test_a_recurrent_model_needs_bytes_per_sequence_instead_of_bytes_per_token() -> None:
    dimensions = Dimensions(MAMBA.get)
    assert (dimensions.bytes_a_token, dimensions.bytes_a_sequence) == (0, 2 * (3 * 64 + 8 * 64) * 4)
    rwkv = Dimensions({"general.architecture": "rwkv7", "rwkv7.block_count": "2", "rwkv7.embedding_length": "64",
                       "rwkv7.attention.head_count": "0", "rwkv7.wkv.head_size": "16"}.get)  # fmt: skip
    assert (rwkv.bytes_a_token, rwkv.bytes_a_sequence) == (0, 2 * (2 * 64 + 64 * 16) * 4)


def test_the_memory_plan_and_the_doctor_accept_a_model_without_attention_heads(mamba: Path, tmp_path: Path) -> None:
    settings = load({"model": str(mamba), "state_dir": str(tmp_path), "port": 0, "engines": 1})
    model = served.load(settings)
    assert (model.has_blocks, model.context) == (False, 512)
    assert model.cells >= model.context
    assert model.cell_bytes == SEQUENCES * Model(mamba, vocab_only=True).dimensions.bytes_a_sequence > 0
    found = {finding.subject: finding for finding in Doctor(settings, Phrases(TEXTS, chinese=False)).findings()}
    assert (found["model"].mark, found["memory"].mark) == (Mark.OK, Mark.OK)
