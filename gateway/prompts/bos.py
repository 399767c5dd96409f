"""The BOS token at the beginning of a prompt, after llama-server's rules.

A model file may require BOS before each prompt (`tokenizer.ggml.add_bos_token`, or the default of its tokenizer), and
its chat template may write BOS itself. If the file requires BOS, llama-server removes one BOS from the beginning of the
rendered template (common/chat.cpp), and its tokenizer then adds one (`add_special`), so that there is exactly one.

`add_eos_token` is ignored: llama-server puts EOS after the template's opening of the answer, and no follow-up prompt
could have such a prompt as its prefix.
"""

from __future__ import annotations


def split_bos(text: str, bos: int | None, bos_text: str) -> tuple[list[int], str]:
    """Return the tokens to put before a prompt, and the prompt's leading template `text` without BOS.

    `bos` is the token that the file requires, or None; `bos_text` is how templates write it.
    """
    return ([], text) if bos is None else ([bos], text.removeprefix(bos_text))
