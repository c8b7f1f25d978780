"""A batch of real crops with what people put beside images, markup included; and a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Any

import numpy as np
import pytest

from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject
from tests.helpers import crops

EVIL = (
    "\"'><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\">\0$x$ \x1b[31m</style></div>"
)


@pytest.fixture
def batch(photos: dict[str, np.ndarray]) -> ImageBatch:
    """Twelve crops of all shapes, the first with markup wherever text can be."""
    cut = [(label, np.ascontiguousarray(pixels)) for label, pixels in crops(photos, 12, seed=3)]
    names = list(photos)
    data = [
        ImageObject(f"/photos/{n}.jpg", f"folder/{n:03d}", {"caption": f"a crop of {names[label]}", "label": label})
        for n, (label, _) in enumerate(cut)
    ]
    data[0].image_id, data[0].image_path = EVIL, EVIL
    data[0].metadata = {"caption": EVIL, EVIL: EVIL, "label": 0}
    images = [pixels for _, pixels in cut]
    made = ImageBatch("t", "d", data, images=images)
    made.columns["width"] = np.array([image.shape[1] for image in images], np.int32)
    made.columns["height"] = np.array([image.shape[0] for image in images], np.int32)
    made.columns["sharpness"] = np.linspace(1, 0, 12).astype(np.float32)
    return made


@dataclass(frozen=True)
class Frame:
    """A page to be looked at, this wide, and a JavaScript expression whose value in it is wanted."""

    page: str
    width: int = 1280
    probe: str = "null"


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """Open pages in headless Chromium; of each frame its page's title and what the probe found."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("CURATOR_DALI_REQUIRE_BROWSER") == "1":
            pytest.fail("CURATOR_DALI_REQUIRE_BROWSER=1 promises Chromium, and there is none", pytrace=False)
        pytest.skip("needs a browser: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")

    def run(*frames: Frame, dark: bool = False) -> list[dict[str, Any]]:
        # In frames, because a window cannot be narrower than 500 pixels.
        body = ""
        for number, frame in enumerate(frames):
            (folder / f"{number}.html").write_text(frame.page, "utf-8")
            body += f"<iframe src={number}.html style='border:0;width:{frame.width}px;height:900px'></iframe>"
        probes = json.dumps([frame.probe for frame in frames])
        (folder / "frames.html").write_text(
            f"""<body>{body}<script>onload = () => setTimeout(() => {{
                const found = {probes}.map((probe, n) =>
                    ({{title: frames[n].document.title, probe: frames[n].eval(probe)}}))
                document.body.innerHTML = ""; document.body.setAttribute("data-found", JSON.stringify(found))
            }}, 300)</script>"""
        )
        answer = subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
                *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000"),
                "--allow-file-access-from-files",  # makes the frames of one origin
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--user-data-dir={folder / 'profile'}",
                "--window-size=1400,900",
                "--dump-dom",
                (folder / "frames.html").as_uri(),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        found = re.search(r'data-found="([^"]*)"', answer)
        assert found, f"the page did not load: {answer[:500]}"
        return json.loads(unescape(found[1]))  # type: ignore[no-any-return]

    return run
