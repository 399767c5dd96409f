"""The files that the page loads."""

from __future__ import annotations

import pytest
from playwright.async_api import Response, expect

from tests.support.browsing import OpenPage

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LARGEST_FIRST_LOAD = 400_000
"""Bytes of all files that the page loads before its user does anything."""


async def test_a_second_visit_loads_the_page_anew_and_all_of_its_files_from_the_cache(open_page: OpenPage) -> None:
    page = await open_page()
    found: list[Response] = []
    page.on("response", lambda response: found.append(response))
    await page.goto(page.url)
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    static = [response for response in found if "/static/" in response.url]
    assert {response.headers["cache-control"] for response in static} == {"public, max-age=31536000, immutable"}
    loaded = await page.evaluate(
        "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/static/'))"
        ".map(({ transferSize, decodedBodySize }) => [transferSize, decodedBodySize])"
    )
    assert {transferred for transferred, _ in loaded} == {0}
    assert 100_000 < sum(size for _, size in loaded) < LARGEST_FIRST_LOAD
    assert next(response for response in found if response.url == page.url).headers["cache-control"] == "no-cache"
