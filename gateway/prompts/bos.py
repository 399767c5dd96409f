"""Whether a prompt begins with the token BOS, decided as llama-server decides it.

A file may ask for BOS before each prompt (`tokenizer.ggml.add_bos_token`, or the default of its tokenizer), and its
chat template may write BOS itself. llama-server removes one BOS from the beginning of the rendered template if the file
asks for it (common/chat.cpp), and its tokenizer then adds one (`add_special`): there is exactly one, whoever asked.

`add_eos_token` is not followed: llama-server puts EOS after the template's opening of the answer, and no follow-up
could begin with such a prompt.
"""

from __future__ import annotations


def beginning(text: str, bos: int | None, bos_text: str) -> tuple[list[int], str]:
    """Return the tokens before a prompt, and what is left of the template's own `text` at its beginning.

    `bos` is the token that the file asks for, None if it asks for none; `bos_text` is what templates write for it.
    """
    return ([], text) if bos is None else ([bos], text.removeprefix(bos_text))
