"""Chat completions, the Responses API and its WebSocket mode with `openai`. First argument: the base URL."""

import json
import sys

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
client = OpenAI(base_url=sys.argv[1], websocket_base_url=sys.argv[1].replace("http", "ws", 1), api_key="none")


class Weather(BaseModel):
    """Tell the weather of a city."""

    city: str = Field(max_length=12)


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


# Chat completions: a tool call, its result, a streamed answer.
messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
tools = [pydantic_function_tool(Weather)]
answer = client.chat.completions.create(
    model=MODEL, messages=messages, tools=tools, tool_choice="required", max_tokens=60
)
message = answer.choices[0].message
(call,) = message.tool_calls
assert set(json.loads(call.function.arguments)) == {"city"}
messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
answer = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, tool_choice="none", max_tokens=8)
assert answer.choices[0].message.content
stream = client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=8, stream=True
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
with client.chat.completions.stream(
    model=MODEL, messages=messages[:1], tools=tools, tool_choice="required", max_tokens=60
) as chat:
    assert chat.get_final_completion().choices[0].message.tool_calls[0].function.parsed_arguments.city is not None
parsed = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": "Invent a person."}], response_format=Person, max_tokens=60
)
assert isinstance(parsed.choices[0].message.parsed, Person)

# The Responses API: a conversation that the gateway stores.
function = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema()}
first = client.responses.create(
    model=MODEL, input="Weather in Paris?", tools=[function], tool_choice="required", max_output_tokens=60
)
(item,) = first.output
second = client.responses.create(
    model=MODEL,
    previous_response_id=first.id,
    input=[{"type": "function_call_output", "call_id": item.call_id, "output": "Sunny."}],
    max_output_tokens=8,
)
assert second.output_text
with client.responses.stream(
    model=MODEL, input="Again?", previous_response_id=second.id, max_output_tokens=8
) as events:
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")
person = client.responses.parse(model=MODEL, input="Invent a person.", text_format=Person, max_output_tokens=60)
assert isinstance(person.output_parsed, Person)

# The same over a WebSocket.
with client.responses.connect() as connection:
    connection.response.create(model=MODEL, input="Hello!", max_output_tokens=8)
    text = ""
    for event in connection:
        text += event.delta if event.type == "response.output_text.delta" else ""
        if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
            break
    assert text

print("conversation", "tools", "JSON", "streaming", "WebSocket", sep="\n")
