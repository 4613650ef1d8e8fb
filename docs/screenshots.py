"""A finished study -> the pictures in this folder. Run where its database is: python screenshots.py STUDY OUT

Needs Chromium and Playwright (extra dev). The alpha shown is the best one of the study.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from expo_search.config.options import DEFAULT_STORAGE
from expo_search.results.dashboard_server import open_dashboard
from expo_search.results.html_report import write_report
from expo_search.results.study_results import read_result
from expo_search.store.study_store import Store

COLOURS = 128  # a palette: a third of the size, and no difference to be seen


def take(page: Any, address: str, store: Store, out: Path) -> None:
    """Dashboard: figure, note, answers; and the page of `expo-search report`."""
    best = read_result(store).verdict.best
    page.goto(address)
    figure = page.locator('[id="user-defined-plot:expo-gain"]')
    figure.get_by_text("verdict: alpha").first.wait_for()
    figure.scroll_into_view_if_needed()
    save(page, out / "dashboard-study.png")
    page.goto(f"{address}/note")
    page.locator("h2", has_text="alpha =").wait_for()
    save(page, out / "dashboard-note.png")
    page.goto(f"{address}/trials?numbers={best.trial if best else 0}")
    page.get_by_label("show artifact table").click()
    page.locator(".MuiModal-root th").first.wait_for()
    save(page, out / "dashboard-answers.png")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        write_report(store, report)
        page.goto(report.as_uri())
        save(page, out / "report.png")


def save(page: Any, file: Path) -> None:
    page.wait_for_timeout(1500)  # until drawings have ended
    page.screenshot(path=file)
    Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def main(study: str, out: Path) -> None:
    with open_dashboard(DEFAULT_STORAGE, study, "127.0.0.1", 0) as server, sync_playwright() as playwright:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 820})
        page.set_default_timeout(120_000)
        try:
            take(page, server.url, Store(DEFAULT_STORAGE, study), out)
        finally:
            browser.close()
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
