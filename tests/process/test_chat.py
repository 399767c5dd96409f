"""`samovar chat` in a pipe and on a terminal, with a real gateway and a scripted one."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection

from gateway.cli.screen import PlainText, plain
from tests.support.certificates import make_certificate
from tests.support.chatting import ENGLISH, Play, Talker, Terminal, answer, end, send, stand_in
from tests.support.running import SAMOVAR, Gateway

READING_SECONDS = 0.3
"""Pause before Ctrl-C: readline misses one between the prompt and its first read."""


def chat(port: int, typed: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Chat over a pipe."""
    command = [*SAMOVAR, "chat", f"--port={port}", *flags]
    env = {**ENGLISH, **environment}
    return subprocess.run(
        command, input=typed, env=env, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


def port_of(gateway: Gateway) -> int:
    """Return the port of a gateway."""
    return int(gateway.url.rpartition(":")[2])


@pytest.fixture
def brief_server(tmp_path: Path, tiny_model: Path) -> Iterator[Gateway]:
    """A gateway with the tiny model and short answers."""
    with Gateway(tmp_path, model=tiny_model, context=512, max_output_tokens=12) as gateway:
        yield gateway


def test_lines_continue_the_conversation_and_the_statistics_are_correct(brief_server: Gateway) -> None:
    run = chat(port_of(brief_server), "Hello\n/stats\n\nAnd you?\n/stats\n")
    assert run.returncode == 0, run.stderr
    figures = [line for line in run.stdout.splitlines() if line.startswith("Last answer: ")]
    assert "12 tokens" in figures[0] or "cut" not in run.stderr
    assert figures[0].endswith(" 0 cached")
    assert int(figures[1].split()[-2]) > 0
    assert "All 2: " in run.stdout
    assert "\x1b" not in run.stdout + run.stderr


def test_a_new_conversation_does_not_continue_the_old_one() -> None:
    previous: list[str | None] = []

    def play(connection: ServerConnection, request: dict[str, Any]) -> None:
        previous.append(request.get("previous_response_id"))
        answer(connection, f"resp_{len(previous)}", "yes")

    with stand_in(play) as port:
        run = chat(port, "a\nb\n／new\nc\n/quit\nd\n")
    assert (run.returncode, run.stdout) == (0, "yes\nyes\nyes\n")
    assert previous == [None, "resp_1", None]


def test_statistics_cover_the_last_answer_and_all_answers() -> None:
    def play(connection: ServerConnection, request: dict[str, Any]) -> None:
        first = "previous_response_id" not in request
        answer(connection, "resp_1", "yes", tokens=(30, 0, 5) if first else (40, 34, 7))

    with stand_in(play) as port:
        run = chat(port, "/stats\na\nb\n/stats\n")
    none, _, _, last, total = run.stdout.splitlines()
    assert none == "No answers yet."
    assert last.startswith("Last answer: 7 tokens, ")
    assert last.endswith("; prompt 40, 34 cached")
    assert total.startswith("All 2: 12 tokens, ")
    assert total.endswith("; prompt 70, 34 cached")


def test_control_sequences_are_removed_from_answers() -> None:
    def play(connection: ServerConnection, _: dict[str, Any]) -> None:
        answer(connection, "resp_1", "a\x1b[3", "1mb\x1b]0;title\x07", "c\x9b2J\r\n\td\x08\x07", "\x1b", "e茶")

    with stand_in(play) as port:
        assert chat(port, "x\n").stdout == "abc\n\tde茶\n"


def test_reasoning_is_dim_on_a_terminal_and_absent_from_a_pipe() -> None:
    def play(connection: ServerConnection, _: dict[str, Any]) -> None:
        send(connection, "response.reasoning_text.delta", delta="Hm\x1b[31m.")
        send(connection, "response.reasoning_text.done", text="Hm.")
        answer(connection, "resp_1", "Yes.")

    with stand_in(play) as port:
        assert chat(port, "x\n").stdout == "Yes.\n"
    with terminal_chat(play, TERM="xterm-256color") as terminal:
        terminal.type("x\r")
        terminal.see("\x1b[2mHm.\x1b[22m")
        terminal.see("Yes.")
        assert terminal.leave() == 0


def test_an_error_is_shown_and_the_chat_continues() -> None:
    def play(connection: ServerConnection, request: dict[str, Any]) -> None:
        if request["input"] == "refuse":
            error = {"code": "context_length_exceeded", "message": "too\x1b[2J long"}
            send(connection, "error", status=400, error=error)
        elif request["input"] == "fail":
            send(connection, "response.created", response={"id": "resp_9"})
            error = {"code": "engine_unavailable", "message": "the engine failed"}
            send(connection, "response.failed", response={"id": "resp_9", "error": error})
        else:
            assert "previous_response_id" not in request
            answer(connection, "resp_1", "well")

    with stand_in(play) as port:
        run = chat(port, "refuse\nfail\ngood\n")
    assert run.stdout == "well\n"
    assert run.stderr.splitlines() == [
        "context_length_exceeded: too long → start a new conversation with /new",
        "engine_unavailable: the engine failed",
    ]
    assert run.returncode == 1


def test_the_queue_position_is_shown() -> None:
    def play(connection: ServerConnection, _: dict[str, Any]) -> None:
        send(connection, "response.created", response={"id": "resp_1"})
        send(connection, "response.queued", queue_position=2, estimated_wait_seconds=7.6)
        send(connection, "response.queued", queue_position=1, estimated_wait_seconds=0.0)
        answer(connection, "resp_1", "done")

    with stand_in(play) as port:
        english, chinese = chat(port, "x\n"), chat(port, "x\n", LC_ALL="zh_CN.UTF-8", PYTHONUTF8="1")
    assert english.stderr == "Position 2 in the queue, about 8 s\nPosition 1 in the queue\n"
    assert chinese.stderr == "排在第 2 位，预计等待 8 秒\n排在第 1 位\n"


def test_a_connection_lost_between_answers_is_reopened_and_the_conversation_continues() -> None:
    previous: list[str | None] = []

    def play(connection: ServerConnection, request: dict[str, Any]) -> None:
        previous.append(request.get("previous_response_id"))
        if len(previous) == 2:  # and once more before any text of the answer
            connection.close(1012)
            return
        answer(connection, f"resp_{len(previous)}", "yes")
        connection.close()

    with stand_in(play) as port:
        run = chat(port, "a\nb\nc\n")
    assert (run.returncode, run.stdout) == (0, "yes\nyes\nyes\n"), run.stderr
    assert previous == [None, "resp_1", "resp_1", "resp_3"]


def test_a_connection_lost_during_an_answer_is_reported_and_the_chat_continues() -> None:
    def play(connection: ServerConnection, request: dict[str, Any]) -> None:
        if request["input"] == "b":
            assert request["previous_response_id"] == "resp_1"
            send(connection, "response.created", response={"id": "resp_2"})
            send(connection, "response.output_text.delta", delta="half an")
            connection.close(1012)
        else:
            answer(connection, "resp_1", "whole")

    with stand_in(play) as port:
        run = chat(port, "a\nb\nc\n")
    assert run.stdout == "whole\nhalf an\nwhole\n"
    assert run.stderr.startswith("connection_lost: ")
    assert run.returncode == 1


def test_the_chat_reconnects_to_a_restarted_gateway_and_continues_the_conversation(
    brief_server: Gateway, tiny_model: Path
) -> None:
    port = port_of(brief_server)
    with Terminal([*SAMOVAR, "chat", f"--port={port}"]) as terminal:
        terminal.see("> ")
        terminal.type("Hello\r/stats\r")
        first = terminal.see(" cached")
        brief_server.stop()
        terminal.type("Are you there?\r")
        terminal.see("reconnecting")
        with Gateway(brief_server.state, model=tiny_model, context=512, max_output_tokens=12, port=port):
            terminal.type("/stats\r")
            terminal.see("All 2: ", timeout=30)
            second = terminal.see(" cached")
            assert terminal.leave() == 0
    assert prompt_of(second) > prompt_of(first) + 12


def prompt_of(figures: str) -> int:
    """Return the prompt length in a line of statistics."""
    return int(figures.rpartition("prompt ")[2].partition(",")[0])


def test_ctrl_c_stops_reconnecting(brief_server: Gateway) -> None:
    with Terminal([*SAMOVAR, "chat", f"--port={port_of(brief_server)}"]) as terminal:
        terminal.see("> ")
        brief_server.stop()
        terminal.type("Hello\r")
        terminal.see("reconnecting")
        terminal.type("\x03")
        terminal.see("> ")
        assert terminal.leave() == 0


@pytest.mark.slow
def test_reconnecting_ends_after_some_attempts_and_the_chat_continues(brief_server: Gateway) -> None:
    with Terminal([*SAMOVAR, "chat", f"--port={port_of(brief_server)}"]) as terminal:
        terminal.see("> ")
        brief_server.stop()
        terminal.type("Hello\r")
        terminal.see("start one with `make serve`", timeout=30)
        terminal.see("> ")
        assert terminal.leave() == 0


@pytest.mark.parametrize("language", ["C.UTF-8", "zh_CN.UTF-8"])
def test_without_a_gateway_one_line_explains_how_to_start_one(language: str) -> None:
    run = chat(1, "", LC_ALL=language, PYTHONUTF8="1")
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (1, "", 1)
    assert run.stderr.startswith("samovar: ")
    assert "`make serve`" in run.stderr
    assert "`samovar serve`" in run.stderr


def test_port_zero_and_a_server_that_is_not_a_gateway_are_reported() -> None:
    run = chat(0, "")
    assert (run.returncode, run.stderr.startswith("samovar: port: ")) == (1, True)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        run = chat(stranger.server_port, "")
        stranger.shutdown()
        thread.join()
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert "rejected the connection: " in run.stderr


def test_only_the_gateways_own_certificate_is_trusted(tmp_path: Path) -> None:
    files = {name: (tmp_path / f"{name}.pem", tmp_path / f"{name}.key") for name in ("own", "other")}
    for pair in files.values():
        make_certificate(*pair)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files["own"])

    def flags(name: str) -> list[str]:
        certificate, key = files[name]
        return [f"--tls-cert={certificate}", f"--tls-key={key}"]

    with stand_in(lambda connection, _: answer(connection, "resp_1", "sealed"), context) as port:
        assert chat(port, "x\n", *flags("own")).stdout == "sealed\n"
        stranger = chat(port, "x\n", *flags("other"))
    assert (stranger.returncode, stranger.stdout) == (1, "")
    assert "certificate verify failed" in stranger.stderr


