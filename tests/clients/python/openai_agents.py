"""`openai-agents` with both of its models: Responses and chat completions. First argument: the base URL."""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
set_tracing_disabled(True)  # traces would go to OpenAI


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


@function_tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}."


async def talk(model) -> None:
    required = ModelSettings(tool_choice="required", max_tokens=100)
    agent = Agent(name="Assistant", instructions="Be brief.", model=model, tools=[get_weather], model_settings=required)
    # The agent calls the tool, gives the result back, and answers: two requests.
    result = await Runner.run(agent, "What is the weather in Paris?")
    assert any(item.type == "tool_call_output_item" for item in result.new_items)
    assert result.final_output

    # A streamed answer that `max_tokens` cuts off is an error to this client, so that this one has an end.
    typed = Agent(name="Assistant", model=model, output_type=Person, model_settings=ModelSettings(max_tokens=60))
    assert isinstance((await Runner.run(typed, "Invent a person.")).final_output, Person)
    said = [*result.to_input_list(), {"role": "user", "content": "Invent a person."}]
    streamed = Runner.run_streamed(typed, said)
    events = [event async for event in streamed.stream_events()]
    assert any(event.type == "raw_response_event" for event in events)
    assert isinstance(streamed.final_output, Person)


async def main() -> None:
    client = AsyncOpenAI(base_url=sys.argv[1], api_key="none")
    await talk(OpenAIResponsesModel(MODEL, client))
    await talk(OpenAIChatCompletionsModel(MODEL, client))
    print("conversation", "tools", "JSON", "streaming", sep="\n")


asyncio.run(main())
