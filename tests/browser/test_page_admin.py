"""The pages about users: administration, usage, and the reader's entry on the chat page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from gateway.auth.principal import Limits
from gateway.auth.users import Users
from tests.browser.test_page_access import complaints
from tests.support.browsing import ask, ended
from tests.support.running import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TITLES = {"en-US": "Administration", "zh-CN": "管理", "zh-TW": "管理"}
REFUSALS = {
    "en-US": ("This name exists already", "This user does not exist any more."),
    "zh-CN": ("该名称已存在", "该用户已不存在。"),
    "zh-TW": ("該名稱已存在", "該使用者已不存在。"),
}
"""The refusals of a name that exists, and of limits for a user who was deleted meanwhile."""
NARROW: Any = {"width": 360, "height": 740}


class Office:
    """A gateway with an admin and a user."""

    def __init__(self, gateway: Gateway, admin: str, user: str) -> None:
        """`admin` and `user` are keys."""
        self.gateway = gateway
        self.admin = admin
        self.user = user


async def make_keys(state: Path) -> tuple[str, str]:
    """Keys of an admin and of a user with an allowance."""
    users = Users(state)
    made = await users.add("boss", admin=True), await users.add("anna", limits=Limits(tokens_per_day=5000))
    users.close()
    return made


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Office]:
    state = tmp_path_factory.mktemp("office") / "state"
    admin, user = asyncio.run(make_keys(state))
    with Gateway(state, model=tiny_model, context=512, max_output_tokens=8) as gateway:
        yield Office(gateway, admin, user)


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page whose console stays free of errors, other than those of requests that the gateway refuses."""
    errors: list[str] = []
    context = await browser.new_context(viewport=NARROW, locale="en-US")
    opened = await context.new_page()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    await context.close()
    assert errors == []


async def enter(page: Page, key: str) -> None:
    """Sign in by keyboard."""
    await expect(page.get_by_test_id("key")).to_be_focused()
    await page.keyboard.type(key)
    await page.keyboard.press("Enter")


def row(page: Page, name: str) -> Locator:
    """The row of a user."""
    return page.locator(f'#users tr[data-name="{name}"]')


