"""`samovar bench`: plausible results in all output formats."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from gateway.cli import main
from gateway.cli.bench.results import Results, Sample, Spread
from gateway.cli.bench.tables import TEXTS, explanation, tables
from gateway.cli.language import Phrases
from gateway.models.catalogue import EMBEDDED, RECOMMENDED
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR

FOLDERS = "samovar-bench-*"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """Folder and output of a quick run with the tiny model."""
    folder = tmp_path_factory.mktemp("bench")
    flags = [f"--model={tiny_model}", f"--state-dir={folder / 'state'}", "--cores=1", f"--output={folder / 'out'}"]
    run = subprocess.run(
        [*SAMOVAR, "bench", "--quick", *flags],
        env=CHILD_ENVIRONMENT | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


@pytest.fixture(scope="module")
def results(measured: tuple[Path, str]) -> Results:
    """Contents of `bench.json`."""
    return msgspec.json.decode((measured[0] / "out" / "bench.json").read_bytes(), type=Results)


@pytest.mark.slow
def test_memory_rises_with_the_model_and_falls_when_it_is_unloaded(results: Results) -> None:
    phases = {phase.name: phase for phase in results.memory}
    assert list(phases) == ["before", "loaded", "first", "after", "rounds", "rest"]

    def engines(name: str) -> float:
        return phases[name].mean(lambda sample: sample.engines)

    assert engines("before") == engines("rest") == 0
    assert 10e6 < engines("loaded") <= phases["first"].peak
    assert all(phase.mean(lambda sample: sample.gateway) > 50e6 for phase in results.memory)


@pytest.mark.slow
def test_answers_are_as_long_as_the_write_ups(results: Results) -> None:
    shapes = [(shape.question, answer.output) for shape in results.latency for answer in shape.answers]
    assert shapes == [(20, 100), (50, 150)]
    assert all(0 < answer.first < answer.total for shape in results.latency for answer in shape.answers)
    assert all(shape.engine_cores + shape.gateway_cores > 0 for shape in results.latency)
    assert [(load.conversations, len(load.rounds[0].answers)) for load in results.load] == [(1, 1), (4, 4)]


@pytest.mark.slow
def test_a_start_is_the_sum_of_its_parts(results: Results) -> None:
    [start] = results.starts
    parts = (start.python, start.vocabulary, start.parts, start.engine, start.weights, start.context)
    assert all(part > 0 for part in parts)
    assert start.first_token > start.ready + start.weights + start.context


@pytest.mark.slow
def test_tables_plots_and_data_are_written_and_nothing_else_is(measured: tuple[Path, str], results: Results) -> None:
    folder, printed = measured
    page = (folder / "out" / "bench.md").read_text()
    for table in tables(results, Phrases(TEXTS, chinese=False)):
        assert table.title in printed
        assert f"## {table.title}\n" in page
        assert all(f"| {' | '.join(row)} |" in page for row in table.rows)
    assert (folder / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "out" / "bench.svg").read_text()
    assert not (folder / "state").exists()


@pytest.mark.slow
def test_the_write_ups_figures_are_shown_for_its_model_alone(results: Results) -> None:
    say = Phrases(TEXTS, chinese=False)

    def shown(model: str) -> tuple[int, bool]:
        conditions = msgspec.structs.replace(results.conditions, model=model)
        other = msgspec.structs.replace(results, conditions=conditions)
        columns = [name for table in tables(other, say) for name in table.columns]
        return columns.count("write-up"), "Qwen2.5-0.5B-Instruct" in explanation(other, say)

    for model in (RECOMMENDED, "qwen2.5-0.5b-instruct-q4_0", "Qwen2.5-0.5B-Instruct-INT4"):
        assert shown(model) == (4, True)
    for model in ("tiny", EMBEDDED, "qwen2.5-0.5b-instruct-q8_0", "my-qwen2.5-0.5b-instruct-q4_0"):
        assert shown(model) == (0, False)


@pytest.mark.slow
def test_ctrl_c_stops_the_measured_gateway_and_prints_one_line(tiny_model: Path, tmp_path: Path) -> None:
    command = [*SAMOVAR, "bench", f"--model={tiny_model}", f"--state-dir={tmp_path}", f"--output={tmp_path}"]
    environment = CHILD_ENVIRONMENT | {"TMPDIR": str(tmp_path), "LC_ALL": "C.UTF-8"}
    bench = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    gateways: list[psutil.Process] = []
    while not gateways or not list(tmp_path.glob("samovar-bench-*/state/conversations.db")):
        assert bench.poll() is None, bench.stderr.read()
        gateways = bench.children()
        time.sleep(0.02)
    bench.send_signal(signal.SIGINT)
    _, said = bench.communicate(timeout=30)
    assert bench.returncode == 1
    assert said.splitlines()[-1:] == ["samovar: stopped; nothing was written"]
    assert "Traceback" not in said
    assert not any(gateway.is_running() for gateway in gateways)
    assert list(tmp_path.glob(FOLDERS)) == []


def test_an_unwritable_folder_is_rejected_before_measuring(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    assert main(["bench", f"--model={tiny_model}", f"--state-dir={tmp_path}", f"--output={taken}"]) == 1
    assert re.fullmatch(r"samovar: --output: .*file is not writable: File exists\n", capsys.readouterr().err)


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model=nothing.gguf", f"--state-dir={tmp_path}"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_figure_is_shown_with_its_spread_unless_measured_once() -> None:
    assert Spread([0.02, 0.01, 0.04]).text(1000) == "20 (10 – 40)"
    assert Spread([0.0123]).text(1000, 1) == "12.3"


def test_total_memory_is_the_sum_of_all_processes() -> None:
    assert Sample(0.0, gateway=1, engines=2).together == 3


def test_every_text_of_bench_exists_in_both_languages() -> None:
    assert all(english and chinese for english, chinese in TEXTS.values())
