"""The format in which a model writes a function call: the texts around the function's name and its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from gateway.protocol.reasoning import CHANNEL, CONSTRAIN, MESSAGE

JsonType = Literal["null", "boolean", "integer", "number", "string", "array", "object"]
ParameterKind = tuple[JsonType, ...] | None
"""How the text of a parameter between tags is read: as JSON if it is JSON of one of these types, otherwise as a string
as it is. None: always as JSON."""
ANY_TYPE: Final[ParameterKind] = ("null", "boolean", "integer", "number", "string", "array", "object")
Parameters = dict[str, dict[str, ParameterKind]]
"""The kinds of the functions' parameters, by the names of function and parameter."""


@dataclass(frozen=True)
class Tags:
    """The texts between parameters, for formats that write each parameter between tags of its own."""

    first: str
    """Text between the function's name and the first parameter's name."""
    assign: str
    """Text between a parameter's name and its value."""
    stop: str
    """Text that ends a value: the start of both `following` and `closing`. No value written as text contains it."""
    following: str
    """Text between a value and the next parameter's name."""
    empty: str
    """Text after the name of a function that is called without parameters."""


@dataclass(frozen=True)
class CallFormat:
    """A call is `opening`, the function's name, `middle`, the arguments and `closing`; or the arguments come first."""

    opening: str
    middle: str
    """Text between the name and arguments in JSON; empty with `tags`."""
    closing: str
    trigger: str
    """The start of `opening` from which on an answer is a call."""
    anchored: bool = False
    """Whether `trigger` starts a call only at the beginning of an answer, because ordinary text may contain it."""
    call_id: tuple[str, str] | None = None
    """Texts around the call's id, which may stand between arguments and `closing`; None for no id."""
    tags: Tags | None = None
    """Set if each parameter has tags of its own; then the arguments are not JSON."""
    name_last: bool = False
    """Whether the arguments, in JSON, stand before `middle`, and the name after it."""
    controls: tuple[tuple[str, int], ...] = ()
    """The control tokens in these texts, with their ids."""

    @property
    def rest(self) -> str:
        """The text between `trigger` and the function's name, or the arguments if these come first."""
        return self.opening.removeprefix(self.trigger)

    @property
    def example(self) -> str:
        """A call in one line, for people."""
        if self.name_last:
            return " ".join(f"{self.opening}{{…}}{self.middle}NAME{self.closing}".split())
        tags = self.tags
        arguments = f"{tags.first}KEY{tags.assign}VALUE" if tags is not None else self.middle + "{…}"
        return " ".join(f"{self.opening}NAME{arguments}{self.closing}".split())


OWN: Final = CallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    closing="}\n</tool_call>",
    trigger="<tool_call>",
)
"""The format of Qwen's training, which other models follow, too. Used for templates without a usable format."""
CHANNELS: Final = CallFormat(
    opening=f"{CHANNEL}commentary to=functions.",
    middle=f" {CONSTRAIN}json{MESSAGE}",
    closing="",
    trigger=f"{CHANNEL}commentary to=functions.",
)
"""The format of gpt-oss, in which a call is a message in a channel."""
