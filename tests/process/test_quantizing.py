"""`samovar models quantize`: real llama.cpp on the tiny model, whose rows of 64 fit some kinds only."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import QUANTIZATIONS, Drift, Model, ModelLoadError, QuantizeError, bits, drift, quantize
from gateway.cli import main
from gateway.cli.quantizing import FAR
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary library and state folder, and measure beside other processes."""
    monkeypatch.setattr("gateway.cli.idle_machine.WAIT", 0.0)
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "house"))
    return tmp_path / "house"


def run(*arguments: object) -> int:
    """Run the command and return its exit code."""
    return main(["models", "quantize", "--no-measure", *map(str, arguments)])


def test_quantizing_creates_a_model_and_reports_progress(tmp_path: Path, tiny_model: Path) -> None:
    reported: list[tuple[int, int]] = []
    target = tmp_path / "small.gguf"
    fallbacks = quantize(
        tiny_model, target, "q8_0", threads=1, progress=lambda number, total: reported.append((number, total))
    )
    assert fallbacks.total() == 0
    assert target.stat().st_size < tiny_model.stat().st_size
    assert [number for number, _ in reported] == [*range(1, reported[-1][1] + 1)]
    model = Model(target)
    assert model.metadata("general.file_type") == str(QUANTIZATIONS["q8_0"].ftype)
    model.close()


def test_rows_that_fit_no_block_fall_back_and_are_counted(tmp_path: Path, tiny_model: Path) -> None:
    fallbacks = quantize(tiny_model, tmp_path / "small.gguf", "q4_k_m", threads=1, progress=lambda *_: None)
    assert set(fallbacks) <= {"q5_0", "q8_0", "f16"}
    assert fallbacks.total() > 0


@pytest.mark.parametrize("what", ["source", "folder"])
def test_a_failed_quantization_leaves_no_file(tmp_path: Path, tiny_model: Path, what: str) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "small.gguf"
    source.write_bytes(tiny_model.read_bytes()[: -100 if what == "source" else None])
    if what == "folder":
        target = tmp_path / "none" / "small.gguf"
    with pytest.raises(QuantizeError, match=r"source.gguf can't be quantized: \S"):
        quantize(source, target, "q8_0", threads=1, progress=lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_quantize_writes_next_to_the_source_and_replaces_nothing_without_force(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "tiny.gguf"
    source.write_bytes(tiny_model.read_bytes())
    target = tmp_path / "tiny.q8_0.gguf"
    assert run(source, "--type", "Q8_0") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Serve it: samovar serve --model {target}"
    target.write_bytes(b"precious")
    assert run(source, "--type", "q8_0") == 1
    assert capsys.readouterr().err.startswith(f"samovar: {target} exists; choose another file with --output")
    assert target.read_bytes() == b"precious"
    assert run(source, "--type", "q8_0", "--force") == 0
    assert target.read_bytes() != b"precious"
    assert run(source, "--type", "q8_0", "--output", source, "--force") == 1
    assert "is the source file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("*gguf*")) == ["tiny.gguf", "tiny.q8_0.gguf"]


def test_a_loss_of_quality_is_warned_about(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, nearly, small, smaller, larger = (
        tmp_path / f"{name}.gguf" for name in ("whole", "nearly", "small", "smaller", "larger")
    )
    assert run(tiny_model, "--type", "f16", "--output", whole) == 0
    assert "tiny does not state its bits per weight" in capsys.readouterr().err
    assert run(whole, "--type", "q8_0", "--output", nearly) == 0
    assert capsys.readouterr().err == ""
    for source in (whole, nearly):  # both are good sources
        assert run(source, "--type", "q4_0", "--output", small, "--force") == 0
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: below 5 bits per weight")
    assert run(small, "--type", "q2_k", "--output", smaller) == 0
    said = capsys.readouterr()
    assert "small is already quantized (4.5 bits per weight) and loses more quality" in said.err
    assert "below 4 bits per weight" in said.err
    assert "they were converted to: q4_0 × " in said.out
    assert run(small, "--type", "q8_0", "--output", larger) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert "q8_0 has more bits per weight than small" in line


def test_every_file_type_has_its_bits_and_an_unknown_one_is_not_taken_for_full_precision() -> None:
    assert bits("1") == 16
    assert bits("2") == bits("1026") == 4.5  # llama.cpp adds 1024 if it guessed the type
    assert bits("19") == 2.1
    assert bits("999") is bits(None) is bits("new") is None


def test_divergence_grows_with_fewer_bits_per_weight(tmp_path: Path, tiny_model: Path) -> None:
    drifts = {}
    for kind in ("f16", "q8_0", "q4_0"):
        target = tmp_path / f"{kind}.gguf"
        quantize(tiny_model, target, kind, threads=1, progress=lambda *_: None)
        drifts[kind] = drift(tiny_model, target, threads=1)
    for language, f16, q8, q4 in zip(("en", "zh"), *drifts.values(), strict=True):
        assert f16.language == language
        assert f16.tokens == q4.tokens > 100
        assert 0 <= f16.divergence < q8.divergence < q4.divergence
        assert 1 >= f16.same > q4.same > 0
    assert drift(tiny_model, tiny_model, threads=1)[0] == Drift("en", drifts["f16"][0].tokens, 1.0, 0.0)


def test_a_file_that_cannot_be_evaluated_is_an_error_that_names_it(tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:5000])
    with pytest.raises(ModelLoadError, match=r"broken.gguf can't be computed with"):
        drift(tiny_model, broken, threads=1)


@pytest.mark.parametrize(
    ("source", "kind", "code", "said"),
    [
        ("tiny", "q9", 2, "--type: q9 is none of f16, "),
        ("no-such-model", "q4_0", 1, "no-such-model is neither a file here"),
        ("broken", "q4_0", 1, "broken.gguf can't be loaded: it is incomplete or damaged"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], source: str, kind: str, code: int, said: str
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:5000])
    path = {"tiny": tiny_model, "broken": broken}.get(source, source)
    assert run(path, "--type", kind, "--output", tmp_path / "out.gguf") == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True])
