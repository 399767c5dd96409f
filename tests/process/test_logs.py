"""The log: one line per request, found by the request id that the client received, without texts of conversations."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from gateway.cli import main
from gateway.observability import logs
from tests.support.chatting import Terminal
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway

BRIEF = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 3}


def lines(gateway: Gateway, event: str) -> list[dict[str, Any]]:
    """What the log has of one kind, once the gateway has ended."""
    gateway.stop()
    found = [json.loads(line) for line in gateway.log().splitlines()]
    return [line for line in found if line["event"] == event]


async def test_each_answer_has_one_line_with_its_ids_times_tokens_and_engine(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        first = (await conversation.ask("a secret", **BRIEF))[-1].response
        second = (await conversation.ask("another secret", previous_response_id=first.id, **BRIEF))[-1].response
    body = {"model": "tiny", "input": "a secret", **BRIEF}
    plain, stream = [tiny_server.post("/v1/responses", {**body, "stream": stream}) for stream in (False, True)]
    logged = lines(tiny_server, "response")
    assert [line["response_id"] for line in logged[:2]] == [first.id, second.id]
    assert [line["request_id"] for line in logged[2:]] == [a.headers["x-request-id"] for a in (plain, stream)]
    assert len({line["connection_id"] for line in logged[:2]}) == 1
    for line, usage in zip(logged, (first.usage, second.usage), strict=False):
        counted = (line["prompt_tokens"], line["cached_tokens"], line["generated_tokens"])
        assert counted == (usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens)
    for line in logged:
        assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]
        assert (line["status"], line["code"], line["engines"]) == ("incomplete", None, ["0"])
        assert (line["tenant"], line["route"], line["level"]) == ("anonymous", "responses", "info")
    # No other line is about the same requests.
    assert lines(tiny_server, "request") == []
    assert len(lines(tiny_server, "connection")) == 1
    assert "secret" not in tiny_server.log()


async def test_a_rejected_request_is_found_in_the_log_by_its_request_id(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        await conversation.send('{"type": "a secret type", "stream_id": "lane"}')
        [unknown] = await conversation.events()
        [absent] = await conversation.ask("a secret", previous_response_id="resp_secret")
    answer = tiny_server.post("/v1/responses", {"input": "a secret", "model": "a secret"})
    door = tiny_server.get("/v1/models", origin="https://a-secret.example")
    ids = [unknown.to_dict()["request_id"], absent.to_dict()["request_id"]]
    found = {line["request_id"]: line["code"] for line in lines(tiny_server, "refused")}
    assert found == dict(zip(ids, ["invalid_request", "previous_response_not_found"], strict=True))
    requests = {line["request_id"]: line for line in lines(tiny_server, "request")}
    for refused, status, code in ((answer, 404, "model_not_found"), (door, 403, "invalid_request")):
        line = requests.pop(refused.headers["x-request-id"])
        assert (line["http_status"], line["code"]) == (status, code)
    assert requests == {}
    assert "secret" not in tiny_server.log()


async def test_a_flood_that_is_refused_leaves_one_line(tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        for _ in range(1300):
            await conversation.send("{")
        codes = [(await conversation.events())[0].error.code for _ in range(1300)]
    flooded = codes.count("rate_limit_exceeded")
    assert flooded > 50
    logged = [line["code"] for line in lines(tiny_server, "refused")]
    assert logged.count("invalid_json") == codes.count("invalid_json")
    assert 1 <= logged.count("rate_limit_exceeded") < flooded / 2


def test_on_a_terminal_a_line_is_for_people(tmp_path: Path, tiny_model: Path) -> None:
    command = [*SAMOVAR, "serve", "--port=0", f"--state-dir={tmp_path}", f"--model={tiny_model}", "--context=512"]
    with Terminal(command) as terminal:
        url = terminal.see("open it").rpartition(" — ")[0].rpartition(" ")[2]
        httpx.get(f"{url}/v1/models")
        assert "{" not in terminal.see("/v1/models").rpartition("\n")[2]
        assert terminal.leave("\x03") == 0


def test_a_log_that_nobody_reads_stops_neither_requests_nor_sigterm(tmp_path: Path, tiny_model: Path) -> None:
    command = [*SAMOVAR, "serve", "--port=0", f"--state-dir={tmp_path}", f"--model={tiny_model}", "--context=512"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=CHILD_ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            url = process.stdout.readline().split()[1]
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
            with httpx.Client() as client:
                for _ in range(40):  # some 250 bytes each in the log
                    assert client.get(f"{url}/v1/models").status_code == 200
            assert select.select([process.stderr], [], [], 0)[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
        assert len(process.stderr.read()) <= 4096


WITH_COUNT = logging.Formatter("%(message)s %(lines)s", defaults={"lines": ""})


def test_lines_that_do_not_fit_are_dropped_and_their_number_is_logged_when_there_is_room() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    handler = logs.QueueHandler(writing, limit=2000)
    handler.setFormatter(WITH_COUNT)
    for number in range(1000):
        handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    with open(reading, encoding="utf-8") as reader, ThreadPoolExecutor() as pool:  # noqa: PTH123 - a descriptor
        reading_all = pool.submit(reader.read)
        handler.flush()
        handler.handle(logging.makeLogRecord({"msg": "line 1000"}))
        handler.flush()
        os.close(writing)
        lines = reading_all.result()
    numbers = [int(line.split()[1]) for line in lines.splitlines() if line.startswith("line")]
    dropped = [int(line.split()[-1]) for line in lines.splitlines() if line.startswith("log lines dropped")]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, 1000)
    assert sum(dropped) == 1001 - len(numbers) > 0


def test_the_log_continues_after_its_reader_left_or_a_record_cannot_be_formatted(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = logs.QueueHandler(writing)
    handler.setFormatter(WITH_COUNT)
    handler.handle(logging.makeLogRecord({"msg": "lost"}))
    handler.flush()
    file = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(file, writing)
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "name": "here"}))
    handler.flush()
    assert (tmp_path / "log").read_text() == "log lines dropped 1\nlog record of here cannot be formatted: TypeError\n"
    os.close(file)


def test_the_list_of_keys_shows_the_tenant_ids_of_the_log(tiny_server: Gateway, capsys: Any) -> None:
    where = f"--state-dir={tiny_server.state}"
    main(["keys", "add", "anna", where])
    key = capsys.readouterr().out.strip()
    tiny_server.get("/v1/models", Authorization=f"Bearer {key}")
    main(["keys", "list", "--json", where])
    [user] = json.loads(capsys.readouterr().out)
    [line] = lines(tiny_server, "request")
    assert line["tenant"] == user["id"]
    assert len(user["id"]) == 8
    assert "anna" not in tiny_server.log()
