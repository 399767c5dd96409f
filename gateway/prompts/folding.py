"""Conversion of any conversation that OpenAI's API allows to one that the model's chat template accepts.

Templates differ in what they take: some have no system message, or only a first one; some require that user and
assistant alternate; some raise an error otherwise, and others omit a message silently. `probe` finds this out by
rendering small examples once, and `fold` changes nothing that the template takes as it is. Both work message by message
from the start, so that a longer conversation begins like a shorter one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from gateway.protocol.tool_prompt import Message

Render = Callable[[Sequence[Message]], str | None]
"""Renders messages by the bare template; None if the template raises an error."""


@dataclass(frozen=True)
class Accepted:
    """What a template renders, without an error and without omitting a content."""

    parts: bool
    """Content is a list of parts, and a string is not rendered."""
    system: bool
    """One system message, the first message, which stays there as the conversation grows."""
    systems: bool
    """Several system messages at the beginning."""
    late_system: bool
    """A system message between other messages."""
    system_alone: bool
    """A system message without another message."""
    users: bool
    """A user message after another."""
    assistants: bool
    """An assistant message after another."""
    assistant_first: bool
    """An assistant message before all user messages or without one, also after a system message."""
    tool: bool
    """A tool result after a call."""
    user_after_tool: bool
    """A user message directly after a tool result."""
    calls: bool
    """Several calls in one assistant message; also if the template takes no call at all."""
    any_call_id: bool
    """A call id of any length; otherwise it has nine letters and digits, as Mistral's."""
    text_arguments: bool
    """Arguments of a call as text, which need not be JSON."""


def probe(render: Render) -> Accepted:
    """Return what the template accepts."""
    user, again = text_message("user", "probe1"), text_message("user", "probe2")
    answer, more = text_message("assistant", "probe3"), text_message("assistant", "probe4")
    system, late = text_message("system", "probe5"), text_message("system", "probe6")
    needs_parts = not _shows(render, [user]) and _shows(render, with_parts([user]))

    def shows(*messages: Message, contents: Sequence[str] = ()) -> bool:
        return _shows(render, with_parts(messages) if needs_parts else messages, contents)

    has_system = shows(system, user) and shows(system, user, answer) and shows(system, user, answer, again)
    return Accepted(
        parts=needs_parts,
        system=has_system,
        systems=shows(system, late, user),
        late_system=shows(system, user, answer, late, again),
        system_alone=shows(system),
        users=shows(user, again) and shows(user, again, answer),
        assistants=shows(user, answer, more, again),
        assistant_first=shows(answer, user) and shows(answer) and (not has_system or shows(system, answer)),
        tool=shows(user, *_call()) or shows(user, *_call("probe7890")),
        user_after_tool=shows(user, *_call("probe7890"), again),
        calls=shows(user, *_call("probe7890", number=2)) or not shows(user, *_call("probe7890")),
        any_call_id=shows(user, *_call()) or not shows(user, *_call("probe7890")),
        text_arguments=shows(user, *_call("probe7890", "probe0"), contents=["probe0"]),
    )


def fold(messages: Sequence[Message], accepted: Accepted) -> list[Message]:
    """Return the conversation in a form that the template accepts; contents are joined by an empty line."""
    folded = [_renamed(message) for message in messages]
    folded = _with_tools(folded if accepted.calls else _one_by_one(folded), accepted)
    folded = _with_roles(_with_system(folded, accepted), accepted)
    return with_parts(folded) if accepted.parts else folded


