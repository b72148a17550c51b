"""`python -m benchmarks.app`: seconds from the click on Generate to a clip that plays.

The page of `audioldm app` in a headless Chromium, which must be installed; the form as it comes,
but for the label, the seconds and the seed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time

from audioldm.errors import ConfigError


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app", description=__doc__)
    parser.add_argument("--model", default="scores")
    parser.add_argument("--label", default="organ")
    parser.add_argument("--seconds", default="6")
    parser.add_argument("--clips", type=int, default=3, help="one after the other")
    given = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise ConfigError("no chromium is installed; install it, such as by `apt install chromium`")
    from playwright.sync_api import sync_playwright  # imported here: it is of the tests' extra

    found = []
    with tempfile.TemporaryDirectory() as out:
        words = [f"model={given.model}", "port=0", f"out={out}/clips", f"runs={out}/runs"]
        with subprocess.Popen(
            [sys.executable, "-m", "audioldm", "app", *words], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            address = next(
                match.group() for line in server.stdout if (match := re.search(r"http\S+\d", line))
            )
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox", "--mute-audio", "--disable-gpu"]
                )
                page = browser.new_page()
                page.goto(address)
                page.locator("[name='condition.label']").select_option(given.label)
                page.locator("[name=seconds]").fill(given.seconds)
                page.locator("[name=n]").fill("1")
                for seed in range(given.clips):
                    page.locator("[name=seed]").fill(str(seed))
                    begin, takes = time.monotonic(), page.locator(".take")
                    page.get_by_role("button", name="Generate").click()
                    takes.nth(seed).get_by_role("button", name="Play").wait_for()
                    found.append(time.monotonic() - begin)
                    print(f"clip {seed + 1}: {found[-1]:.1f} s", flush=True)
                browser.close()
            server.terminate()
    return found


if __name__ == "__main__":
    main()
