"""Drafts from a conversation's own text, and how many of them a step verifies."""

from __future__ import annotations

import random

import pytest

from engine.drafts import MAX_DRAFT, Drafts
from engine.kv.manager import CachedSequence
from engine.learning import LearningCostModel
from engine.scheduler import Scheduler, Sequence, Step
from tests.support.plans import MEASURED

TEXT = random.Random(1).sample(range(1000), 200)
"""Tokens none of which occurs twice."""


def test_the_tokens_after_the_last_occurrence_are_the_draft() -> None:
    drafts = Drafts([*TEXT, *TEXT[40:50]])
    assert drafts.propose(5) == TEXT[50:55]


def test_a_text_without_repetition_has_no_draft() -> None:
    drafts = Drafts(TEXT)
    assert drafts.propose(5) == []
    assert drafts.chance == 0


def test_the_longest_match_wins() -> None:
    tokens = [*TEXT[:10], 1000, *TEXT[8:10], 1001, *TEXT[:10]]  # two tokens occurred last before 1001, ten before 1000
    assert Drafts(tokens).propose(1) == [1000]


def test_of_equal_matches_the_last_one_wins() -> None:
    assert Drafts([5, 6, 1000, 5, 6, 1001, 5, 6]).propose(1) == [1001]


def test_a_repeated_passage_is_continued_beyond_the_end() -> None:
    assert Drafts([1, 2, 3, 1, 2, 3, 1, 2]).propose(7) == [3, 1, 2, 3, 1, 2, 3]


def test_the_index_follows_the_text() -> None:
    tokens = TEXT[:50]
    drafts = Drafts(tokens)
    assert drafts.propose(3) == []
    tokens += [*TEXT[50:100], *TEXT[20:28]]
    assert drafts.propose(3) == TEXT[28:31]


def test_a_long_prompt_is_indexed_over_several_steps() -> None:
    tokens = [*range(10_000), 5, 6, 7]
    drafts = Drafts(tokens)
    proposals = [drafts.propose(2) for _ in range(12)]
    assert (proposals[0], proposals[-1]) == ([], [8, 9])


def test_the_chance_follows_what_was_right() -> None:
    drafts = Drafts([*TEXT, *TEXT[40:50]])
    drafts.propose(5)
    assumed = drafts.chance
    for _ in range(10):
        drafts.learn(5, 5)
    assert drafts.chance > max(assumed, 0.95)
    for _ in range(10):
        drafts.learn(5, 0)
    low = drafts.chance
    assert low < 0.5
    for _ in range(3000):
        drafts.learn(0, 0)
    assert drafts.chance == pytest.approx(assumed, abs=0.01)


def scheduled(*tokens: list[int], limit: int = 2000) -> Step:
    """Return a step of an engine that decodes sequences of these tokens, all but the last of which are computed."""
    scheduler = Scheduler(LearningCostModel(MEASURED))
    scheduler.threads = 2
    for number, held in enumerate(tokens):
        sequence = Sequence(number, CachedSequence(number), held, len(held) - 1, limit, drafts=Drafts(held))
        sequence.prompt = len(held)
        scheduler.add(sequence)
        scheduler.prefilled(sequence)
    return scheduler.schedule()


REPEATED = [*TEXT, *TEXT[40:60]]
TWICE = [*TEXT[:150], *TEXT[:30]]


def test_a_likely_draft_is_verified() -> None:
    step = scheduled(REPEATED)
    assert step.drafts[0] == TEXT[60 : 60 + len(step.drafts[0])]
    assert 8 <= step.rows <= MAX_DRAFT + 1
    assert step.width >= step.rows


def test_a_draft_ends_before_the_limit_of_the_answer() -> None:
    assert len(scheduled(REPEATED, limit=len(REPEATED) + 4).drafts[0]) <= 3
    assert not scheduled(REPEATED, limit=len(REPEATED) + 1).drafts


def test_without_a_match_a_step_has_no_draft() -> None:
    assert not scheduled(TEXT).drafts


def test_drafts_do_not_delay_a_sequence_that_has_none() -> None:
    model = LearningCostModel(MEASURED).model
    assert not scheduled(REPEATED, TEXT).drafts
    assert model.at(2).decode[2] > 1.2 * model.at(2).decode[1]


def test_several_sequences_are_verified_together() -> None:
    both = [scheduled(REPEATED, TWICE)]
    assert all(step.drafts for step in both)
