"""Reasoning and cut calls at a gateway, in the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.running import Gateway
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model

ENDLESS: dict[str, Any] = {"logit_bias": {"65": 100}, "temperature": 0}
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "minLength": 50}}, "required": ["city"]}
FUNCTION = {"name": "weather", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose model reasons: the template opens the tag, and the model never closes it."""
    folder = tmp_path_factory.mktemp("reasoning")
    template = CHAT_TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}"
    model = write_tiny_model(folder / "model.gguf", template=template, context=2048)
    with Gateway(folder / "state", model=model, context=2048) as running:
        yield running


def post(gateway: Gateway, path: str, **body: Any) -> dict[str, Any]:
    answer = gateway.post(path, body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.slow
def test_an_answer_that_is_all_reasoning_is_shown_and_counted_as_such(gateway: Gateway) -> None:
    response = post(gateway, "/v1/responses", input="Hi", max_output_tokens=5, **ENDLESS)
    assert [item["type"] for item in response["output"]] == ["reasoning"]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 5}
    completion = post(gateway, "/v1/chat/completions", messages=[USER], max_tokens=5, **ENDLESS)
    assert completion["choices"][0]["message"]["reasoning_content"] == "AAAAA"
    assert completion["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
    ask = {"messages": [USER], "max_tokens": 5}
    message = post(gateway, "/v1/messages", **ask, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block["type"] for block in message["content"]] == ["thinking"]
    assert post(gateway, "/v1/messages", **ask)["content"] == []


@pytest.mark.slow
def test_a_reasoning_answer_is_resumed_and_continued(gateway: Gateway) -> None:
    first = post(gateway, "/v1/responses", input="Hi", max_output_tokens=5, background=True, **ENDLESS)
    replayed = gateway.get(f"/v1/responses/{first['id']}?stream=true&starting_after=1").text
    events = [json.loads(line[6:]) for line in replayed.splitlines() if line.startswith("data: {")]
    thought = "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta")
    assert thought == "AAAAA"
    assert events[-1]["type"] == "response.incomplete"
    inputs: list[str | list[object]] = ["And?", []]
    for input_ in inputs:
        following = post(
            gateway, "/v1/responses", input=input_ or "So?", previous_response_id=first["id"], max_output_tokens=3,
            **ENDLESS,
        )  # fmt: skip
        assert [item["type"] for item in following["output"]] == ["reasoning"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, "AAA"])
def test_a_call_that_is_cut_within_its_arguments_shows_nothing_of_its_marker(
    gateway: Gateway, stop: str | None
) -> None:
    """A string of at least 50 characters ends neither within the limit of tokens nor before the stop string."""
    limit = 60
    stops = {} if stop is None else {"stop": stop}
    response = post(
        gateway, "/v1/responses", input="Hi", tools=[{"type": "function", **FUNCTION}], tool_choice="required",
        max_output_tokens=limit, **ENDLESS, **stops,
    )  # fmt: skip
    [item] = response["output"]
    assert (item["type"], item["name"]) == ("function_call", "weather")
    assert re.match(r'\{\s*"city"\s*:\s*"', item["arguments"])
    completion = post(
        gateway, "/v1/chat/completions", messages=[USER], tools=[{"type": "function", "function": FUNCTION}],
        tool_choice="required", max_tokens=limit, **ENDLESS, **stops,
    )  # fmt: skip
    assert not completion["choices"][0]["message"]["content"]
    message = post(
        gateway, "/v1/messages", messages=[USER], tools=[{"name": "weather", "input_schema": SCHEMA}],
        tool_choice={"type": "any"}, max_tokens=limit, temperature=0,
        **({} if stop is None else {"stop_sequences": ["{"]}),
    )  # fmt: skip
    assert message["content"] == []
    assert message["stop_reason"] == ("max_tokens" if stop is None else "stop_sequence")
