"""`samovar top`: the metrics of /metrics, once in a pipe and until q on a terminal."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gateway.cli import main
from gateway.cli.board import Board
from gateway.cli.language import Phrases
from gateway.cli.launcher import free_port
from gateway.cli.readings import Reading, increase, quantile, rate
from gateway.cli.top import WORDS
from gateway.observability.metrics import Metrics
from tests.support.chatting import ENGLISH, Terminal
from tests.support.running import SAMOVAR, Gateway


def reading(at: float, **samples: float) -> Reading:
    """Return a reading of counters without labels."""
    return Reading("".join(f"{name} {value}\n" for name, value in samples.items()), at)


def test_a_rate_is_the_increase_per_second_and_survives_a_restart_of_the_gateway() -> None:
    assert rate(reading(10, a_total=5), reading(14, a_total=25), "a_total") == 5
    assert increase(reading(0, a_total=100), reading(1, a_total=7), "a_total") == 7
    assert increase(Reading(), reading(1, a_total=7), "a_total") == 7
    assert rate(reading(0), reading(1), "a_total") is None


def test_quantiles_are_those_of_the_time_between_two_readings() -> None:
    metrics = Metrics()
    metrics.gap.observe(60.0)
    before = Reading(metrics.text().decode(), 0)
    for _ in range(100):
        metrics.gap.observe(0.03)
    after = Reading(metrics.text().decode(), 1)
    half = quantile(before, after, "samovar_inter_token_seconds", 0.5)
    assert half is not None
    assert 0.025 < half <= 0.05
    assert quantile(after, after, "samovar_inter_token_seconds", 0.5) is None
    metrics.gap.observe(1e6)
    beyond = quantile(after, Reading(metrics.text().decode(), 2), "samovar_inter_token_seconds", 0.9)
    assert beyond == 120.0
    assert not math.isinf(beyond)


def drawn(board: Board) -> str:
    """Return the display as plain text."""
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(board.render("", since=Reading()))
    return capture.get()


@pytest.mark.parametrize(("chinese", "word"), [(False, "rejected (queue_full) 3"), (True, "被拒绝 (queue_full) 3")])
def test_rejected_requests_are_shown_with_their_error_code(chinese: bool, word: str) -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.ended("responses", "rejected", "queue_full", seconds=0.1)
    metrics.serve("tiny", {"queue_limit": 64})
    metrics.waiting.set(2)
    board = Board("http://127.0.0.1:1", Phrases(WORDS, chinese=chinese))
    board.add(Reading(metrics.text().decode(), 0))
    text = drawn(board)
    assert word in text
    assert "64" in text


@pytest.mark.parametrize(("seconds", "cores"), [(2, "–"), (10, "150%")])
def test_the_token_rate_is_current_and_the_cpu_share_needs_ten_seconds(seconds: int, cores: str) -> None:
    board = Board("http://127.0.0.1:1", Phrases(WORDS, chinese=False))
    for at, tokens, spent in ((0, 100, 5.0), (seconds, 100 + 40 * seconds, 5.0 + 1.5 * seconds)):
        text = (
            'samovar_engine_state{engine="0",state="busy"} 1\n'
            f'samovar_engine_cpu_seconds_total{{engine="0"}} {spent}\n'
            f"samovar_generation_tokens_total {tokens}\n"
        )
        board.add(Reading(text, at))
    lines = [line.split() for line in drawn(board).splitlines()]
    assert ["tokens", "per", "second", "40"] in [line[-4:] for line in lines]
    assert ["0", "busy", "–", cores] in [line[:4] for line in lines]


def test_every_text_of_top_exists_in_both_languages() -> None:
    assert all(english and chinese for english, chinese in WORDS.values())


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--url=ftp://x", "not an address such as"),
        ("--every=0", "between 0.2 and 3600"),
        ("--url=http://127.0.0.1:9", "no metrics at http://127.0.0.1:9 (Connection refused)"),
    ],
)
def test_a_mistake_is_one_line(flag: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        code = main(["top", flag, f"--state-dir={tmp_path}"])
    except SystemExit as left:
        code = int(left.code or 0)
    error = capsys.readouterr().err
    assert code in (1, 2)
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway after one answer."""
    with Gateway(tmp_path_factory.mktemp("top"), model=tiny_model, context=512, port=free_port()) as gateway:
        request = {"input": "Hi", "max_output_tokens": 20, "logit_bias": {"259": -100}}
        httpx.post(f"{gateway.url}/v1/responses", json=request, timeout=30).raise_for_status()
        yield gateway


@pytest.mark.slow
def test_in_a_pipe_top_prints_the_metrics_once_as_plain_text(gateway: Gateway) -> None:
    run = subprocess.run(
        [*SAMOVAR, "top", f"--url={gateway.url}/"], env=ENGLISH, capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["0", "idle", "1"] in [line[:3] for line in lines] or ["0", "idle", "0"] in [line[:3] for line in lines]
    assert "completed 1" in run.stdout or "incomplete 1" in run.stdout
    assert "time to first token" in run.stdout
    assert "store (sqlite)" in run.stdout
    assert "\x1b" not in run.stdout


@pytest.mark.slow
def test_on_a_terminal_top_runs_until_q_even_if_the_gateway_stops(gateway: Gateway) -> None:
    with Terminal([*SAMOVAR, "top", f"--url={gateway.url}", "--every=0.2"]) as terminal:
        terminal.see("live; press q to quit")
        terminal.see("last ten minutes")
        gateway.stop()
        terminal.see("retrying")
        gateway.start()
        terminal.see("live; press q to quit")
        assert terminal.leave("q") == 0


@pytest.mark.slow
def test_ctrl_c_quits_top_silently(gateway: Gateway) -> None:
    with Terminal([*SAMOVAR, "top", f"--url={gateway.url}"]) as terminal:
        terminal.see("live; press q to quit")
        assert terminal.leave("\x03") == 0


@pytest.mark.slow
def test_a_server_that_is_not_samovar_is_recognized(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", f"--url={gateway.url}/static/style.css?"]) == 1
    assert "is not a Samovar gateway" in capsys.readouterr().err
