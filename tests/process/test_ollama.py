"""Ollama's API as its official client uses it, against a gateway as people start it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.support.commands import keys
from tests.support.running import Gateway

MODEL = "smollm2-135m-instruct"
HELLO: Any = [{"role": "user", "content": "Say hello."}]
BRIEFLY = {"temperature": 0, "num_predict": 8, "seed": 1}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    aliases = f"llama3.2:3b={MODEL}"
    with Gateway(tmp_path_factory.mktemp("ollama"), max_output_tokens=100, aliases=aliases) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[ollama.Client]:
    with ollama.Client(host=gateway.url) as connected:
        yield connected


@pytest.mark.slow
def test_the_model_is_listed_described_loaded_and_then_running(gateway: Gateway, client: ollama.Client) -> None:
    assert client.ps().models == []
    listed, alias = client.list().models
    assert (listed.model, alias.model) == (f"{MODEL}:latest", "llama3.2:3b")
    assert client.show("llama3.2:3b").details == listed.details
    assert re.fullmatch("[0-9a-f]{64}", listed.digest or "")
    assert listed.details is not None
    assert (listed.details.family, listed.details.quantization_level) == ("llama", "Q4_1")
    assert listed.details.parameter_size == "134.52M"
    shown = client.show(f"{MODEL}:latest")
    context = gateway.get("/v1/models").json()["data"][0]["context_length"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == context
    assert shown.capabilities == ["completion", "tools"]
    assert "<|im_start|>" in (shown.template or "")
    assert client.generate(MODEL).done_reason == "load"
    assert client.chat(MODEL).done_reason == "load"
    [loaded] = client.ps().models
    assert (loaded.name, loaded.digest, loaded.size_vram) == (listed.model, listed.digest, 0)
    assert loaded.context_length == context
    assert loaded.size is not None
    assert loaded.size > (listed.size or 0)
    assert loaded.expires_at is not None
    assert loaded.expires_at > datetime.now(UTC)


@pytest.mark.slow
def test_a_conversation_continues_without_computing_its_beginning_again(
    gateway: Gateway, client: ollama.Client
) -> None:
    first = client.chat(f"{MODEL}:latest", HELLO, options=BRIEFLY)
    assert first.message.content
    assert (first.done, first.done_reason, first.eval_count) == (True, "length", 8)
    reused = gateway.metric("samovar_prompt_tokens_total", source="engine")
    second = client.chat(MODEL, [*HELLO, first.message, {"role": "user", "content": "Again."}], options=BRIEFLY)
    assert second.message.content
    assert (first.prompt_eval_count or 0) < (second.prompt_eval_count or 0)
    assert gateway.metric("samovar_prompt_tokens_total", source="engine") - reused >= (first.prompt_eval_count or 0)
    assert gateway.metric("samovar_requests_total", route="ollama_chat", status="incomplete") >= 2


@pytest.mark.slow
def test_a_stream_ends_with_its_counts_and_times_that_add_up(client: ollama.Client) -> None:
    *pieces, last = client.chat(MODEL, HELLO, stream=True, options=BRIEFLY)
    assert not any(piece.done for piece in pieces)
    assert last.done
    assert "".join(piece.message.content or "" for piece in pieces)
    assert (last.done_reason, last.eval_count, last.message.content) == ("length", 8, "")
    parts = [last.load_duration, last.prompt_eval_duration, last.eval_duration]
    assert all(part is not None and part > 0 for part in parts)
    assert sum(part or 0 for part in parts) <= (last.total_duration or 0)


@pytest.mark.slow
def test_a_prompt_is_answered_with_log_probabilities(client: ollama.Client) -> None:
    answer = client.generate(MODEL, "Say hello.", system="Be brief.", logprobs=True, top_logprobs=2, options=BRIEFLY)
    assert answer.response
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.eval_count
    assert all(len(entry.top_logprobs or ()) == 2 for entry in answer.logprobs)
    assert "".join(piece.response or "" for piece in client.generate(MODEL, "Hi", stream=True, options=BRIEFLY))
    raw = client.generate(MODEL, "One, two, three,", raw=True, options={"temperature": 0, "num_predict": 2})
    assert raw.response
    assert raw.prompt_eval_count == 6  # no template


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_with_a_reason(client: ollama.Client) -> None:
    for call, status, reason in (
        (lambda: client.chat("llama3.2", HELLO), 404, MODEL),
        (lambda: list(client.chat("llama3.2", HELLO, stream=True)), 404, MODEL),
        (lambda: client.show("llama3.2"), 404, MODEL),
        (lambda: client.generate(MODEL, "a", suffix="b"), 400, "suffix"),
        (lambda: client.generate(MODEL, "Hi", images=["aGVsbG8="]), 400, "images"),
        (lambda: client.generate(MODEL, keep_alive=0), 400, "idle_unload"),
        (lambda: client.chat(MODEL, HELLO, options={"temperature": 9}), 400, "options.temperature"),
        (lambda: client.generate(MODEL, "word " * 9000), 400, "tokens"),
        (lambda: client.pull("llama3.2"), 400, "samovar models"),
        (lambda: client.push("llama3.2"), 400, "samovar models"),
        (lambda: client.create("mine", from_=MODEL), 400, "samovar models"),
        (lambda: client.copy(MODEL, "mine"), 400, "samovar models"),
        (lambda: client.delete(MODEL), 400, "samovar models"),
        (lambda: client.embed(MODEL, "Hi"), 400, "embeddings"),
        (lambda: client.embeddings(MODEL, "Hi"), 400, "embeddings"),
    ):  # fmt: skip
        with pytest.raises(ollama.ResponseError, match=reason) as caught:
            call()
        assert caught.value.status_code == status


@pytest.mark.slow
def test_what_has_no_effect_is_listed(gateway: Gateway) -> None:
    body = {"model": MODEL, "messages": HELLO, "keep_alive": "5m", "options": {**BRIEFLY, "num_ctx": 4096}}
    for stream in (True, False):
        answer = gateway.post("/api/chat", {**body, "stream": stream})
        assert answer.headers["x-samovar-ignored"] == "keep_alive, options.num_ctx"


@pytest.mark.slow
def test_lines_are_streamed_unless_the_client_wants_one_object(gateway: Gateway) -> None:
    answer = gateway.post("/api/generate", {"model": MODEL, "prompt": "Hi", "options": BRIEFLY})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len(lines) > 1
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    whole = gateway.post("/api/generate", {"model": MODEL, "prompt": "Hi", "options": BRIEFLY, "stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.json().keys() == lines[-1].keys()
    assert "".join(line["response"] for line in lines)
    assert whole.json()["response"]


def test_programs_that_look_for_ollama_find_it_and_browsers_get_the_page(shared_server: Gateway) -> None:
    assert httpx.head(shared_server.url).status_code == 200
    for accept in ("*/*", "application/json, text/plain, */*"):
        assert shared_server.get("/", accept=accept).text == "Ollama is running"
    page = shared_server.get("/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.text.startswith("<!doctype html>")
    assert page.headers["vary"] == "Accept"
    assert re.fullmatch(r"\d+\.\d+\.\d+", shared_server.get("/api/version").json()["version"])


def test_the_examples_of_ollamas_documentation_declare_no_json(shared_server: Gateway) -> None:
    body = b'{"model": "tiny", "prompt": "tea", "stream": false, "options": {"num_predict": 1}}'
    url = shared_server.url + "/api/generate"
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        assert httpx.post(url, content=body, headers=headers, timeout=60).json()["done"]
    simple = {"content-type": "text/plain", "origin": "https://evil.example"}
    assert httpx.post(url, content=body, headers=simple).status_code == 403


def test_every_refusal_is_text_and_keys_are_needed_as_elsewhere(tmp_path: Path, tiny_model: Path) -> None:
    key = keys(tmp_path, "add", "anna")
    bearer = {"Authorization": f"Bearer {key}"}
    with Gateway(tmp_path, model=tiny_model, context=512) as gateway:
        form = httpx.post(gateway.url + "/api/chat", data={"a": "b"}, headers=bearer)
        refused = [
            (401, gateway.get("/api/tags")),
            (401, gateway.post("/api/chat", {"messages": HELLO})),
            (403, gateway.get("/api/tags", host="evil.example", **bearer)),
            (404, gateway.get("/api/nowhere", **bearer)),
            (405, gateway.get("/api/chat", **bearer)),
            (400, form),
            (
                400,
                httpx.post(
                    gateway.url + "/api/chat", content="{", headers={**bearer, "content-type": "application/json"}
                ),
            ),
        ]
        for status, answer in refused:
            assert answer.status_code == status
            assert answer.json().keys() == {"error"}
            assert isinstance(answer.json()["error"], str)
        assert gateway.get("/api/tags", **bearer).json()["models"][0]["name"] == "tiny:latest"
        assert gateway.get("/").status_code == 200
        assert gateway.metric("samovar_requests_total", route="ollama_chat", code="invalid_api_key") == 1
