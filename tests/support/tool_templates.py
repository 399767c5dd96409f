"""Small chat templates that behave like those of published models: written for the tests, none is a copy.

Each shows tools, calls and results in the way of its family. `FORMATS` has a call of each as the model writes it.
"""

from __future__ import annotations

from typing import Final

_TURNS: Final = (
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant\n{{ m.content }}"
    "{%- for c in m.tool_calls %}{%- set c = c.function %}@CALL@{%- endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{{- '<|im_end|>\n' }}"
    "{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
_LISTED: Final = (
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
)


def _chatml(call: str, tools: str = _LISTED) -> str:
    return tools + _TURNS.replace("@CALL@", call)


QWEN: Final = _chatml(
    '{{ \'\\n<tool_call>\\n{"name": "\' + c.name + \'", "arguments": \' }}'
    "{%- if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}"
    "{{- '}\\n</tool_call>' }}"
)
"""Qwen 2.5 and 3: JSON in a tag."""
HERMES: Final = _chatml(
    "{{ '\\n<tool_call>\\n{ \"arguments\": ' }}{{ c.arguments | tojson }}"
    "{{- ', \"name\": \"' + c.name + '\"}\\n</tool_call>' }}",
    "{%- macro signature(spec) %}{%- set names = {'string': 'str', 'integer': 'int', 'boolean': 'bool'} %}"
    "{%- if names[spec.type] is defined %}{{ names[spec.type] }}"
    "{%- elif spec.type == 'array' %}list[{{ signature(spec['items']) }}]"
    "{%- elif spec.type == 'object' %}dict"
    "{%- elif spec.type is iterable %}Union[{% for t in spec.type %}{{ signature({'type': t}) }},{% endfor %}]"
    "{%- else %}Any{% endif %}{% endmacro %}"
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{%- if t.function is defined %}{%- set t = t.function %}"
    "{%- endif %}def {{ t.name }}({% for key, spec in t.parameters.properties.items() %}"
    "{{ key }}: {{ signature(spec) }}{% if key in t.parameters.required %}!{% endif %}, {% endfor %})\n"
    "{% endfor %}<|im_end|>\n{% endif %}",
)
"""Hermes 2 Pro: signatures by a macro that recurses on `type`, and calls whose arguments come first."""
XML: Final = _chatml(
    "{{ '\\n<tool_call>\\n<function=' + c.name + '>\\n' }}"
    "{%- for key, value in c.arguments | items %}{{ '<parameter=' + key + '>\\n' }}"
    "{{- value if value is string else (value | tojson) }}{{ '\\n</parameter>\\n' }}{% endfor %}"
    "{{- '</function>\\n</tool_call>' }}"
)
"""Qwen3-Coder, Qwen3.5, Nemotron: a tag for the function and for each parameter."""
KEYS: Final = _chatml(
    "{{ '\\n<tool_call>' + c.name + '\\n' }}{%- for key, value in c.arguments | items %}"
    "{{ '<arg_key>' + key + '</arg_key>\\n<arg_value>' }}{{ value if value is string else (value | tojson) }}"
    "{{- '</arg_value>\\n' }}{% endfor %}{{ '</tool_call>' }}"
)
"""GLM 4.5, Step: tags for names and values."""
LLAMA: Final = _chatml(
    "{%- if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{{- '{\"name\": \"' + c.name + '\", \"parameters\": ' }}{{ c.arguments | tojson }}{{ '}' }}"
)
"""Llama 3: JSON without a tag, with `parameters`."""
TEXT_ARGUMENTS: Final = _chatml("{{ '<|im_start|>call:' + c.name + '\\n```json\\n' + c.arguments + '\\n```' }}")
"""DeepSeek: control tokens, and arguments that must be text."""
PYTHONIC: Final = _chatml(
    "{{ '[' + c.name + '(' }}{% for key, value in c.arguments | items %}{{ key }}={{ value | tojson }}, {% endfor %}"
    "{{ ')]' }}"
)
"""Calls as Python, a format that Samovar does not know."""
_MISTRAL: Final = (
    "{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
    "{%- elif m.role == 'assistant' and m.tool_calls %}@CALLS@<|im_end|>"
    "{%- elif m.role == 'assistant' %}{{ m.content }}<|im_end|>"
    "{%- elif m.role == 'tool' %}"
    "{%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}{{ raise_exception('bad id') }}{% endif %}"
    "[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{%- else %}{{ m.content }}{% endif %}{%- endfor %}"
)
MISTRAL: Final = _MISTRAL.replace(
    "@CALLS@",
    "[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{%- if c.id is not defined or c.id | length != 9 %}{{ raise_exception('bad id') }}{% endif %}"
    "{%- set json = c.function | tojson %}{{- json[:-1] }}"
    "{{- ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}, {% endif %}{% endfor %}]",
)
"""Mistral 7B v0.3 and Nemo: an array after a control token; ids have nine characters."""
MISTRAL_ARGS: Final = _MISTRAL.replace(
    "@CALLS@",
    "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}",
)
"""Later models of Mistral: name and arguments after control tokens."""
MISTRAL_CONTROLS: Final = ("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]")
HARMONY: Final = (
    "<|start|>system<|message|>Channels: analysis, commentary, final.<|end|>"
    "{%- if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' and m.tool_calls %}{%- set c = m.tool_calls[0].function %}"
    "{{- '<|start|>assistant to=functions.' + c.name + '<|channel|>commentary json<|message|>' }}"
    "{{- c.arguments | tojson }}{{ '<|call|>' }}"
    "{%- elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{%- elif m.role == 'tool' %}"
    "<|start|>functions.x to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{%- else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""gpt-oss: messages in channels, and calls as messages to functions."""
HARMONY_CONTROLS: Final = (
    "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>",
)  # fmt: skip

FORMATS: Final = {
    "qwen": (QWEN, '<tool_call> {"name": "NAME", "arguments": {…}} </tool_call>'),
    "hermes": (HERMES, '<tool_call> { "arguments": {…}, "name": "NAME"} </tool_call>'),
    "xml": (XML, "<tool_call> <function=NAME> <parameter=KEY> VALUE </parameter> </function> </tool_call>"),
    "keys": (KEYS, "<tool_call>NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> </tool_call>"),
    "llama": (LLAMA, '{"name": "NAME", "parameters": {…}}'),
    "mistral": (MISTRAL, '[TOOL_CALLS] [{"name": "NAME", "arguments": {…}}]'),
    "mistral args": (MISTRAL_ARGS, "[TOOL_CALLS]NAME[ARGS]{…}"),
    "text arguments": (TEXT_ARGUMENTS, "<|im_start|>call:NAME ```json {…} ```"),
}
"""Templates with the call that they write in one line."""
