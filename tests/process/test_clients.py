"""Clients as people install them, against a gateway as people start it: nothing of theirs is adapted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from tests.support.running import Gateway

pytestmark = [
    pytest.mark.slow,
    # What these packages warn of among themselves is not ours to fix.
    pytest.mark.filterwarnings("default"),
]

MODEL = "smollm2-135m-instruct"


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city. 查询天气。"""
    return f"Sunny in {city}."


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=30)
    age: int


def langchain(server: Gateway, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=server.url + "/v1", api_key=SecretStr("none"), temperature=0, max_retries=0, **fields
    )


def test_langchain_holds_a_conversation_and_streams(server: Gateway) -> None:
    chat = langchain(server, max_completion_tokens=30)
    first = chat.invoke([("system", "You are brief."), ("human", "Say hello.")])
    assert first.text
    chunks = list(chat.stream([("human", "Say hello."), first, ("human", "Again, please.")], stream_usage=True))
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks)
    assert any(chunk.usage_metadata for chunk in chunks)


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_calls_a_tool_and_gives_its_result_back(server: Gateway, responses: bool) -> None:
    chat = langchain(server, use_responses_api=responses, max_completion_tokens=120)
    said: list[Any] = [HumanMessage("What is the weather in Paris?")]
    call = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(said)
    assert [c["name"] for c in call.tool_calls] == ["get_weather"]
    result = get_weather.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert chat.invoke([*said, call, result]).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_an_object_of_the_class_that_it_asked_for(server: Gateway, method: Any) -> None:
    wanted = langchain(server, max_completion_tokens=200).with_structured_output(Person, method=method)
    assert isinstance(wanted.invoke("Invent a person."), Person)


def test_litellm_asks_streams_and_calls(server: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks a host for prices
    import litellm

    where: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": server.url + "/v1", "api_key": "none"}
    said = [{"role": "user", "content": "Say hello."}]
    assert litellm.completion(messages=said, max_tokens=10, **where).choices[0].message.content
    stream = litellm.completion(messages=said, max_tokens=10, stream=True, **where)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    answer = litellm.completion(messages=said, tools=tools, tool_choice="required", max_tokens=80, **where)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ apiKey: "none", baseURL: process.env.BASE_URL, maxRetries: 0 });
const model = process.env.MODEL;
const messages = [{ role: "user", content: "Say hello." }];
const plain = await client.chat.completions.create({ model, messages, max_tokens: 10 });
const stream = await client.chat.completions.create({ model, messages, max_tokens: 10, stream: true });
let streamed = "";
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
const tools = [{ type: "function", name: "get_weather", parameters, strict: false }];
const called = await client.responses.create({
  model, input: "Weather in Paris?", tools, tool_choice: "required", max_output_tokens: 80,
});
const call = called.output.find((item) => item.type === "function_call");
const said = { plain: plain.choices[0].message.content, streamed, name: call.name, arguments: call.arguments };
console.log(JSON.stringify(said));
"""


# A machine without Node has nobody who would use it; nothing else of the project needs it.
@pytest.mark.parametrize("node", [path for path in [shutil.which("node")] if path and shutil.which("npm")])
def test_the_npm_package_asks_streams_and_calls(server: Gateway, npm_openai: Path, node: str) -> None:
    (npm_openai / "ask.js").write_text(SCRIPT)
    environment = {**os.environ, "BASE_URL": server.url + "/v1", "MODEL": MODEL}
    run = subprocess.run(
        [node, "ask.js"], cwd=npm_openai, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["plain"]
    assert said["streamed"]
    assert said["name"] == "get_weather"
    assert set(json.loads(said["arguments"])) == {"city"}
