"""litellm's proxy in front of Samovar, asked with `openai`. First argument: the base URL."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

MODEL = "small"
CONFIG = f"""
model_list:
  - model_name: {MODEL}
    litellm_params:
      model: openai/smollm2-135m-instruct
      api_base: {sys.argv[1]}
      api_key: none
litellm_settings:
  num_retries: 0
"""


class Weather(BaseModel):
    """Tell the weather of a city."""

    city: str = Field(max_length=12)


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


def talk(client: OpenAI) -> None:
    messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
    tools = [pydantic_function_tool(Weather)]
    asked = {"model": MODEL, "messages": messages, "tools": tools}
    message = client.chat.completions.create(**asked, tool_choice="required", max_tokens=60).choices[0].message
    (call,) = message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    message = client.chat.completions.create(**asked, tool_choice="none", max_tokens=8).choices[0].message
    assert message.content
    messages += [message, {"role": "user", "content": "And in Rome?"}]
    stream = client.chat.completions.create(
        **asked, tool_choice="none", max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert chunks[-1].usage.completion_tokens == 8
    invent: list = [{"role": "user", "content": "Invent a person."}]
    parsed = client.chat.completions.parse(model=MODEL, messages=invent, response_format=Person, max_tokens=60)
    assert isinstance(parsed.choices[0].message.parsed, Person)

    first = client.responses.create(model=MODEL, input="Hello!", max_output_tokens=8)
    second = client.responses.create(
        model=MODEL, input="Again?", previous_response_id=first.id, max_output_tokens=8, stream=True
    )
    assert "".join(event.delta for event in second if event.type == "response.output_text.delta")


def wait_for(url: str, proxy: subprocess.Popen) -> None:
    while proxy.poll() is None:
        try:
            return httpx.get(url).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
    sys.exit("the proxy has stopped")


config = Path(tempfile.mkdtemp(), "config.yaml")
config.write_text(CONFIG)
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
key = f"sk-{secrets.token_hex(16)}"
environment = {**os.environ, "LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
litellm = Path(sys.executable).with_name("litellm")
command = [litellm, "--config", config, "--host", "127.0.0.1", "--port", str(port)]
proxy = subprocess.Popen(command, env=environment, stdout=sys.stderr)
try:
    wait_for(f"http://127.0.0.1:{port}/health/liveliness", proxy)
    talk(OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0))
finally:
    proxy.terminate()
    proxy.wait()
print("conversation", "tools", "JSON", "streaming", sep="\n")
