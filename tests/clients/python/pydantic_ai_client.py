"""`pydantic-ai` with chat completions and the Responses API. First argument: the base URL."""

import asyncio
import sys

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = "smollm2-135m-instruct"
provider = OpenAIProvider(base_url=sys.argv[1], api_key="none")


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


async def talk(model) -> None:
    # `ToolOutput` asks for the answer as a tool call, `NativeOutput` as JSON.
    by_tool = Agent(model, output_type=ToolOutput(Person), model_settings={"max_tokens": 60})
    result = await by_tool.run("Invent a person.")
    assert isinstance(result.output, Person)
    by_schema = Agent(model, output_type=NativeOutput(Person), model_settings={"max_tokens": 60})
    assert isinstance((await by_schema.run("Invent a person.")).output, Person)

    brief = Agent(model, instructions="Be brief.", model_settings={"max_tokens": 8})
    first = await brief.run("Hello!", message_history=result.all_messages())
    assert first.output
    async with brief.run_stream("Again, please.", message_history=first.all_messages()) as stream:
        assert "".join([text async for text in stream.stream_text(delta=True)])


async def main() -> None:
    await talk(OpenAIChatModel(MODEL, provider=provider))
    await talk(OpenAIResponsesModel(MODEL, provider=provider))
    print("conversation", "tools", "JSON", "streaming", sep="\n")


asyncio.run(main())
