"""The `llm` package and its `extra-openai-models.yaml`. First argument: the base URL."""

import os
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, Field

# `llm` reads its folder when it is imported.
folder = os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
Path(folder, "extra-openai-models.yaml").write_text(
    "- model_id: samovar\n"
    "  model_name: smollm2-135m-instruct\n"
    f"  api_base: {sys.argv[1]}\n"
    "  supports_tools: true\n"
    "  supports_schema: true\n"
)
import llm  # noqa: E402


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}."


model = llm.get_model("samovar")
model.key = "none"
conversation = model.conversation()
assert conversation.prompt("Hello!", max_tokens=8, stream=False).text()
assert "".join(conversation.prompt("Again, please.", max_tokens=8))
# `llm` cannot require a call, so that it is up to the model.
assert conversation.prompt("Weather in Paris?", max_tokens=30, tools=[get_weather], stream=False).text() is not None
assert Person.model_validate_json(model.prompt("Invent a person.", schema=Person, max_tokens=60).text())
print("conversation", "JSON", "streaming", sep="\n")
