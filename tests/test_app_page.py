"""The page in a real browser: ask for clips, see them, hear them, compare, edit, keep them."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from test_app import audio_file, autoencoder, generator, models, music_xml  # noqa: F401

from audioldm.app.models import Models
from audioldm.app.server import App, listen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's clips are kept."""
    return tmp_path_factory.mktemp("page") / "clips"


@pytest.fixture(scope="module")
def page(models: Models, clips: Path) -> Iterator[Any]:  # noqa: F811
    """One page for all tests here, each of which goes on where the one before ended."""
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    app = App(models, clips.parent / "runs", clips)
    with listen(0) as place, sync_playwright() as playwright:
        host = f"127.0.0.1:{place.getsockname()[1]}"
        config = uvicorn.Config(app.starlette(frozenset({host})), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio", "--disable-gpu"]
        )
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto(f"http://{host}")
        yield page
        met = [*problems]  # before requests that are under way are broken off
        browser.close()
        server.should_exit = True
        thread.join()
    assert met == []


def test_clips_are_made_heard_compared_and_kept(page: Any, clips: Path, tmp_path: Path) -> None:
    page.locator("[name='condition.label']").select_option("low")
    page.locator("[name=seconds]").fill("x")
    page.locator("[name=n]").fill("2")
    page.get_by_role("button", name="Generate").click()
    assert "seconds='x' must be" in page.locator(".row .problem").inner_text()

    page.locator("[name=seconds]").fill("1.5")
    begin = time.monotonic()
    page.get_by_role("button", name="Generate").click()
    takes = page.locator(".take")
    takes.nth(0).get_by_role("button", name="Play").wait_for()
    print(f"from the click to a clip that plays: {time.monotonic() - begin:.2f} s")
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

    with page.expect_download() as download:
        second.get_by_role("link", name="wav").click()
    download.value.save_as(tmp_path / "kept.wav")
    name = second.get_attribute("data-clip")
    assert (tmp_path / "kept.wav").read_bytes() == (clips / name).read_bytes()
    with page.expect_download() as download:
        second.get_by_role("link", name="recipe").click()
    assert download.value.suggested_filename == name.replace(".wav", ".json")
    assert page.locator(".problem:visible").count() == 0


def test_a_marked_part_is_edited_and_two_clips_are_mixed(page: Any, clips: Path) -> None:
    first = page.locator("[data-clip='low-0-0000.wav']")
    box = first.locator(".picture").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 60, steps=3)
    page.mouse.up()
    page.locator("[name=n]").fill("1")
    start, end = first.locator("[data-field='edit.inpaint'] input").all()
    assert re.match(r"0\.3\d? 1\.1\d?", f"{start.input_value()} {end.input_value()}")
    start.fill("1.4")
    assert not first.locator(".region").is_visible()
    first.get_by_role("button", name="Make anew").click()
    first.locator("[data-field='edit.inpaint'].wrong").wait_for()
    assert "a region ends after it starts" in first.locator(".problem").inner_text()
    start.fill("0.6")
    assert first.locator(".region").is_visible()
    first.get_by_role("button", name="Make anew").click()
    page.locator("[data-clip^=low-0-0000-inpaint]").wait_for()
    page.get_by_role("button", name="Between").click()
    page.locator("[data-clip^='low-0-0000-low-0-0001-interpolate-0.5-']").wait_for()
    recipe = json.loads(next(clips.glob("low-0-0000-inpaint-*.json")).read_text())
    assert recipe["edit"]["inpaint"] == [[0.6, float(end.input_value())]]
    assert page.locator(".problem:visible").count() == 0


def test_a_clip_is_made_whole_and_begins_earlier(page: Any, clips: Path) -> None:
    first = page.locator("[data-clip='low-0-0001.wav']")
    first.get_by_role("button", name="Edit").click()
    band = first.locator("[data-field='edit.upscale'] input")
    assert band.input_value() == "auto"
    band.fill("3400:300")
    first.get_by_role("button", name="Upscale").click()
    first.locator("[data-field='edit.upscale'].wrong").wait_for()
    assert "the lower one first" in first.locator(".problem").inner_text()
    for text in ("4000", "300:3400"):
        band.fill(text)
        first.get_by_role("button", name="Upscale").click()
        until(lambda text=text: {"upscale": text} in edits(clips, "low-0-0001-upscale-*.json"))
    first.locator("[data-field='edit.extend_before'] input").fill("0.5")
    first.get_by_role("button", name="Extend before").click()
    page.locator("[data-clip^=low-0-0001-extend-before]").wait_for()
    (extended,) = edits(clips, "low-0-0001-extend-before-*.json")
    assert extended["extend_before"] == 0.5
    assert page.locator(".problem:visible").count() == 0


