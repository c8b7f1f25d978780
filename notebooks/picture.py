"""Make docs/images/ten_lines.png, the README's picture of what its ten lines show: `python notebooks/picture.py`.

Needs Chromium, and 00_ten_lines.ipynb with its outputs.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import nbformat
from PIL import Image

from curator_dali.view import html

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parent / "docs" / "images" / "ten_lines.png"
WIDTH, HEIGHT = 900, 1200


def main() -> None:
    """Take the last cell's output to a browser, and its picture into a file."""
    notebook = nbformat.read(FOLDER / "00_ten_lines.ipynb", as_version=4)
    shown = notebook.cells[-1]["outputs"][-1]["data"]["text/html"]
    page = html.page("", [shown]).replace("<h1></h1>", "")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(page, "utf-8")
        subprocess.run(
            [
                "chromium",
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
                *("--blink-settings=preferredColorScheme=1", f"--user-data-dir={folder}/profile"),
                *(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={folder}/shot.png"),
                f"file://{folder}/page.html",
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(f"{folder}/shot.png") as shot:
            lines = shot.convert("L").resize((1, shot.height), Image.Resampling.BOX).tobytes()
            last = max(row for row, light in enumerate(lines) if light < 254)  # the sheet's end
            cut = shot.convert("RGB").crop((0, 0, WIDTH, min(last + 16, HEIGHT)))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    cut.quantize(192, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
