"""LangChain: conversation, tools and all methods of structured output. First argument: the base URL."""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}."


def chat(**fields) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=sys.argv[1], api_key="none", temperature=0, max_retries=0, **fields)


for responses in (False, True):
    said: list = [HumanMessage("What is the weather in Paris?")]
    call = chat(use_responses_api=responses, max_completion_tokens=100).bind_tools([get_weather], tool_choice="any")
    said.append(call.invoke(said))
    said.append(get_weather.invoke(said[-1].tool_calls[0]))
    brief = chat(use_responses_api=responses, max_completion_tokens=8, stream_usage=True)
    said.append(brief.invoke(said))
    assert said[-1].text
    chunks = list(brief.stream([*said, HumanMessage("And in Rome?")]))
    assert "".join(chunk.text for chunk in chunks)
    assert any(chunk.usage_metadata for chunk in chunks)
    for method in ("json_schema", "function_calling"):
        wanted = chat(use_responses_api=responses, max_completion_tokens=60).with_structured_output(
            Person, method=method
        )
        assert isinstance(wanted.invoke("Invent a person."), Person), method

# `json_mode` promises an object of no particular form: the prompt describes it.
loose = chat(max_completion_tokens=100).with_structured_output(Person, method="json_mode", include_raw=True)
example = 'Repeat this JSON object: {"name": "Ann", "age": 30}'
answer = loose.invoke(example)
assert isinstance(json.loads(answer["raw"].text), dict)
print("conversation", "tools", "JSON", "streaming", sep="\n")