def with_parts(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with content as a list of one text part, as templates of multimodal models expect it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _renamed(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _with_system(messages: Sequence[Message], accepted: Accepted) -> list[Message]:
    """Place the system messages: the first ones as one or in the first user message, later ones as user messages."""
    head = list(takewhile(lambda message: message["role"] == "system", messages))
    rest = list(messages[len(head) :])
    if not accepted.late_system:
        rest = [{**message, "role": "user"} if message["role"] == "system" else message for message in rest]
    if len(head) > 1 and not (accepted.system and accepted.systems):
        head = [_joined(head)]
    if head and not accepted.system:
        instructions = {**head[0], "role": "user"}
        if not rest or rest[0]["role"] != "user":
            return [instructions, *rest]
        return [_joined([instructions, rest[0]]), *rest[1:]]
    return [*head, *rest]


def _with_tools(messages: Sequence[Message], accepted: Accepted) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        if message["role"] == "tool" and not accepted.tool:
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            result.append({"role": "user", "content": content})
            continue
        if message["role"] == "user" and result and result[-1]["role"] == "tool" and not accepted.user_after_tool:
            result.append(text_message("assistant", ""))
        result.append(_with_call_ids(message, accepted))
    return result


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with at most one call each, followed by its result."""
    result: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            result.append(message)
            continue
        results = list(takewhile(lambda following: following["role"] == "tool", rest))
        rest = rest[len(results) :]
        for call in calls:
            own = [found for found in results if found.get("tool_call_id") == call.get("id")]
            results = [found for found in results if found not in own]
            result += [{**message, "tool_calls": [call]}, *own]
            message = text_message("assistant", "")
        result += results
    return result


def _with_call_ids(message: Message, accepted: Accepted) -> Message:
    """Return a message with calls that the template renders: their ids, and arguments that are no JSON object."""
    changed = dict(message)
    if not accepted.any_call_id and message.get("tool_call_id"):
        changed["tool_call_id"] = _short(message["tool_call_id"])
    if message.get("tool_calls"):
        changed["tool_calls"] = [_accepted_call(call, accepted) for call in message["tool_calls"]]
    return changed


def _accepted_call(call: dict[str, Any], accepted: Accepted) -> dict[str, Any]:
    function, changed = call["function"], dict(call)
    if not accepted.any_call_id:
        changed["id"] = _short(call.get("id", ""))
    arguments = function["arguments"]
    if not isinstance(arguments, dict) and not (isinstance(arguments, str) and arguments and accepted.text_arguments):
        changed["function"] = {**function, "arguments": {}}
    return changed


def _with_roles(messages: Sequence[Message], accepted: Accepted) -> list[Message]:
    """Join messages of one role, or add an empty user message, where the template requires that roles alternate."""
    result: list[Message] = []
    for message in messages:
        role = message["role"]
        before = result[-1]["role"] if result else "system"
        if result and _is_repeated(result[-1], message, accepted):
            result[-1] = _joined([result[-1], message])
            continue
        if role == "assistant" and before == "system" and not accepted.assistant_first:
            result.append(text_message("user", ""))
        result.append(message)
    if any(message["role"] == "user" for message in result):
        return result
    talks = any(message["role"] != "system" for message in result)
    if result and not (accepted.assistant_first if talks else accepted.system_alone):
        head = list(takewhile(lambda message: message["role"] == "system", result))
        return [*head, text_message("user", ""), *result[len(head) :]]
    return result


def _is_repeated(before: Message, message: Message, accepted: Accepted) -> bool:
    """Return whether the message has the role of the one before, which the template does not accept."""
    if message["role"] != before["role"]:
        return False
    if message["role"] == "assistant":
        return not (accepted.assistants or before.get("tool_calls") or message.get("tool_calls"))
    return message["role"] == "user" and not accepted.users


def _joined(messages: Sequence[Message]) -> Message:
    joined = dict(messages[0])
    for key in ("content", "reasoning_content"):
        texts = [message[key] for message in messages if message.get(key)]
        if texts or key in joined:
            joined[key] = "\n\n".join(texts)
    return joined


def _short(call_id: str) -> str:
    """Return an id of nine letters and digits; the same for the same id."""
    return call_id if len(call_id) == 9 and call_id.isalnum() else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def text_message(role: str, content: str) -> Message:
    """Return a message that is only text."""
    return {"role": role, "content": content}


def _call(call_id: str = "call_probe7890", arguments: Any = None, *, number: int = 1) -> list[Message]:
    """Return an example of a message with `number` calls, and its result."""
    function = {"name": "probe", "arguments": {} if arguments is None else arguments}
    call = {"id": call_id, "type": "function", "function": function}
    result = {"role": "tool", "content": "probe9", "tool_call_id": call_id, "name": "probe"}
    return [{"role": "assistant", "content": "", "tool_calls": [call] * number}, result]


def _shows(render: Render, messages: Sequence[Message], contents: Sequence[str] = ()) -> bool:
    """Return whether the template renders all contents of the messages in their order, and `contents`."""
    rendered = render(messages)
    if rendered is None:
        return False
    texts = [part["text"] for message in messages for part in _as_parts(message["content"])]
    places = [rendered.find(text) for text in texts if text]
    return places == sorted(places) and -1 not in places and all(text in rendered for text in contents)


def _as_parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"text": content}]
