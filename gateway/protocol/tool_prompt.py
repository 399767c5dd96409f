"""Tools as prompt text, for templates without tools: the format of Qwen's training, which other models follow, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from gateway.protocol.reasoning import CLOSE, OPEN

Message = dict[str, Any]
"""A message with `role` (system, user, assistant or tool) and `content`; an assistant's may have `tool_calls`."""
Tool = dict[str, Any]
"""A function for chat templates: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

MAX_NAME: Final = 128
"""Maximum characters of a function's name."""
NAME: Final = rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}"
"""Pattern of a function's name."""
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
    """Return JSON as in the models' training: unescaped Chinese, and spaces after colons and commas."""
    return json.dumps(value, ensure_ascii=False)


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return the messages with a description of the tools in the system message."""
    if not tools:
        return list(messages)
    about = _ABOUT.format(tools="\n".join(dump(tool) for tool in tools))
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{about}"}, *messages[1:]]
    return [{"role": "system", "content": about}, *messages]


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """Convert calls to the text that the model wrote, and results to user messages."""
    result = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            result.append({"role": "user", "content": content})
        elif message.get("tool_calls"):
            calls = [f"<tool_call>\n{_untagged(call['function'])}\n</tool_call>" for call in message["tool_calls"]]
            result.append({"role": "assistant", "content": "\n".join([message["content"], *calls]).strip()})
        else:
            result.append(dict(message))
    return result


def _untagged(value: Any) -> str:
    """Return JSON without tags of reasoning, at which some templates split contents."""
    return dump(value).replace(OPEN, rf"\u003c{OPEN[1:]}").replace(CLOSE, rf"\u003c{CLOSE[1:]}")
