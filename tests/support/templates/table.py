"""The prompt formats of widely used models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from tests.support.templates.composing import Rules


def _chatml(*, end: str = "\n", **rules: Any) -> Rules:
    pairs = {role: (f"<|im_start|>{name}\n", f"<|im_end|>{end}") for role, name in _ROLES.items()}
    return _rules(pairs, rules)


def _llama3(**rules: Any) -> Rules:
    pairs = {
        role: (f"<|start_header_id|>{name}<|end_header_id|>\n\n", "<|eot_id|>")
        for role, name in {**_ROLES, "R": "ipython"}.items()
    }
    return _rules(pairs, {"start": "BOS", "trim": True, **rules})


def _mistral(space: str = " ", **rules: Any) -> Rules:
    base = Rules(
        U=(f"[INST]{space}", f"{space}[/INST]" if space else "[/INST]"),
        A=(space, "</s>"),
        opening="",
        S=("", "\n\n"),
        R=("[TOOL_RESULTS] ", "[/TOOL_RESULTS]"),
        start="BOS",
        system="user",
        alternate=True,
    )
    return replace(base, **rules)


def _gemma(**rules: Any) -> Rules:
    pairs = {
        role: (f"<start_of_turn>{name}\n", "<end_of_turn>\n") for role, name in {"U": "user", "A": "model"}.items()
    }
    base = {"S": ("", "\n\n"), "start": "BOS", "system": "refused", "alternate": True, "trim": True}
    return _rules(pairs, {**base, **rules})


def _tagged(end: str = "<|end|>\n", after: str = "\n", **rules: Any) -> Rules:
    """Return the format of Phi-3, Zephyr and GLM: each role's name is a token."""
    pairs = {
        role: (f"<|{name}|>{after}", end)
        for role, name in {**_ROLES, "R": "observation" if end == "" else "tool"}.items()
    }
    return _rules(pairs, rules)


def _plain(user: str, answer: str, *, end: str = "\n\n", eos: str = "</s>", **rules: Any) -> Rules:
    """Return a format whose roles are plain words."""
    base = Rules(U=(user, end), A=(answer, eos), opening=answer.rstrip(" "), S=("", "\n\n"), system="first")
    return replace(base, **rules)


def _rules(pairs: dict[str, tuple[str, str]], rules: dict[str, Any]) -> Rules:
    fields: dict[str, Any] = {**pairs, **rules}
    return Rules(**fields)