def test_the_chat_does_not_import_the_engine() -> None:
    code = "import sys, gateway.cli.chat; print({'engine', 'llama_cpp', 'uvicorn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_a_closed_pipe_causes_no_traceback() -> None:
    with stand_in(lambda connection, _: answer(connection, "resp_1", "x" * 100_000)) as port:
        command = f"yes hello | head -40 | {' '.join(SAMOVAR)} chat --port={port} | head -c 10"
        run = subprocess.run(["sh", "-c", command], env=ENGLISH, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("xxxxxxxxxx", "")


@contextmanager
def terminal_chat(play: Play, **environment: str) -> Iterator[Terminal]:
    """Start a chat on a terminal with the scripted gateway."""
    with stand_in(play) as port, Terminal([*SAMOVAR, "chat", f"--port={port}"], **environment) as terminal:
        terminal.see("> ")
        yield terminal


def test_ctrl_c_stops_the_answer_and_the_conversation_continues_from_it() -> None:
    talker = Talker()
    with terminal_chat(talker) as terminal:
        for previous in (None, "resp_1"):
            terminal.type("talk\r")
            terminal.see("tick tick")
            terminal.type("\x03")
            terminal.see("(stopped)")
            terminal.see("> ")
            create, cancel = talker.requests[-2:]
            assert create.get("previous_response_id") == previous
            assert cancel["type"] == "response.cancel"
        assert cancel["response_id"] == "resp_2"
        assert terminal.leave() == 0


def test_a_second_ctrl_c_does_not_wait_for_an_unresponsive_gateway() -> None:
    with terminal_chat(Talker(deaf=True)) as terminal:
        terminal.type("talk\r")
        terminal.see("tick tick")
        terminal.type("\x03")
        time.sleep(0.2)
        terminal.type("\x03")
        terminal.see("Stopped waiting")
        terminal.see("> ")
        assert terminal.leave("/quit\r") == 0


def test_ctrl_c_at_an_empty_prompt_explains_how_to_quit_and_twice_quits() -> None:
    with terminal_chat(Talker()) as terminal:
        terminal.type("half a line")
        terminal.see("half a line")
        terminal.type("\x03")  # discards the line, and does not count as a wish to quit
        assert "quit" not in terminal.see("> ")
        time.sleep(READING_SECONDS)
        terminal.type("\x03")
        terminal.see("Press Ctrl-C again, or Ctrl-D, to quit.")
        terminal.see("> ")
        time.sleep(READING_SECONDS)
        assert terminal.leave("\x03") == 0


def test_chinese_is_edited_by_characters_and_shown_by_the_locale() -> None:
    talker = Talker()
    with terminal_chat(talker, LC_ALL="zh_CN.UTF-8") as terminal:
        terminal.type("你好吗\x7f\x7f们\r")
        terminal.see("tick")
        assert talker.requests[0]["input"] == "你们"
        terminal.type("\x03")
        terminal.see("（已停止）")
        assert terminal.leave() == 0


def test_keys_typed_during_an_answer_are_buffered_for_the_next_line() -> None:
    def play(connection: ServerConnection, _: dict[str, Any]) -> None:
        send(connection, "response.created", response={"id": "resp_1"})
        send(connection, "response.output_text.delta", delta="slowly, ")
        time.sleep(1)
        send(connection, "response.output_text.delta", delta="slowly.")
        end(connection, "resp_1")

    with terminal_chat(play) as terminal:
        terminal.type("x\r")
        terminal.see("slowly, ")
        terminal.type("/help\r\x04")
        assert "/help" not in terminal.see("slowly.")
        terminal.see("/stats  tokens")
        assert terminal.leave("") == 0


@pytest.mark.slow
def test_a_real_answer_is_stopped_and_stays_part_of_the_conversation(server: Gateway) -> None:
    with Terminal([*SAMOVAR, "chat", f"--port={port_of(server)}"]) as terminal:
        terminal.see("English only")
        terminal.see("> ")
        for request in ("Write a very long story about a tea urn, with many chapters.", "Go on."):
            terminal.type(f"{request}\r")
            terminal.see("\n")
            for _ in range(3):
                terminal.see(" ", timeout=50)
            terminal.type("\x03")
            terminal.see("> ")
        terminal.type("/stats\r")
        terminal.see("All 2:")
        figures = terminal.see(" cached")
        assert int(figures.split()[-2]) > 30
        assert terminal.leave() == 0


@given(st.text(st.sampled_from("\x1b[]0;m\x07\x9b\x9c\\Aé茶\n\t\r\x00"), max_size=40), st.integers(1, 5))
def test_plain_text_does_not_depend_on_chunks_and_has_no_control_sequences(text: str, size: int) -> None:
    def shown(*pieces: str) -> str:
        stripper = PlainText()
        return "".join(stripper.feed(piece) for piece in pieces) + stripper.finish()

    cut = shown(*(text[i : i + size] for i in range(0, len(text), size)))
    assert cut == shown(text)
    assert not set(cut) & set("\x1b\x07\x9b\x9c\r\x00")
    assert "\n" not in plain(text)


def test_an_unterminated_escape_sequence_does_not_swallow_the_answer() -> None:
    stripper = PlainText()
    assert stripper.feed("\x1b]" + "x" * 300) == "]" + "x" * 300
