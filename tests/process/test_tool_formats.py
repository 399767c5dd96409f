"""Calls in a model's own format, from a gateway: official clients get JSON arguments whatever the model writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from tests.support.running import Gateway
from tests.support.tiny_model import write_tiny_model
from tests.support.tool_templates import KEYS, LLAMA, MISTRAL_ARGS, MISTRAL_CONTROLS, XML

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"城市": {"enum": ["北京", "上海"]}, "days": {"enum": [1, 2]}, "exact": {"type": "boolean"}},
    "required": ["城市", "days", "exact"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "controls"),
    [(XML, ()), (KEYS, ()), (LLAMA, ()), (MISTRAL_ARGS, MISTRAL_CONTROLS)],
    ids=["xml", "keys", "llama", "mistral"],
)
def test_a_forced_call_and_its_result_pass_through_official_clients(
    tmp_path: Path, template: str, controls: tuple[str, ...]
) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", template=template, controls=controls, context=2048)
    said: list[Any] = [{"role": "user", "content": "天气?"}]
    with Gateway(tmp_path, model=path, context=2048) as gateway:
        client = OpenAI(api_key="none", base_url=f"{gateway.url}/v1", max_retries=0)
        ask: dict[str, Any] = {"model": "model", "tools": [TOOL], "seed": 1, "max_tokens": 200}
        answer = client.chat.completions.create(messages=said, tool_choice="required", **ask).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert not answer.message.content
        [call] = answer.message.tool_calls or []
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
        stream = client.chat.completions.create(messages=said, tool_choice="required", stream=True, **ask)
        pieces = [chunk.choices[0].delta.tool_calls or [] for chunk in stream]
        streamed = "".join(piece.function.arguments or "" for some in pieces for piece in some if piece.function)
        assert streamed == call.function.arguments
        said += [answer.message, {"role": "tool", "tool_call_id": call.id, "content": "晴"}]
        after = client.chat.completions.create(messages=said, **{**ask, "max_tokens": 4})
        assert after.usage is not None
        assert after.usage.prompt_tokens_details is not None
        assert after.usage.prompt_tokens_details.cached_tokens
