"""Split models: real shards that llama.cpp loads, identified by all of them, and found through links."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import gguf
import pytest

from engine import Model, digest, mark, model_files, model_path, model_size, split_fault
from engine.errors import ModelLoadError
from engine.modelfile import require_same
from gateway.cli.models import rows
from gateway.config.settings import load as load_settings
from gateway.models import served
from gateway.models.catalogue import ModelNotAvailableError, find
from gateway.models.digests import model_digest
from gateway.models.inspection import Fault, describe, inspect
from gateway.models.library import Library
from gateway.models.sizing import OVERHEAD
from tests.support.running import Gateway
from tests.support.tiny_model import write_tiny_model

SHARD_TENSORS = 12
"""Tensors per shard, which gives three shards for the tiny model's 27 tensors."""
BYTES_A_TOKEN = 256
"""Of the tiny model's KV."""


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """The tiny model in three files."""
    return split(tmp_path / "split")


def split(folder: Path, *, seed: int = 0) -> list[Path]:
    folder.mkdir()
    first = write_tiny_model(folder / "tiny.gguf", seed=seed, shard_tensors=SHARD_TENSORS)
    return model_files(first)


def other_weights(shard: Path, folder: Path) -> bytes:
    """The same shard of the same model with other weights."""
    return (split(folder, seed=1)[0].parent / shard.name).read_bytes()


def as_hub_cache(shards: list[Path], cache: Path) -> Path:
    """Store shards as the Hugging Face cache does, and return the folder of the snapshot."""
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for shard in shards:
        blob = cache / "blobs" / hashlib.sha256(shard.read_bytes()).hexdigest()
        shard.rename(blob)
        (snapshot / shard.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def reason(path: Path) -> str:
    """Return why the model can't be served."""
    fault = inspect(path)
    assert isinstance(fault, Fault)
    return fault.reason


def test_a_split_model_is_loaded_with_all_its_shards(shards: list[Path]) -> None:
    assert [shard.name for shard in shards] == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    Model(shards[0]).close()
    describe(shards[0])
    assert split_fault(shards[0]) == ""
    assert model_size(shards[0]) == sum(shard.stat().st_size for shard in shards)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_another_shard_makes_another_model(shards: list[Path], tmp_path: Path, number: int) -> None:
    before, was = mark(shards[0]), digest(shards[0])
    assert model_digest(shards[0], tmp_path) == was
    require_same(shards[0], before, was)
    shards[number].write_bytes(other_weights(shards[number], tmp_path / "other"))
    assert mark(shards[0]) != before
    assert model_digest(shards[0], tmp_path) == digest(shards[0]) != was
    with pytest.raises(ModelLoadError, match="another model than when the server started"):
        require_same(shards[0], before, was)


def test_the_digest_of_a_single_file_is_its_sha256_whatever_its_name(tiny_model: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    alone = tmp_path / "tiny-00001-of-00003.gguf"
    alone.write_bytes(tiny_model.read_bytes())
    for path in (tiny_model, alone):
        assert digest(path) == model_digest(path, tmp_path) == expected
        assert len(mark(path)) == 1
    describe(alone)


def test_missing_shards_are_named(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(ModelNotAvailableError, match=r"tiny-00002-of-00003\.gguf is missing in"):
        find(str(shards[0]))
    shards[2].unlink()
    assert "tiny-00002-of-00003.gguf: it can't be opened: No such file" in reason(shards[0])


@pytest.mark.parametrize("length", [0, 100])
def test_a_shard_whose_header_is_truncated_is_named(shards: list[Path], length: int) -> None:
    os.truncate(shards[1], length)
    said = "it is incomplete or damaged: download it again"
    assert reason(shards[0]) == f"{shards[0].name} can't be loaded: {shards[1].name}: {said}"


def test_a_later_shard_refers_to_the_first(shards: list[Path]) -> None:
    with pytest.raises(ModelNotAvailableError, match=r"is part 2 of a split model; name its first part, tiny-00001-of"):
        find(str(shards[1]))


def test_a_shard_of_another_model_is_named(shards: list[Path], tiny_model: Path) -> None:
    original = shards[1].read_bytes()
    shards[1].write_bytes(tiny_model.read_bytes())
    assert f"{shards[1].name} is no part of a split model" in reason(shards[0])
    shards[1].write_bytes(shards[2].read_bytes())
    assert f"{shards[1].name} states that it is part 3 of 3, not 2 of 3" in reason(shards[0])
    key = b"split.tensors.count" + int(gguf.GGUFValueType.INT32).to_bytes(4, "little")
    at = original.index(key) + len(key)
    shards[1].write_bytes(original[:at] + b"\x63" + original[at + 1 :])
    assert f"{shards[1].name} belongs to another model than {shards[0].name}" in reason(shards[0])


def test_a_split_model_in_a_hub_cache_is_found_by_its_links(shards: list[Path], tmp_path: Path) -> None:
    was = digest(shards[0])
    first = as_hub_cache(shards, tmp_path / "hub") / shards[0].name
    entry = find(str(first))
    assert (entry.name, entry.path) == ("tiny-00001-of-00003", first)
    describe(entry.path)
    assert digest(entry.path) == was
    first.with_name(shards[2].name).resolve().unlink()  # as after an interrupted download
    with pytest.raises(ModelNotAvailableError, match=rf"{shards[2].name} is missing"):
        find(str(first))


def test_a_link_to_a_model_is_followed(shards: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    for target in (tiny_model, shards[0]):
        for name in ("link.gguf", target.name):
            link = tmp_path / name
            link.symlink_to(target)
            assert find(str(link)).path == model_path(link) == target.resolve()
            describe(find(str(link)).path)
            link.unlink()


def test_the_library_lists_a_split_model_once_with_its_whole_size(shards: list[Path]) -> None:
    library = Library(shards[0].parent)
    [row] = [row for row in rows(library) if row.name.startswith("tiny")]
    assert (row.name, row.size) == ("tiny-00001-of-00003", model_size(shards[0]))
    assert find(row.name, library).path == shards[0]


def test_the_memory_plan_counts_all_shards(shards: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    def load(model: Path) -> served.ServedModel:
        memory = OVERHEAD + (2 << 20)
        flags = {"model": str(model), "state_dir": str(tmp_path), "engines": 1, "engine_memory": memory, "context": 512}
        settings = load_settings(flags)
        return served.load(settings)

    whole, divided = load(tiny_model), load(shards[0])
    headers = abs(model_size(tiny_model) - model_size(shards[0]))
    assert divided.context < divided.cells == pytest.approx(whole.cells, abs=headers // BYTES_A_TOKEN + 1)
    assert headers < 4000 < model_size(shards[0]) - shards[0].stat().st_size


@pytest.mark.slow
def test_no_kv_of_the_old_weights_answers_for_a_replaced_shard(shards: list[Path], tmp_path: Path) -> None:
    def ask() -> tuple[str, int]:
        with Gateway(tmp_path / "state", model=shards[0], context=512, engines=1) as gateway:
            body = {"input": "The quick brown fox jumps. " * 8, "max_output_tokens": 16, "temperature": 0}
            response = gateway.post("/v1/responses", body).json()
        text = response["output"][0]["content"][0]["text"]
        return text, response["usage"]["input_tokens_details"]["cached_tokens"]

    (tmp_path / "state").mkdir()
    first, again = ask(), ask()
    assert again == (first[0], again[1])
    assert again[1] > 100
    shards[1].write_bytes(other_weights(shards[1], tmp_path / "other"))
    answer, cached = ask()
    assert cached == 0
    assert answer != first[0]
