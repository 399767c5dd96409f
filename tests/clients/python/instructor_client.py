"""`instructor`: objects of a class, by tool call and by JSON schema. First argument: the base URL."""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


messages: list = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Invent a person."},
]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.RESPONSES_TOOLS):
    client = instructor.from_openai(OpenAI(base_url=sys.argv[1], api_key="none"), mode=mode)
    limit = {"max_tokens": 60} if mode is not instructor.Mode.RESPONSES_TOOLS else {"max_output_tokens": 60}
    person = client.create(model=MODEL, messages=messages, response_model=Person, **limit)
    assert isinstance(person, Person), mode
client = instructor.from_openai(OpenAI(base_url=sys.argv[1], api_key="none"), mode=instructor.Mode.TOOLS)
*_, last = client.create_partial(model=MODEL, messages=messages, response_model=Person, max_tokens=60)
assert last.age is not None
print("conversation", "tools", "JSON", "streaming", sep="\n")
