"""What the page says about answers that wait and answers that fail."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import expect

from tests.support.browsing import OpenPage, PlayedGateway, ask, ended, messages, name_model

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

RAW = "64 requests wait (queue_limit); rid=x"


async def test_what_an_answer_waits_for_is_shown_with_the_elapsed_seconds(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.create":
            gateway.say_of(1, "response.created", "queued")
            gateway.say_of(1, "response.queued", "queued", queue_position=3, estimated_wait_seconds=7.2)
        else:
            gateway.say_of(1, "response.incomplete", "cancelled")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "Hi")
    wait = answer.get_by_test_id("wait")
    await expect(wait).to_contain_text("Position 3 in the queue, about 8 s")
    await expect(wait).to_have_text(re.compile(r"Position 3 .* \([3-9] s so far\)$"))
    assert gateway.asked[0]["return_progress"] is True
    gateway.say_of(1, "response.in_progress", "in_progress", prompt_progress={"processed": 300, "total": 700})
    await expect(wait).to_contain_text("42 %")
    await page.get_by_test_id("stop").click()
    await ended(answer, "cancelled")
    assert gateway.asked[-1] == {"type": "response.cancel", "response_id": "resp_1"}


@pytest.mark.parametrize(("locale", "meaning"), [("en-US", "Loading the model"), ("zh-CN", "正在加载模型")])
async def test_an_answer_that_waits_for_the_model_says_so(open_page: OpenPage, locale: str, meaning: str) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.say_of(1, "response.created", "in_progress"))
    page = await open_page(gateway, locale, before=lambda page: name_model(page, "big", loaded=False))
    await expect((await ask(page, "Hi")).get_by_test_id("wait")).to_contain_text(meaning, timeout=15_000)


async def test_a_ninth_answer_at_the_same_time_says_why_it_waits(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin("Once"))
    page = await open_page(gateway)
    for number in range(8):
        await expect(await ask(page, f"Story {number}")).to_contain_text("Once")
        await page.get_by_test_id("new").click()
    answer = await ask(page, "One more")
    await expect(answer.get_by_test_id("wait")).to_contain_text("8 answers are running")
    gateway.say_of(8, "response.completed", "completed")
    await expect(answer).to_contain_text("Once")


@pytest.mark.parametrize(
    ("locale", "meaning"), [("en-US", "Too many people are waiting right now."), ("zh-CN", "现在排队的人太多。")]
)
async def test_an_error_is_explained_in_the_readers_words_only(open_page: OpenPage, locale: str, meaning: str) -> None:
    page = await open_page(PlayedGateway(lambda gateway, _: gateway.refuse("queue_full", RAW)), locale)
    answer = await ask(page, "Hi")
    await ended(answer, "failed")
    box = answer.get_by_test_id("error")
    await expect(box.locator(".message-error-what")).to_have_text(meaning)
    await expect(box).not_to_contain_text("queue")
    await expect(box).to_have_attribute("data-calm", "true")
    await expect(page.get_by_test_id("send")).to_be_visible()


async def test_the_number_of_a_failed_request_is_shown_for_the_administrator(open_page: OpenPage) -> None:
    message = "internal error; see the log for req_0123abcd"
    page = await open_page(PlayedGateway(lambda gateway, _: gateway.refuse("internal_error", message)))
    box = (await ask(page, "Hi")).get_by_test_id("error")
    await expect(box).to_contain_text("For the administrator: req_0123abcd")
    await expect(box).not_to_contain_text("see the log for")


async def test_a_retry_is_offered_when_the_gateway_would_accept_it(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        if len(gateway.asked) > 1:
            gateway.complete("At last.")
        else:
            error = {"code": "rate_limit_exceeded", "message": RAW, "retry_after": 4}
            gateway.say("error", status=429, error=error)

    page = await open_page(PlayedGateway(play))
    answer = await ask(page, "Hi")
    await expect(answer.get_by_test_id("again")).to_have_text(re.compile(r"Try again in \d s"))
    await expect(answer.get_by_test_id("again")).to_be_disabled()
    await expect(answer.get_by_test_id("again")).to_have_text("Try again")
    await answer.get_by_test_id("again").click()
    await expect(messages(page, "assistant")).to_contain_text("At last.")


async def test_an_unknown_reason_of_an_incomplete_answer_is_not_shown_raw(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        gateway.begin("So")
        details = {"reason": "some_new_reason"}
        response = {"id": "resp_1", "object": "response", "status": "incomplete", "incomplete_details": details}
        gateway.say("response.incomplete", response=response)

    page = await open_page(PlayedGateway(play), "zh-CN")
    answer = await ask(page, "Hi")
    await expect(answer.get_by_test_id("remark")).to_have_text("回答不完整（提前结束）")
