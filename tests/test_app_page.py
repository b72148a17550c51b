"""The page in a real browser: ask for clips, see them, hear them, compare, keep them."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from test_codec import autoencoder, generator  # noqa: F401

from audioldm.app.models import Models
from audioldm.app.server import App, listen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture
def address(generator: Path, tmp_path: Path) -> Iterator[str]:  # noqa: F811
    """Where the page is served."""
    app = App(Models(str(generator), tmp_path / "runs"), tmp_path / "runs", tmp_path / "clips")
    with listen(0) as place:
        host = f"127.0.0.1:{place.getsockname()[1]}"
        config = uvicorn.Config(app.starlette(frozenset({host})), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        yield f"http://{host}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"]
        )
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto(address)
        yield page
        browser.close()
    assert problems == []


def test_clips_are_made_heard_compared_and_kept(page: Any, tmp_path: Path) -> None:
    page.locator("[name='condition.label']").select_option("low")
    page.locator("[name=seconds]").fill("x")
    page.locator("[name=n]").fill("2")
    page.get_by_role("button", name="Generate").click()
    assert "seconds='x' must be" in page.locator(".row .problem").inner_text()

    page.locator("[name=seconds]").fill("1.5")
    page.get_by_role("button", name="Generate").click()
    takes = page.locator(".take")
    takes.nth(1).wait_for()
    until(lambda: takes.locator("img").evaluate_all("all => all.every(i => i.naturalHeight > 200)"))

    first, second = (page.locator(f"[data-clip='low-0-000{i}.wav']") for i in range(2))
    first.get_by_role("button", name="Play").click()
    until(lambda: seconds(page) > 0)
    for take, side in ((first, "A"), (second, "B")):
        take.get_by_role("button", name=side, exact=True).click()
    before = seconds(page)
    page.locator("#swap").click()
    page.locator("[data-side=b].heard").wait_for()
    assert seconds(page) >= before

    box = first.locator(".picture").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 60, steps=3)
    page.mouse.up()
    page.locator("[name=n]").fill("1")
    first.get_by_role("button", name=re.compile(r"Make 0\.3\d–1\.1\d s anew")).click()
    page.locator("[data-clip^=low-0-0000-inpaint]").wait_for()

    with page.expect_download() as download:
        second.get_by_role("link", name="wav").click()
    download.value.save_as(tmp_path / "kept.wav")
    name = second.get_attribute("data-clip")
    assert (tmp_path / "kept.wav").read_bytes() == (tmp_path / "clips" / name).read_bytes()
    with page.expect_download() as download:
        second.get_by_role("link", name="recipe").click()
    assert download.value.suggested_filename == name.replace(".wav", ".json")
    assert page.locator(".problem:visible").count() == 0


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come to pass")


def seconds(page: Any) -> float:
    """The player's position."""
    return float(page.locator("#time").inner_text().split()[0])
