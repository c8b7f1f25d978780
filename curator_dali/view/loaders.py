"""A loader and its errors in HTML."""

from __future__ import annotations

from typing import Any

from curator_dali.view import html

__all__ = ["loader_html"]


def loader_html(loader: Any) -> str:
    """What an `ImageLoader` reads, how, where it stands and what it did. Reads nothing."""
    position, stats, shard = loader.position, loader.stats, loader.shard
    done = f"{position.position:,} of {loader.num_samples:,} samples" if position.position else "at the beginning"
    values = {
        "source": repr(loader.source),
        "samples": loader.num_samples,
        "batch size": f"{loader.batch_size:,}",
        "device": loader.device,
        "images": _sequence(loader.transforms),
        "views": ", ".join(map(_sequence, loader.views)),
        "order": f"shuffled, seed {loader.shuffle.seed}" if loader.shuffle else "as the source has it",
        "rank": f"{shard.rank} of {shard.world_size}" if shard.world_size > 1 else "",
        "epoch": f"{position.epoch}, {done}",
    }
    parts = ["<h3>ImageLoader</h3>", html.facts(values)]
    if stats.batches or stats.failed:
        speed = f"{stats.images_per_second:,.0f} a second"
        seconds = {name: getattr(stats, f"{name}_seconds") for name in ("wait", "read", "gate", "decode")}
        parts += [
            "<h4>This pass</h4>",
            html.facts(
                {
                    "images": f"{stats.samples:,} in {stats.seconds:.2f} s, {speed}",
                    "left out": html.count(stats.failed, "image") if stats.failed else "",
                    "by Pillow": html.count(stats.fallback, "image") if stats.fallback else "",
                    "bytes read": f"{stats.bytes / 1e6:,.1f} MB",
                    "time": ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()),
                }
            ),
        ]
    return html.block(*parts)


def _sequence(transforms: Any) -> str:
    if transforms is None:
        return "none, only views"
    return ", ".join(map(repr, transforms)) or "as they are"
