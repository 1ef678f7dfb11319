"""Headless Chromium, where there is one: what a page comes to when a person opens it."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open pages with")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What was seen."""

    html: str
    """The page as its scripts left it."""
    errors: list[str]
    """Lines of the console, and what the page asked the network for in vain."""


def visit(page: Path, script: str = "", *, milliseconds: int = 5000) -> Visit:
    """Open a page, run a script in it, and let so much of the browser's time pass."""
    copy = page.with_name(f"visited-{page.name}")
    copy.write_text(page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    try:
        done = _chromium("--dump-dom", f"--virtual-time-budget={milliseconds}", url=copy.as_uri())
    finally:
        copy.unlink()
    return Visit(html=done.stdout, errors=[line for line in done.stderr.splitlines() if "CONSOLE" in line])


def screenshot(page: Path, target: Path, *, width: int = 1000, dark: bool = False) -> npt.NDArray[np.uint8]:
    """The page's pixels, [height, width, 3]."""
    scheme = "dark" if dark else "light"
    _chromium(
        f"--window-size={width},2000",
        f"--screenshot={target}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        url=page.as_uri(),
    )
    assert target.exists(), f"no picture of {page} ({scheme})"
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB"))


def _chromium(*options: str, url: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [
                *(
                    CHROMIUM,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--no-first-run",
                    "--hide-scrollbars",
                ),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--enable-logging=stderr", f"--user-data-dir={profile}", *options, url),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
