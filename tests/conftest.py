"""Fixtures that many tests share, and the order: fast tests first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine import EngineProcess, Model, WorkerConfig
from tests.running import Gateway
from tests.tiny_model import write_tiny_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests last, so that a mistake shows in seconds."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight model that real llama.cpp runs in milliseconds."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Model:
    """The tiny model, loaded in this process."""
    return Model(tiny_model)


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[EngineProcess]:
    """A running engine process with the tiny model and one thread."""
    process = EngineProcess("0", WorkerConfig(str(tiny_model), 2048, 8), on_change=lambda _: None)
    await process.start()
    process.set_threads(1)
    yield process
    await process.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with the embedded model, as a user starts it but for the length of its stories."""
    with Gateway(tmp_path_factory.mktemp("embedded"), max_output_tokens=256) as gateway:
        yield gateway


@pytest.fixture
def tiny_server(tmp_path: Path, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway of this test's own with the tiny model: fast, and talking nonsense."""
    with Gateway(tmp_path, model=tiny_model, context=512) as gateway:
        yield gateway
