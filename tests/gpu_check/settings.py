"""What a check runs on, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from tests import helpers

ROOT = Path(__file__).parents[2]
SIZES = {"500x375": (500, 375), "1024x768": (1024, 768), "2048x1536": (2048, 1536)}

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
"""CLIP ViT-L/14's image tower."""
SMALL = LARGE | {"num_hidden_layers": 1, "patch_size": 32, "intermediate_size": 64}


@dataclass(frozen=True)
class Settings:
    """A check.

    Attributes:
        device: "cpu" or "cuda:N".
        rehearse: Few images and rounds: the code is what is tried, not the machine.
        work: A folder for corpora, models and results.
    """

    device: str
    rehearse: bool
    work: Path

    @cached_property
    def gpu(self) -> bool:
        """Whether the device is one."""
        return self.device != "cpu"

    def models(self) -> Path:
        """A CLIP ViT-L/14 with random weights and the two heads, where NeMo Curator looks for them; made once."""
        from tests.nemo_layout import write_models

        folder = self.work / ("models-small" if self.rehearse else "models")
        if not folder.is_dir():
            write_models(folder.with_suffix(".partial"), SMALL if self.rehearse else LARGE).rename(folder)
        return folder

    def shards(self, size: str, bad: float = 0.0, images: int = 4096) -> list[str]:
        """Tars of JPEGs of one of `SIZES`, or of "mix" (60, 30 and 10%); made once.

        The photographs are scaled to the size, up too: what decoding costs hangs on pixels and bytes.

        Args:
            size: As above.
            bad: Share of them to damage.
            images: How many; 48 in a rehearsal.
        """
        from tests.benchmarks.corpus import damage

        count = 48 if self.rehearse else images
        folder = self.work / "shards" / f"{size}-{count}"
        if not folder.is_dir():
            photos = list(helpers.load_photos().values())
            names = [size] if size != "mix" else ["500x375"] * 6 + ["1024x768"] * 3 + ["2048x1536"]
            distinct = []
            for i, name in enumerate(names * (40 // len(names))):
                image = Image.fromarray(photos[i % len(photos)]).resize(SIZES[name], Image.Resampling.LANCZOS)
                distinct.append(helpers.encode(image, quality=85 + i % 10, subsampling=("4:2:0", "4:4:4")[i % 5 == 4]))
            samples = [
                (f"{i:06d}", {"jpg": distinct[i * 7 % len(distinct)], "cls": str(i % 10).encode()})
                for i in range(count)
            ]
            partial = folder.with_suffix(".partial")
            helpers.write_shards(partial, samples, per_shard=-(-count // 8))
            partial.rename(folder)
        paths = sorted(folder.glob("*.tar"))
        if bad:
            damaged = folder.with_name(f"{folder.name}-bad{bad}")
            if not damaged.is_dir():
                damage(paths, damaged, bad)
            paths = sorted(damaged.glob("*.tar"))
        return [str(path) for path in paths]
