"""The page in a real Chromium: drop a PDF, ask, click the evidence, follow up; nothing on the console, few bytes."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from recipes.serving.application import make_application
from tests.unit.serving.served import INVOICE, TOKEN, FakeAsker, make_parts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOST_BYTES = 1_500_000
PHONE = {"width": 390, "height": 800}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed; apt-get install chromium")


@contextmanager
def listening(folder: Path, **options: Any) -> Iterator[tuple[str, FakeAsker]]:
    """Serve an index that is not there yet at a free port."""
    asker = FakeAsker()
    parts = make_parts(folder, asker=asker, **options)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        config = uvicorn.Config(make_application(parts), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asker
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """Open the page; whatever it says on the console, or throws, fails the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    yield page
    assert said == []
    context.close()


def _bring(page: Any, folder: Path, name: str = "invoice.pdf", content: bytes = INVOICE) -> None:
    file = folder / name
    file.write_bytes(content)
    page.set_input_files("#files", str(file))
    page.locator("#documents").get_by_text(name).wait_for()


def test_drop_ask_click_evidence_follow_up_and_history_after_a_reload(browser: Any, tmp_path: Path) -> None:
    with listening(tmp_path) as (address, asker), opened(browser, address) as page:
        page.get_by_text("There is no document yet.").wait_for()
        entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
        num_bytes = page.evaluate(f"{entries}.map((entry) => entry.encodedBodySize)")
        assert len(num_bytes) >= 8 and 10_000 < sum(num_bytes) < MOST_BYTES / 10
        _bring(page, tmp_path)
        page.fill("#question", "What is the total?")
        page.keyboard.press("Enter")
        page.locator(".answer", has_text="You asked: What is the total?").wait_for()
        assert page.locator(".found button").count() == 2
        line = page.locator(".evidence button")
        assert "It says Total amount 4210 EUR." in line.inner_text()
        # the evidence is of page [1], the best found; its words are marked where they stand in its text
        best = asker.requests[0].pages[0]
        line.click()
        page.locator("#viewer-title", has_text=f"invoice.pdf, page {best.page_number}").wait_for()
        page.locator("#viewer-note", has_text="arked:" if best.page_number == 2 else "framed").wait_for()
        assert (page.locator(".mark").count() > 0) == (best.page_number == 2)
        page.keyboard.press("Escape")
        page.locator("#viewer").wait_for(state="hidden")
        assert page.evaluate("document.activeElement.closest('.evidence') !== null")  # back where it was
        page.check("#same-pages")
        page.fill("#question", "And the number?")
        page.click("#send")
        page.locator(".answer", has_text="You asked: And the number?").wait_for()
        assert [turn.question for turn in asker.requests[1].earlier] == ["What is the total?"]
        first, second = ([found.page_id for found in request.pages] for request in asker.requests)
        assert first == second and all(found.score is None for found in asker.requests[1].pages)
        page.reload()
        page.locator("#history .open", has_text="What is the total?").click()
        page.locator(".answer").nth(1).wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="as Markdown").click()
        assert "## And the number?" in Path(download.value.path()).read_text()


def test_with_every_document_unticked_nothing_is_asked(browser: Any, tmp_path: Path) -> None:
    with listening(tmp_path) as (address, asker), opened(browser, address) as page:
        _bring(page, tmp_path)
        page.uncheck("#documents input")
        page.locator("#scope", has_text="of no document: tick one").wait_for()
        page.fill("#question", "What is the total?")
        page.keyboard.press("Enter")
        page.locator("#status", has_text="No document is ticked").wait_for(state="attached")
        assert page.input_value("#question") == "What is the total?" and asker.requests == []
        page.check("#documents input")
        page.click("#send")
        page.locator(".answer", has_text="You asked: What is the total?").wait_for()


def test_what_model_and_pages_say_is_text_and_insufficient_is_shown_as_such(browser: Any, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)><script>document.title='taken'</script>"
    with listening(tmp_path) as (address, asker), opened(browser, address, viewport=PHONE, color_scheme="dark") as page:
        asker.is_insufficient, asker.evidence = True, hostile
        page.click("#menu")
        _bring(page, tmp_path)
        page.keyboard.press("Escape")
        page.fill("#question", hostile)
        page.keyboard.press("Enter")
        page.get_by_text("The pages are insufficient to answer.", exact=True).first.wait_for()
        page.locator(".evidence button", has_text=hostile).wait_for()
        assert page.title() == "Ask your documents" and page.locator("#turns img[src=x]").count() == 0
        # a phone needs no sideways scrolling, and dark is dark
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"


def test_with_a_token_the_page_asks_for_it_once(browser: Any, tmp_path: Path) -> None:
    with listening(tmp_path, token=TOKEN) as (address, _):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(address)
        page.fill("#token", "not the token, surely")
        page.keyboard.press("Enter")
        page.get_by_text("this is not the token").wait_for()
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.get_by_text("There is no document yet.").wait_for()
        page.reload()
        page.get_by_text("There is no document yet.").wait_for()
        cookies = context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]
        context.close()


def test_the_page_is_usable_within_a_second_of_processor_time(browser: Any, tmp_path: Path) -> None:
    # the browser's own count of its work, which does not depend on what else the machine does
    with listening(tmp_path) as (address, _), opened(browser, address) as page:
        page.get_by_text("There is no document yet.").wait_for()
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        metrics = {found["name"]: found["value"] for found in session.send("Performance.getMetrics")["metrics"]}
        assert metrics["TaskDuration"] < 1.0
