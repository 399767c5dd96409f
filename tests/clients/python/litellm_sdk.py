"""litellm's SDK: chat completions, the Responses API and raw prompts. First argument: the base URL."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or its import asks a host for prices
import litellm
from pydantic import BaseModel, Field


class Weather(BaseModel):
    """Tell the weather of a city."""

    city: str = Field(max_length=12)


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


where = {"model": "openai/smollm2-135m-instruct", "api_base": sys.argv[1], "api_key": "none"}
messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
tools = [{"type": "function", "function": {"name": "weather", "parameters": Weather.model_json_schema()}}]
answer = litellm.completion(messages=messages, tools=tools, tool_choice="required", max_tokens=60, **where)
message = answer.choices[0].message
(call,) = message.tool_calls
assert set(json.loads(call.function.arguments)) == {"city"}
messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
assert litellm.completion(messages=messages, tools=tools, tool_choice="none", max_tokens=8, **where)
stream = litellm.completion(messages=messages[:1], max_tokens=8, stream=True, **where)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
invent: list = [{"role": "user", "content": "Invent a person."}]
answer = litellm.completion(messages=invent, response_format=Person, max_tokens=60, **where)
assert Person.model_validate_json(answer.choices[0].message.content)
response = litellm.responses(input="Hello!", max_output_tokens=8, **where)
assert response.output
raw = {**where, "model": "text-completion-openai/smollm2-135m-instruct"}
assert litellm.text_completion(prompt="Once upon a time", max_tokens=8, **raw).choices[0].text
print("conversation", "tools", "JSON", "streaming", sep="\n")
