"""Anthropic's Messages API with the `anthropic` package. First argument: the base URL, with `/v1`."""

import sys

from anthropic import Anthropic
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
client = Anthropic(base_url=sys.argv[1].removesuffix("/v1"), api_key="none", max_retries=0)


class Weather(BaseModel):
    """Tell the weather of a city."""

    city: str = Field(max_length=12)


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
tools: list = [{"name": "weather", "description": Weather.__doc__, "input_schema": Weather.model_json_schema()}]
# Version 2 has no argument for the temperature.
required: dict = {"tools": tools, "tool_choice": {"type": "any"}, "extra_body": {"temperature": 0}}
called = client.messages.create(model=MODEL, max_tokens=60, messages=messages, **required)
(call,) = called.content
assert (call.type, called.stop_reason) == ("tool_use", "tool_use")
assert set(call.input) == {"city"}
with client.messages.stream(model=MODEL, max_tokens=60, messages=messages, **required) as stream:
    assert stream.get_final_message().content[0].input == call.input
result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
none: dict = {"tools": tools, "tool_choice": {"type": "none"}}
answer = client.messages.create(model=MODEL, max_tokens=8, messages=messages, **none)
assert answer.content[0].text
assert answer.usage.cache_read_input_tokens > called.usage.output_tokens
messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": "And in Rome?"}]
with client.messages.stream(model=MODEL, max_tokens=8, messages=messages, **none) as stream:
    assert "".join(stream.text_stream)
invent: list = [{"role": "user", "content": "Invent a person."}]
parsed = client.messages.parse(model=MODEL, max_tokens=60, messages=invent, output_format=Person)
assert isinstance(parsed.parsed_output, Person)
print("conversation", "tools", "JSON", "streaming", sep="\n")
