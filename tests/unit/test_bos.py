"""The token BOS at the beginning of prompts: exactly where llama-server has it, and never twice."""

from __future__ import annotations

import llama_cpp
import pytest

from engine import Model
from gateway.prompts.bos import split_bos
from gateway.prompts.chat_template import Prompt
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model

BOS = "<|endoftext|>"
PLAIN, WITH_BOS = CHAT_TEMPLATE, "{{ bos_token }}" + CHAT_TEMPLATE
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Model]:
    """Two models, by whether their files ask for BOS; the other one has a BOS too."""
    folder = tmp_path_factory.mktemp("bos")
    return {adds: Model(write_tiny_model(folder / f"{adds}.gguf", bos=adds), vocab_only=True) for adds in (False, True)}


def prompt(model: Model, template: str) -> Prompt:
    return Prompt(template, model.vocabulary, mark=lambda: "0" * 32)


def whole(model: Model, template: str, content: str = "x") -> list[int]:
    return prompt(model, template).whole([{"role": "user", "content": content}], date=lambda _: "")


def as_llama_server(model: Model, rendered: str) -> list[int]:
    """Ids of a rendered template by llama-server's steps: common_chat_template_direct_apply, then tokenize_mixed."""
    vocabulary = llama_cpp.llama_model_get_vocab(model.pointer)
    if llama_cpp.llama_vocab_get_add_bos(vocabulary):
        rendered = rendered.removeprefix(BOS)
    data = rendered.encode()
    buffer = (llama_cpp.llama_token * 200)()
    count = llama_cpp.llama_tokenize(vocabulary, data, len(data), buffer, 200, True, True)
    return list(buffer[:count])


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("template", [PLAIN, WITH_BOS])
def test_a_prompt_has_the_ids_that_llama_server_gives_it(models: dict[bool, Model], template: str, adds: bool) -> None:
    ids = whole(models[adds], template)
    rendered = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert ids == as_llama_server(models[adds], BOS + rendered if template == WITH_BOS else rendered)
    [bos] = models[adds].vocabulary.tokenize(BOS, special=True)
    assert ids.count(bos) == int(adds or template == WITH_BOS)


def test_a_file_that_asks_for_no_bos_gets_what_its_template_writes(models: dict[bool, Model]) -> None:
    model = models[False]
    assert whole(model, WITH_BOS) == model.vocabulary.tokenize(BOS, special=True) + whole(model, PLAIN)


def test_bos_is_no_part_of_a_follow_up_nor_of_nothing(models: dict[bool, Model]) -> None:
    for template in (PLAIN, WITH_BOS):
        p = prompt(models[True], template)
        answer = models[True].vocabulary.tokenize("yes", special=False)
        appended = p.whole(MESSAGES, date=lambda _: "") + answer + p.follow_up(MESSAGES, date=lambda _: "")
        again = [*MESSAGES, {"role": "assistant", "content": "yes"}, *MESSAGES]
        assert appended == p.whole(again, date=lambda _: "")
        assert p.whole([], date=lambda _: "", answer=False) == []


def test_the_text_of_bos_in_a_message_is_not_taken_for_bos(models: dict[bool, Model]) -> None:
    model = models[True]
    ids = whole(model, "{{ messages[0].content }}", f"{BOS} x")
    assert ids == [model.vocabulary.leading_bos, *model.vocabulary.tokenize(f"{BOS} x", special=False)]


def test_only_one_bos_of_the_template_is_removed_and_only_at_its_beginning() -> None:
    assert split_bos("<s>a<s>", 1, "<s>") == ([1], "a<s>")
    assert split_bos("a<s>", 1, "<s>") == ([1], "a<s>")
    assert split_bos("<s>a", None, "<s>") == ([], "<s>a")
    assert split_bos("a", 1, "") == ([1], "a")