async def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the window."""
    return int(await page.evaluate("document.documentElement.scrollWidth - innerWidth"))


async def test_an_admin_manages_users_by_keyboard_on_a_phone(office: Office, page: Page) -> None:
    await page.goto(f"{office.gateway.url}/admin")
    await enter(page, office.user)
    await expect(page.get_by_test_id("refusal")).to_contain_text("keys add NAME --admin")
    await page.get_by_role("button", name="Use another key").press("Enter")
    await enter(page, office.admin)
    await expect(row(page, "anna")).to_contain_text("5,000")
    assert await overflow(page) == 0
    assert await complaints(page) == []

    await page.get_by_test_id("add").press("Enter")
    await expect(page.get_by_test_id("name")).to_be_focused()
    await page.keyboard.type("a b")
    await page.get_by_test_id("tokens-per-day").fill("1000")
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("user-dialog").get_by_role("alert")).to_contain_text(
        "characters other than letters"
    )
    assert await complaints(page) == []
    await page.get_by_test_id("name").fill("carl")
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("new-key")).to_have_text(re.compile(r"^smv_[\w-]{43}$"))
    assert await overflow(page) == 0
    key = await page.get_by_test_id("new-key").inner_text()
    assert office.gateway.get("/v1/me", Authorization=f"Bearer {key}").json()["tokens_per_day"] == 1000
    await page.get_by_test_id("done").press("Enter")
    await expect(page.get_by_test_id("new-key")).to_be_empty()
    await expect(row(page, "carl")).to_contain_text("1,000")

    await row(page, "carl").get_by_role("button", name="Limits: carl").press("Enter")
    await page.get_by_test_id("tokens-per-day").fill("")
    await page.keyboard.press("Enter")
    await expect(row(page, "carl")).not_to_contain_text("1,000")
    assert office.gateway.get("/v1/me", Authorization=f"Bearer {key}").json()["tokens_per_day"] is None

    await row(page, "carl").get_by_role("button", name="Revoke: carl").press("Enter")
    await page.get_by_test_id("confirm").press("Enter")
    await expect(row(page, "carl")).to_contain_text("revoked")
    assert office.gateway.get("/v1/me", Authorization=f"Bearer {key}").status_code == 401
    await row(page, "carl").get_by_role("button", name="Delete: carl").press("Enter")
    await page.get_by_test_id("confirm-name").fill("anna")
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("confirm-dialog")).to_be_visible()
    await page.get_by_test_id("confirm-name").fill("carl")
    await page.keyboard.press("Enter")
    await expect(row(page, "carl")).to_have_count(0)
    await expect(row(page, "boss").get_by_role("button", name="Delete")).to_have_count(0)  # the own key

    async with page.expect_download() as download:
        await page.get_by_test_id("download").click()
    assert (await download.value).suggested_filename == "samovar-usage.csv"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN", "zh-TW"])
async def test_the_administration_page_speaks_the_readers_language(
    office: Office, browser: Browser, locale: str
) -> None:
    context = await browser.new_context(locale=locale, color_scheme="dark")
    page = await context.new_page()
    await page.goto(f"{office.gateway.url}/admin/")
    await enter(page, office.admin)
    await expect(row(page, "anna")).to_be_visible()
    await expect(page.locator(".bar .model")).to_have_text(TITLES[locale])
    await expect(page.locator("#engines td").first).to_be_visible()
    await expect(page.locator("body")).not_to_contain_text("undefined")
    alert = page.get_by_test_id("user-dialog").get_by_role("alert")
    await page.get_by_test_id("add").press("Enter")
    await page.get_by_test_id("name").fill("anna")
    await page.keyboard.press("Enter")
    await expect(alert).to_contain_text(REFUSALS[locale][0])
    await page.keyboard.press("Escape")
    by = {"Authorization": f"Bearer {office.admin}"}
    made = office.gateway.post("/v1/admin/users", {"name": f"dora-{locale}"}, **by).json()
    await page.reload()
    await row(page, made["name"]).locator('[data-act="editLimits"]').press("Enter")
    assert office.gateway.delete(f"/v1/admin/users/{made['id']}", **by).status_code == 200
    await page.keyboard.press("Enter")
    await expect(alert).to_contain_text(REFUSALS[locale][1])
    assert await complaints(page) == []
    await context.close()


async def test_a_user_sees_the_own_usage_and_what_is_left(office: Office, page: Page) -> None:
    await page.goto(office.gateway.url)
    await page.get_by_test_id("key").fill(office.user)
    await page.get_by_test_id("enter").click()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await page.get_by_test_id("toggle").click()
    left = page.get_by_test_id("tokens-left")
    await expect(left).to_have_text("5,000 tokens left today")
    await expect(page.get_by_test_id("me")).to_contain_text("anna")
    await expect(page.get_by_test_id("to-admin")).to_be_hidden()
    assert await complaints(page) == []
    await page.keyboard.press("Escape")
    await ended(await ask(page, "Hi"), "done")
    await page.get_by_test_id("toggle").click()
    await expect(left).to_have_text(re.compile(r"4,9\d\d tokens left today"))
    await page.get_by_test_id("to-usage").click()
    await expect(page.locator('[data-tile="left"] .tile-value')).to_have_text(re.compile(r"4,9\d\d"))
    await expect(page.locator("#chart rect")).to_have_count(30)
    await page.get_by_text("As a table").click()
    await expect(page.locator("#days tr td:nth-child(2)").first).not_to_have_text("0")
    assert await overflow(page) == 0
    assert await complaints(page) == []


async def test_a_user_whose_tokens_of_today_are_used_up_is_told_until_when(office: Office, page: Page) -> None:
    users = Users(office.gateway.state)
    key = await users.add("dora", limits=Limits(tokens_per_day=1))
    users.close()
    await page.goto(office.gateway.url)
    await page.get_by_test_id("key").fill(key)
    await page.get_by_test_id("enter").click()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    await ended(await ask(page, "Hi"), "done")
    error = (await ask(page, "Hi again")).get_by_test_id("error")
    await expect(error).to_contain_text("You have used up your tokens for today.")
    await expect(error.get_by_test_id("again")).to_have_text(re.compile("Try again from 12:00|Try again in"))


async def test_all_languages_have_all_texts_of_the_pages_about_users(office: Office, page: Page) -> None:
    await page.goto(f"{office.gateway.url}/usage")
    keys = await page.evaluate(
        "async () => { const { accountTexts } = await import('/static/account_texts.js');"
        " return Object.values(accountTexts).map((all) => Object.keys(all)) }"
    )
    assert keys == [keys[0]] * 3
