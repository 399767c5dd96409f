"""Sign-in: the key is sent only in subprotocol and header, and conversations are separate by user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Dialog, Page, expect

from tests.support.browsing import ask, conversations, ended, expect_soon, messages
from tests.support.running import Gateway
from tests.support.signing_in import Locked, connected, enter, sign_in

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Locked]:
    """A gateway with API keys and the tiny model."""
    with Gateway(
        tmp_path_factory.mktemp("locked"), model=tiny_model, context=512, max_output_tokens=24, titles=False
    ) as gateway:
        yield Locked(gateway)


async def arrive(browser: Browser, url: str, locale: str = "en-US") -> tuple[Page, list[str]]:
    """Return a page, and the URLs that it requests."""
    context = await browser.new_context(locale=locale)
    page = await context.new_page()
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda socket: addresses.append(socket.url))
    await page.goto(url)
    return page, addresses


@pytest.mark.parametrize(
    ("locale", "title", "refusal"),
    [("en-US", "Sign in", "This API key is invalid"), ("zh-CN", "登录", "此 API 密钥无效")],
)
async def test_a_wrong_key_is_rejected_and_the_right_one_is_accepted_and_stored(
    browser: Browser, locked: Locked, locale: str, title: str, refusal: str
) -> None:
    key = locked.keys("add", f"reader-{locale}")
    page, addresses = await arrive(browser, locked.gateway.url, locale)
    dialog = page.get_by_test_id("sign-in")
    await expect(dialog.get_by_role("heading")).to_have_text(title)
    await enter(page, "smv_" + "x" * 43)
    await expect(dialog.get_by_role("alert")).to_contain_text(refusal)
    await enter(page, "no key at all")
    await expect(dialog.get_by_role("alert")).to_contain_text("smv_")
    await enter(page, key)
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await ended(await ask(page, "Hi"), "done")
    await page.reload()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await expect(dialog).to_be_hidden()
    assert [address for address in addresses if "smv_" in address] == []
    assert key not in locked.gateway.log()
    await page.context.close()


async def test_a_key_can_be_typed_as_soon_as_the_sign_in_opens(browser: Browser, locked: Locked) -> None:
    key = locked.keys("add", "typist")
    page, _ = await arrive(browser, locked.gateway.url)
    await expect(page.get_by_test_id("sign-in")).to_be_visible()
    await page.keyboard.type(key)
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await page.context.close()


async def test_users_of_one_browser_see_only_their_own_conversations(browser: Browser, locked: Locked) -> None:
    keys = [locked.keys("add", name) for name in ("ann", "ben")]
    page, _ = await arrive(browser, locked.gateway.url)
    await enter(page, keys[0])
    await expect(page.get_by_test_id("status")).to_have_attribute(
        "data-state", "open"
    )  # until then the page is not usable
    await ended(await ask(page, "Of Ann"), "done")
    await page.get_by_test_id("sign-out").click()
    await expect(page.get_by_test_id("sign-in")).to_be_visible()
    await expect(conversations(page)).to_have_count(0)
    await enter(page, keys[1])
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await expect(page.get_by_test_id("message")).to_have_count(0)
    await page.get_by_test_id("sign-out").click()
    await enter(page, keys[0])
    await expect(conversations(page)).to_have_text([re.compile("Of Ann")])
    await page.context.close()


async def test_nothing_of_a_user_stays_on_the_page_after_sign_out(browser: Browser, locked: Locked) -> None:
    keys = [locked.keys("add", name) for name in ("cleo", "dora")]
    page, _ = await arrive(browser, locked.gateway.url)
    await enter(page, keys[0])
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await ended(await ask(page, "Of Cleo"), "done")
    other = await page.context.new_page()
    await other.goto(locked.gateway.url)
    await expect(conversations(other)).to_have_count(1)
    await ended(await ask(page, "To delete"), "done")
    stored = await page.evaluate("Object.values(localStorage).map((value) => value.match(/resp_[0-9a-f]+/g)).flat()")
    await conversations(page).get_by_test_id("remove").click()
    await page.get_by_test_id("composer").fill("A secret of Cleo")
    await page.get_by_test_id("sign-out").click()
    await expect(page.get_by_test_id("sign-in")).to_be_visible()
    await expect(other.get_by_test_id("sign-in")).to_be_visible()
    await enter(page, keys[1])
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await expect(page.get_by_test_id("composer")).to_have_value("")
    await expect(page.get_by_test_id("toast")).to_be_hidden()
    await expect(conversations(page)).to_have_count(0)
    headers = {"Authorization": f"Bearer {keys[0]}"}
    paths = [f"/v1/responses/{response}" for response in stored]
    await expect_soon(page, lambda: {locked.gateway.get(path, **headers).status_code for path in paths} == {404})
    await page.context.close()


async def test_a_new_key_of_the_user_shows_the_same_conversations(browser: Browser, locked: Locked) -> None:
    page = await sign_in(browser, locked.gateway.url, locked.keys("add", "eve"))
    await ended(await ask(page, "Of Eve"), "done")
    key = locked.keys("rotate", "eve")
    await expect(page.get_by_test_id("sign-in")).to_be_visible(timeout=30_000)
    await enter(page, key)
    await connected(page)
    await conversations(page).get_by_test_id("open").click()
    await expect(messages(page, "user").locator(".message-text")).to_have_text("Of Eve")
    await ended(await ask(page, "And more"), "done")
    await page.context.close()


async def test_a_question_that_could_not_be_sent_survives_a_new_key(browser: Browser, locked: Locked) -> None:
    page = await sign_in(browser, locked.gateway.url, locked.keys("add", "hugo"))
    await ended(await ask(page, "Sent"), "done")
    await page.get_by_test_id("new").click()
    await page.route(re.compile("/v1/conversations"), lambda route: route.abort())
    await ask(page, "Not sent yet")
    key = locked.keys("rotate", "hugo")
    await expect(page.get_by_test_id("sign-in")).to_be_visible(timeout=30_000)
    await page.unroute(re.compile("/v1/conversations"))
    await enter(page, key)
    await connected(page)
    await expect(conversations(page)).to_have_text([re.compile("Not sent yet"), re.compile("Sent")], timeout=30_000)
    await page.context.close()


async def test_sign_out_removes_everything_of_the_user_from_the_browser(browser: Browser, locked: Locked) -> None:
    page = await sign_in(browser, locked.gateway.url, locked.keys("add", "fred"))
    other = await page.context.new_page()
    await other.goto(locked.gateway.url)
    await ended(await ask(page, "A secret of Fred"), "done")
    await conversations(other).get_by_test_id("open").click()
    await other.get_by_test_id("composer").fill("Another secret")
    await page.get_by_test_id("sign-out").click()
    for window in (page, other):
        await expect(window.get_by_test_id("sign-in")).to_be_visible()
        await expect(window.get_by_test_id("message")).to_have_count(0)
        stored = await window.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert "secret" not in stored
        assert "conv_" not in stored
    await page.context.close()


async def test_a_sign_out_that_would_lose_conversations_asks_first(browser: Browser, locked: Locked) -> None:
    page = await sign_in(browser, locked.gateway.url, locked.keys("add", "gina"))
    await page.route(re.compile("/v1/conversations"), lambda route: route.abort())
    await ask(page, "Not sent yet")
    questions: list[str] = []

    async def decline(dialog: Dialog) -> None:
        questions.append(dialog.message)
        await dialog.dismiss()

    page.once("dialog", decline)
    await page.get_by_test_id("sign-out").click()
    await expect_soon(page, lambda: questions != [])
    assert "1 of your conversations is not on the server" in questions[0]
    await expect(messages(page, "user")).to_have_count(1)
    await page.context.close()


async def test_a_user_whose_key_is_revoked_is_informed(browser: Browser, locked: Locked) -> None:
    key = locked.keys("add", "guest")
    page, _ = await arrive(browser, locked.gateway.url)
    await enter(page, key)
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await ended(await ask(page, "Hi"), "done")
    locked.keys("revoke", "guest")
    await expect(page.get_by_test_id("sign-in")).to_be_visible(timeout=15_000)
    await expect(page.get_by_role("alert")).to_contain_text("has expired")
    await expect(messages(page, "user")).to_have_count(1)
    await page.context.close()
