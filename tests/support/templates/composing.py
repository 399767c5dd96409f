"""Composition of a chat template from the rules of a model's prompt format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

System = Literal["any", "first", "alone_first", "user", "last_user", "refused", "dropped", "renamed"]
"""Where a system message goes: into a message of its own anywhere (`any`) or only at the start (`first` omits later
ones, `alone_first` refuses them), into the first or the last user message, nowhere with an error (`refused`) or without
(`dropped`), or into a message that looks like the user's (`renamed`)."""
Thinking = Literal["kept", "split", "latest"]
"""What an earlier answer shows of its reasoning: everything, nothing (the text after the last `</think>`), or only what
came after the latest question, as Qwen3 does."""
Tools = Literal["", "hermes", "xml", "mistral", "llama", "results"]
"""How tools are described: not at all, as JSON in Hermes' or Llama's format, in Qwen3-Coder's XML, between Mistral's
markers; `results` knows only the role of results."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of one prompt format. `S`, `U`, `A` and `R` are pairs of texts around the messages of each role."""

    U: tuple[str, str]
    A: tuple[str, str]
    S: tuple[str, str] = ("", "")
    R: tuple[str, str] = ("", "")
    start: str = ""
    """Text before everything."""
    opening: str | None = None
    """What an answer begins with; by default the text before an assistant's message."""
    system: System = "any"
    default: str = ""
    """System message of conversations that have none."""
    alternate: bool = False
    trim: bool = False
    thinking: Thinking = "kept"
    no_thinking: str = ""
    """What an answer begins with if it may not reason."""
    tools: Tools = ""
    parts: bool = False
    """Whether content must be a list of parts."""
    needs_user: bool = False
    appends: bool = True
    """Whether a longer conversation is rendered as the shorter one with more text at its end."""

    @property
    def lead(self) -> str:
        """What the model writes before the text of an answer."""
        return "" if self.opening is None else self.A[0].removeprefix(self.opening)


def compose(rules: Rules) -> str:
    """Return the template's source."""
    lines = [
        "{%- set ns = namespace(system='', index=0, query=-1) %}",
        _text(rules.start),
        _first_system(rules) if rules.system not in ("any", "renamed") else "",
        _default(rules),
        _tools(rules),
        "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.query = loop.index0 %}{%- endif %}{%- endfor %}",
        "{%- if ns.query < 0 %}{{ raise_exception('No user query found in messages.') }}{%- endif %}"
        if rules.needs_user
        else "",
        "{%- for message in messages %}",
        _content(rules),
        _alternation() if rules.alternate else "",
        f"{{%- if message.role == 'user' %}}{_user(rules)}",
        f"{{%- elif message.role == 'assistant' %}}{_assistant(rules)}",
        f"{{%- elif message.role == 'system' %}}{_system(rules)}",
        f"{{%- elif message.role == 'tool' %}}{_result(rules)}" if rules.tools else "",
        "{%- else %}{{ raise_exception('Unknown role: ' + message.role) }}{%- endif %}{%- endfor %}",
        f"{{%- if add_generation_prompt %}}{_text(rules.A[0] if rules.opening is None else rules.opening)}",
        f"{{%- if not enable_thinking %}}{_text(rules.no_thinking)}{{%- endif %}}" if rules.no_thinking else "",
        "{%- endif %}",
    ]
    return "\n".join(line for line in lines if line)


def _text(text: str) -> str:
    parts = text.split("BOS")
    return "{{- bos_token }}".join("{{- %s }}" % _quoted(part) if part else "" for part in parts)  # noqa: UP031


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _around(pair: tuple[str, str], inner: str) -> str:
    return f"{_text(pair[0])}{inner}{_text(pair[1])}"


def _first_system(rules: Rules) -> str:
    found = "{%- if messages and messages[0].role == 'system' %}"
    content = "messages[0].content[0].text" if rules.parts else "messages[0].content"
    match rules.system:
        case "refused":
            return ""
        case "first" | "alone_first":
            return f"{found}{_around(rules.S, '{{- %s }}' % content)}{{%- endif %}}"  # noqa: UP031
        case _:
            joined = f"{_quoted(rules.S[0])} ~ {content} ~ {_quoted(rules.S[1])}"
            return f"{found}{{%- set ns.system = {joined} %}}{{%- endif %}}"


def _default(rules: Rules) -> str:
    if not rules.default:
        return ""
    shown = _around(rules.S, _text(rules.default))
    return f"{{%- if not messages or messages[0].role != 'system' %}}{shown}{{%- endif %}}"


