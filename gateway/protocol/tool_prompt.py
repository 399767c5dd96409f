"""Tools in words, for templates that know none: the format that Qwen's models were taught, which others follow too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

Message = dict[str, Any]
"""`role` (system, user, assistant or tool) and `content`; an assistant's may have `tool_calls`."""
Tool = dict[str, Any]
"""A function as chat templates take it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"
_ABOUT: Final = """# Tools

You can call functions. These are their signatures, one a line:
<tools>
{tools}
</tools>

To call one, answer with nothing but its name and its arguments as JSON, like this:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>"""


def dump(value: Any) -> str:
    """JSON as models were shown it: Chinese as it is, spaces after colons and commas."""
    return json.dumps(value, ensure_ascii=False)


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The messages with the tools described in the system's."""
    if not tools:
        return list(messages)
    about = _ABOUT.format(tools="\n".join(dump(tool) for tool in tools))
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{about}"}, *messages[1:]]
    return [{"role": "system", "content": about}, *messages]


def in_words(messages: Sequence[Message]) -> list[Message]:
    """Calls as the text that the model wrote, and results as a user's words."""
    said = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            said.append({"role": "user", "content": content})
        elif message.get("tool_calls"):
            calls = [f"{OPENING}\n{dump(call['function'])}\n{CLOSING}" for call in message["tool_calls"]]
            said.append({"role": "assistant", "content": "\n".join([message["content"], *calls]).strip()})
        else:
            said.append(dict(message))
    return said
