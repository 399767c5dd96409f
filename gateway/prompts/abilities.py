"""Trial of a chat template: which conversations it takes, and what Samovar changes in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.prompts.chat_template import Prompt, TemplateError
from gateway.prompts.folding import text_message
from gateway.protocol.tool_prompt import Message

Taken = Literal["as it is", "changed", "omitted"]
"""How a conversation appears in the prompt; `omitted` means that a content is missing, or that rendering fails."""


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's chat template can do."""

    system: Taken
    """A system message before the conversation."""
    systems: Taken
    """Several system messages, also between other messages."""
    turns: Taken
    """Several messages of one role in a row."""
    appends: bool
    """Whether an earlier answer is rendered as it was generated, so that a longer conversation begins like a shorter
    one. Otherwise a conversation that is rendered again differs from one that was continued."""
    calls: str
    """A function call as the model writes it; empty if Samovar describes tools and calls in its own format."""
    tools: Taken
    """Tools, a call and its result."""
    thinking: bool
    """Whether reasoning can be switched on and off."""


def trial(prompt: Prompt) -> Abilities:
    """Render example conversations."""
    system, late = text_message("system", "Try one."), text_message("system", "Try two.")
    user, again = text_message("user", "Try three."), text_message("user", "Try four.")
    answer, more = text_message("assistant", "Try five."), text_message("assistant", "Try six.")
    last = text_message("user", "Try seven.")
    accepted = prompt.accepted
    return Abilities(
        system=_taken(prompt, [system, user], as_it_is=accepted.system),
        systems=_taken(
            prompt, [system, late, user, answer, late, again], as_it_is=accepted.systems and accepted.late_system
        ),
        turns=_taken(prompt, [user, again, answer, more, last], as_it_is=accepted.users and accepted.assistants),
        appends=_appends(prompt, [user], answer, again),
        calls=prompt.calls.example if prompt.describes_tools else "",
        tools=_taken(prompt, [user, *_call(), again], as_it_is=prompt.describes_tools),
        thinking=_shown(prompt, [user], thinking=True) != _shown(prompt, [user], thinking=False),
    )


def _taken(prompt: Prompt, messages: Sequence[Message], *, as_it_is: bool) -> Taken:
    shown = _shown(prompt, messages)
    if shown is None or not all(message["content"] in shown for message in messages):
        return "omitted"
    return "as it is" if as_it_is else "changed"


def _appends(prompt: Prompt, before: list[Message], answer: Message, after: Message) -> bool:
    asked, whole = _shown(prompt, before), _shown(prompt, [*before, answer, after])
    return asked is not None and whole is not None and whole.startswith(asked + answer["content"])


def _shown(prompt: Prompt, messages: Sequence[Message], *, thinking: bool = False) -> str | None:
    """Return the text of a prompt; None if the template rejects it."""
    try:
        return prompt.shown(messages, date=lambda _: "", thinking=thinking)
    except (TemplateError, RecursionError):
        return None


def _call() -> list[Message]:
    call = {"type": "function", "id": "call_1", "function": {"name": "try", "arguments": {"a": 1}}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Try eight.", "tool_call_id": "call_1"},
    ]