def _tools(rules: Rules) -> str:
    match rules.tools:
        case "hermes":
            inner = "{%- for t in tools %}{{- '\\n' ~ (t | tojson) }}{%- endfor %}"
            about = _text("Tools:\n<tools>") + inner + _text('\n</tools>\n<tool_call>\n{"name": …}\n</tool_call>')
        case "xml":
            inner = "{%- for t in tools %}{{- '\\n<function>\\n<name>' ~ t.function.name ~ '</name>' }}{%- endfor %}"
            about = _text("# Tools\n<tools>") + inner + _text("\n</tools>\n<tool_call>\n<function=name>\n</tool_call>")
        case "mistral":
            about = _text("[AVAILABLE_TOOLS] ") + "{{- tools | tojson }}" + _text("[/AVAILABLE_TOOLS]")
            return f"{{%- if tools %}}{about}{{%- endif %}}"
        case "llama":
            about = "{%- for t in tools %}{{- (t | tojson(indent=4)) ~ '\\n\\n' }}{%- endfor %}"
        case _:
            return ""
    return f"{{%- if tools %}}{_around(rules.S if rules.system != 'refused' else rules.U, about)}{{%- endif %}}"


def _content(rules: Rules) -> str:
    content = "message.content or ''"
    if rules.parts:
        content = "message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join"
    if rules.trim:
        content = f"({content}) | trim"
    return f"{{%- set content = {content} %}}"


def _alternation() -> str:
    refused = "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    talks = "message.role in ('user', 'assistant') and not message.tool_calls"
    check = f"{{%- if (message.role == 'user') != (ns.index % 2 == 0) %}}{refused}{{%- endif %}}"
    return f"{{%- if {talks} %}}{check}{{%- set ns.index = ns.index + 1 %}}{{%- endif %}}"


def _user(rules: Rules) -> str:
    content = "{{- content }}"
    if rules.system == "user":
        content = "{{- ns.system }}{%- set ns.system = '' %}{{- content }}"
    elif rules.system == "last_user":
        content = "{%- if loop.last %}{{- ns.system }}{%- endif %}{{- content }}"
    return _around(rules.U, content)


def _assistant(rules: Rules) -> str:
    match rules.thinking:
        case "split":
            content = "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
            content += "{{- content }}"
        case "latest":
            content = (
                "{%- set ns.reasoning = message.reasoning_content or '' %}"
                "{%- if '</think>' in content and not ns.reasoning %}"
                "{%- set ns.reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
                "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
                "{%- if loop.index0 > ns.query and ns.reasoning %}"
                "{{- '<think>\\n' ~ ns.reasoning ~ '\\n</think>\\n\\n' }}{%- endif %}{{- content }}"
            )
        case _:
            content = "{{- content }}"
    return _around(rules.A, content + _calls(rules))


def _calls(rules: Rules) -> str:
    loop = "{%- for call in message.tool_calls or [] %}{%- set f = call.function %}"
    match rules.tools:
        case "hermes":
            body = (
                '{{- \'\\n<tool_call>\\n{"name": "\' ~ f.name ~ \'", "arguments": \' }}'
                "{%- if f.arguments is string %}{{- f.arguments }}{%- else %}{{- f.arguments | tojson }}{%- endif %}"
                "{{- '}\\n</tool_call>' }}"
            )
        case "xml":
            body = (
                "{{- '\\n<tool_call>\\n<function=' ~ f.name ~ '>\\n' }}"
                "{%- for name, value in f.arguments | items %}"
                "{{- '<parameter=' ~ name ~ '>\\n' ~ (value if value is string else value | tojson) }}"
                "{{- '\\n</parameter>\\n' }}{%- endfor %}{{- '</function>\\n</tool_call>' }}"
            )
        case "mistral":
            refused = "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
            body = (
                "%s{{- '[TOOL_CALLS] ' ~ (f | tojson) ~ ' ' ~ call.id }}"  # noqa: UP031
                % f"{{%- if call.id | length != 9 %}}{refused}{{%- endif %}}"
            )
        case "llama":
            refused = "{{ raise_exception('This model only supports single tool-calls at once!') }}"
            body = (
                f"{{%- if message.tool_calls | length != 1 %}}{refused}{{%- endif %}}"
                "{{- '{\"name\": \"' ~ f.name ~ '\", \"parameters\": ' ~ (f.arguments | tojson) ~ '}' }}"
            )
        case _:
            return ""
    return f"{loop}{body}{{%- endfor %}}"


def _system(rules: Rules) -> str:
    match rules.system:
        case "any" | "renamed":
            return _around(rules.S, "{{- content }}")
        case "refused":
            return "{{ raise_exception('System role not supported') }}"
        case "alone_first" | "user" | "last_user":
            return "{%- if not loop.first %}{{ raise_exception('Only the first message may be system') }}{%- endif %}"
        case _:
            return ""


def _result(rules: Rules) -> str:
    return _around(rules.R, "{{- content }}")
