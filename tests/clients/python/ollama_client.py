"""Ollama's API with the `ollama` package. First argument: the base URL, with `/v1`."""

import sys

from ollama import Client
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
client = Client(host=sys.argv[1].removesuffix("/v1"))


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}."


briefly = {"temperature": 0, "num_predict": 8}
messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
# Ollama's API cannot require a call; with a format, the model can only call or answer in JSON.
wanted: dict = {"tools": [get_weather], "format": "json", "options": {"temperature": 0}}
called = client.chat(MODEL, messages, **wanted).message
(call,) = called.tool_calls
*_, streamed, last = client.chat(MODEL, messages, stream=True, **wanted)
assert streamed.message.tool_calls == called.tool_calls
assert last.done
result = {"role": "tool", "tool_name": call.function.name, "content": get_weather(**call.function.arguments)}
messages += [called, result]
answer = client.chat(MODEL, messages, tools=[get_weather], options=briefly).message
assert answer.content
messages += [answer, {"role": "user", "content": "And in Rome?"}]
assert "".join(part.message.content or "" for part in client.chat(MODEL, messages, stream=True, options=briefly))
invent = [{"role": "user", "content": "Invent a person."}]
person = client.chat(MODEL, invent, format=Person.model_json_schema(), options={"temperature": 0})
Person.model_validate_json(person.message.content)
assert client.generate(MODEL, "A person", format="json", options=briefly).response.startswith("{")
print("conversation", "tools", "JSON", "streaming", sep="\n")