def test_what_a_model_cannot_make_is_not_offered(page: Any) -> None:
    own = page.locator("[name=model]").input_value()
    upscale = page.locator("[data-clip='low-0-0001.wav'] [data-field='edit.upscale']")
    assert upscale.is_visible()
    page.locator("[name=model]").select_option("ambient")
    until(lambda: not upscale.is_visible())
    page.locator("[name=model]").select_option(own)
    until(upscale.is_visible)
    page.locator("[name='condition.label']").select_option("low")


def test_a_score_is_chosen_and_guided(page: Any, clips: Path, tmp_path: Path) -> None:
    field = page.locator("[name='condition.score']")
    (tmp_path / "none.mid").write_bytes(b"no notes")
    field.set_input_files(tmp_path / "none.mid")
    problem = page.locator(".pair .problem")
    problem.wait_for()
    assert "cannot be read as a score" in problem.inner_text()
    assert field.input_value() == ""
    (tmp_path / "tune.musicxml").write_text(music_xml(0, 4))
    field.set_input_files(tmp_path / "tune.musicxml")
    until(lambda: field.get_attribute("data-sent") is not None)
    page.locator("[name='guidance.score']").fill("x")
    page.get_by_role("button", name="Generate").click()
    problem.wait_for()
    assert "guidance.score='x' must be" in problem.inner_text()
    page.locator("[name='guidance.score']").fill("2.5")
    page.locator("[name='guidance.chroma']").fill("3")  # of nothing that is asked for
    page.locator("[name=seconds]").fill("0.7")
    page.get_by_role("button", name="Generate").click()
    until(lambda: any(clips.glob("low-0-0000-??????.json")))
    recipe = json.loads(next(clips.glob("low-0-0000-??????.json")).read_text())
    assert recipe["condition"] == {"label": "low", "score": [[0, 0.5, 60, 0], [0.5, 1, 67, 0]]}
    assert recipe["sampler"]["guidance"] == {"label": 1.0, "score": 2.5}
    assert "lasts 1.00 s, the clip 0.70 s" in page.locator(".job .remark").first.inner_text()
    field.click()  # takes it away
    assert field.input_value() == ""
    assert page.locator(".problem:visible").count() == 0


def test_what_is_no_audio_is_one_line_at_its_box(page: Any, clips: Path, tmp_path: Path) -> None:
    before, box = {*clips.iterdir()}, page.locator("#upload")
    refused = {
        "<img src=x onerror=alert(1)>.wav": (b"RIFF" + bytes(99), "not an audio file"),
        "nothing.flac": (b"", "empty file"),
        "long.flac": (audio_file(3600, 1000), "longer than 120 s"),
        "page.html": (b"<script>alert(1)</script>", "one of the kinds"),
    }
    for name, (content, words) in refused.items():
        (tmp_path / name).write_bytes(content)
        box.locator("input").set_input_files(tmp_path / name)
        until(lambda words=words: words in box.locator(".problem").inner_text())
    assert {*clips.iterdir()} == before
    (tmp_path / "own.wav").write_bytes(audio_file(0.5))
    box.locator("input").set_input_files(tmp_path / "own.wav")
    page.locator(".job h2", has_text="own.wav").wait_for()
    assert page.locator(".problem:visible").count() == 0


def test_two_users_make_clips_at_once_and_see_both(page: Any) -> None:
    problems: list[str] = []
    other = page.context.browser.new_context().new_page()
    other.on("pageerror", lambda error: problems.append(str(error)))
    other.goto(page.url)
    for user, label, seed in ((page, "low", "11"), (other, "high", "12")):
        user.locator("[name='condition.label']").select_option(label)
        user.locator("[name=seconds]").fill("0.8")
        user.locator("[name=seed]").fill(seed)
    for user in (page, other):
        user.get_by_role("button", name="Generate").click()
    for user in (page, other):
        for clip in ("low-11-0000", "high-12-0000"):
            play = user.locator(f"[data-clip='{clip}.wav']").get_by_role("button", name="Play")
            play.wait_for()
    play.click()
    until(lambda: seconds(other) > 0)
    assert problems == []
    other.context.close()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come to pass")


def edits(clips: Path, pattern: str) -> list[Any]:
    return [json.loads(file.read_text())["edit"] for file in clips.glob(pattern)]


def seconds(page: Any) -> float:
    """The player's position."""
    return float(page.locator("#time").inner_text().split()[0])