_ROLES: Final = {"S": "system", "U": "user", "A": "assistant", "R": "tool"}
_RESPONSE: Final = ("<|im_start|>user\n<tool_response>\n", "\n</tool_response><|im_end|>\n")
_EMPTY: Final = "<think>\n\n</think>\n\n"
_DEEPSEEK: Final = Rules(
    U=("<｜User｜>", ""),
    A=("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    R=("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    start="<｜begin▁of▁sentence｜>",
    system="first",
    thinking="split",
)

TEMPLATES: Final[dict[str, Rules]] = {
    "chatml": _chatml(),
    "qwen1.5": _chatml(default="You are a helpful assistant"),
    "qwen2.5": _chatml(default="You are Qwen.", tools="hermes", R=_RESPONSE),
    "qwen3": _chatml(tools="hermes", R=_RESPONSE, thinking="latest", no_thinking=_EMPTY, appends=False),
    "qwen3-coder": _chatml(tools="xml", R=_RESPONSE, system="first"),
    "qwen3.5": _chatml(
        tools="xml",
        R=_RESPONSE,
        system="alone_first",
        thinking="latest",
        no_thinking=_EMPTY,
        needs_user=True,
        appends=False,
    ),
    "qwq": _chatml(
        tools="hermes", R=_RESPONSE, thinking="split", opening="<|im_start|>assistant\n<think>\n", appends=False
    ),
    "hermes-2": _chatml(tools="hermes", R=_RESPONSE),
    "hermes-3": _chatml(tools="hermes", R=("<|im_start|>tool\n<tool_response>\n", "\n</tool_response><|im_end|>\n")),
    "smollm2": _chatml(default="You are a helpful AI assistant named SmolLM."),
    "smollm3": _chatml(
        system="first", tools="hermes", R=_RESPONSE, thinking="split", no_thinking=_EMPTY, appends=False
    ),
    "yi": _chatml(end="\n", system="first"),
    "internlm2": _chatml(start="BOS"),
    "minicpm3": _chatml(tools="hermes", R=_RESPONSE),
    "nemotron-chatml": _chatml(end="\n", trim=True),
    "lfm2": _chatml(start="BOS", tools="results", thinking="split"),
    "step3.5": _chatml(tools="xml", R=_RESPONSE, thinking="latest", appends=False),
    "llama-2": _mistral(S=("<<SYS>>\n", "\n<</SYS>>\n\n"), A=(" ", " </s>"), trim=True),
    "codellama": _mistral(S=("<<SYS>>\n", "\n<</SYS>>\n\n"), A=(" ", " </s>"), system="user"),
    "llama-3": _llama3(),
    "llama-3.1": _llama3(tools="llama", system="first", default="Cutting Knowledge Date: December 2023"),
    "llama-3.2": _llama3(tools="llama", system="first", default="Today Date: 26 Jul 2024"),
    "mistral-v1": _mistral(system="refused"),
    "mistral-v0.3": _mistral(tools="mistral", system="last_user"),
    "mistral-nemo": _mistral("", tools="mistral", system="last_user"),
    "mistral-small": _mistral("", system="alone_first", S=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), tools="mistral"),
    "mixtral": _mistral(system="dropped"),
    "gemma-1": _gemma(),
    "gemma-2": _gemma(),
    "gemma-3": _gemma(system="user"),
    "gemma-3-vision": _gemma(system="user", parts=True),
    "phi-3": _tagged(),
    "phi-3-mini": _tagged(system="dropped"),
    "phi-4": _chatml(
        U=("<|im_start|>user<|im_sep|>", "<|im_end|>"), A=("<|im_start|>assistant<|im_sep|>", "<|im_end|>")
    ),
    "phi-4-mini": _tagged("<|end|>", ""),
    "zephyr": _tagged("</s>\n"),
    "stablelm-2": _chatml(trim=True),
    "tinyllama": _tagged("</s>\n", trim=False),
    "chatglm-4": _tagged("", start="[gMASK]<sop>", tools="results"),
    "glm-4.5": _tagged(
        "", start="[gMASK]<sop>", thinking="latest", no_thinking="\n<think></think>", tools="results", appends=False
    ),
    "deepseek-v2": _plain("User: ", "Assistant: ", eos="<｜end▁of▁sentence｜>", start="<｜begin▁of▁sentence｜>"),
    "deepseek-v3": replace(_DEEPSEEK, thinking="kept", tools="results"),
    "deepseek-r1": replace(_DEEPSEEK, tools="results"),
    "deepseek-r1-distill": replace(_DEEPSEEK, opening="<｜Assistant｜><think>\n", appends=False),
    "command-r": _rules(
        {
            role: (f"<|START_OF_TURN_TOKEN|><|{name}_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
            for role, name in {"S": "SYSTEM", "U": "USER", "A": "CHATBOT"}.items()
        },
        {"start": "BOS", "system": "first", "alternate": True, "trim": True},
    ),
    "aya": Rules(
        U=("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        A=("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        start="BOS",
        system="dropped",
        trim=True,
    ),
    "granite-3": _rules(
        {
            role: (f"<|start_of_role|>{name}<|end_of_role|>", "<|end_of_text|>\n")
            for role, name in {**_ROLES, "R": "tool_response"}.items()
        },
        {"default": "Knowledge Cutoff Date: April 2024.", "tools": "results", "system": "first"},
    ),
    "falcon-3": _tagged("\n", system="any"),
    "olmo-2": _tagged("\n", start="BOS", A=("<|assistant|>\n", "</s>\n")),
    "vicuna": _plain("USER: ", "ASSISTANT: ", end="\n", start="BOS"),
    "openchat": Rules(
        U=("GPT4 Correct User: ", "<|end_of_turn|>"),
        A=("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        opening="GPT4 Correct Assistant:",
        S=("GPT4 Correct System: ", "<|end_of_turn|>"),
        start="BOS",
    ),
    "solar": _plain("### User:\n", "### Assistant:\n", eos="\n\n", S=("### System:\n", "\n\n")),
    "alpaca": _plain("### Instruction:\n", "### Response:\n", S=("", "\n\n"), eos="</s>\n\n"),
    "starcoder2": _plain("### Instruction\n", "### Response\n", eos="</s>\n\n", system="dropped", alternate=True),
    "exaone-3": Rules(
        S=("[|system|]", "[|endofturn|]\n"), U=("[|user|]", "\n"), A=("[|assistant|]", "[|endofturn|]\n"), trim=True
    ),
    "gpt-oss": Rules(
        S=("<|start|>developer<|message|># Instructions\n\n", "<|end|>"),
        U=("<|start|>user<|message|>", "<|end|>"),
        A=("<|start|>assistant<|channel|>final<|message|>", "<|end|>"),
        opening="<|start|>assistant",
        start="<|start|>system<|message|>You are ChatGPT.<|end|>",
        system="first",
        appends=False,
    ),
    "baichuan-2": Rules(U=("<reserved_106>", ""), A=("<reserved_107>", ""), system="user"),
    "orion": _plain("Human: ", "Assistant: ", start="BOS", system="dropped"),
    "kimi-k2": Rules(
        S=("<|im_system|>system<|im_middle|>", "<|im_end|>"),
        U=("<|im_user|>user<|im_middle|>", "<|im_end|>"),
        A=("<|im_assistant|>assistant<|im_middle|>", "<|im_end|>"),
        R=("<|im_system|>tool<|im_middle|>", "<|im_end|>"),
        tools="results",
    ),
    "smolvlm": _tagged("<|end|>\n", parts=True),
}
"""Rules by the name of the model or of its family."""
TEXT_TOKENS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Tokens that vocabularies declare as text, not as control tokens."""
_MARKER: Final = re.compile(
    r"<\|\w+\|>|<｜[^｜]+｜>|\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT|gMASK)\]|\[\|\w+\|\]"
    r"|</?(?:s|sop|start_of_turn|end_of_turn|reserved_\d+)>"
)


def control_texts(rules: Iterable[Rules]) -> list[str]:
    """Return the control tokens of these formats."""
    texts = [
        text
        for some in rules
        for pair in (some.S, some.U, some.A, some.R, (some.start, some.opening or ""))
        for text in pair
    ]
    found = {marker for text in texts for marker in _MARKER.findall(text)}
    return sorted({*found, "<s>", "</s>", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"})