def test_speed_and_quality_are_measured(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    *, far: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("engine.comparison.BUDGET", 0.01)
    if far:
        moved = [Drift("en", 170, 0.7, float("nan")), Drift("zh", 190, 0.7, FAR + 0.01)]
        monkeypatch.setattr("gateway.cli.quantizing.drift", lambda *_, **__: moved)
    small = tmp_path / "small.gguf"
    assert main(["models", "quantize", "--cores=1", str(tiny_model), "--type=q8_0", f"--output={small}"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-2].startswith("same most likely token as the source: ")
    assert ("answers differ a lot (English, Chinese: over 0.1 nats" in said.err) == far
    table = [line.split() for line in said.out.splitlines()[1:-3]]
    assert [row[0] for row in table] == ["file", "tiny.gguf", "small.gguf", "×"]
    assert all(float(row[number]) > 0 for row in table[1:3] for number in (3, 5))
    assert len(table[3]) == 6


def test_a_full_disk_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert run(tiny_model, "--type", "q8_0", "--output", "/proc/none.gguf") == 1
    assert "/proc: the disk is full; free some space" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_the_catalogue_becomes_one_of_the_library_and_is_served_by_name(
    tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHILD_ENVIRONMENT, "XDG_DATA_HOME", str(house))
    command = [*SAMOVAR, "models", "quantize", "smollm2-135m-instruct", "--type=q4_0", "--no-measure"]
    made = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True)
    name = "smollm2-135m-instruct.q4_0"
    assert made.stdout.splitlines()[-1] == f"Serve it: samovar serve --model {name}"
    with Gateway(tmp_path / "state", model=name, context=256) as gateway:
        assert gateway.get("/v1/models").json()["data"][0]["id"] == name


@pytest.mark.usefixtures("killed_stopwatch")
def test_a_process_that_is_killed_while_it_measures_is_reported_in_one_line(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.gguf"
    assert main(["models", "quantize", "--cores=1", str(tiny_model), "--type=q8_0", f"--output={small}"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("samovar: the measuring process ended during a measurement")
