"""Plots of arrays with matplotlib: histograms, and embeddings on a plane.

Figures are made without `pyplot`, which would keep every one of them until the kernel ends.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays
from curator_dali.errors import count
from curator_dali.threads import import_whole
from curator_dali.view import html

_DPI = 144
_INK, _FAINT, _GROUND, _BAR = "#1f2328", "#6e7781", "#ffffff", "#4c86d8"
_MOST_TEXTS = 20  # bars of texts
_MOST_CLASSES = 10  # colours that are told apart
_ROWS_AT_ONCE = 16_384  # of embeddings that are float64 at once


@dataclass(frozen=True, repr=False)
class Plot:
    """A matplotlib figure that a notebook shows once.

    Attributes:
        figure: `matplotlib.figure.Figure`; change it as you like.
        text: What it shows, in a line.
    """

    figure: Any
    text: str

    def save(self, path: str | Path) -> Path:
        """Write it, in the format of the path's ending (.png, .svg, .pdf); returns the path."""
        self.figure.savefig(path, dpi=_DPI, facecolor=_GROUND)
        return Path(path)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DPI, facecolor=_GROUND, metadata={"Software": None})
        width, height = self.figure.get_size_inches() * 96
        return buffer.getvalue(), {"width": round(width), "height": round(height)}

    def __repr__(self) -> str:
        return f"Plot({self.text})"


def histogram(values: NDArray[Any], field: str, bins: int = 30) -> Plot:
    """Draw how often each value occurs: bars of numbers in ranges, or of the most frequent texts.

    Args:
        values: (N,) numbers or objects, a value an image; NaN and None are missing.
        field: The values' name.
        bins: Number of ranges.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; give at least 1")
    figure, axes = _axes(6.4, 3.0)
    if values.dtype.kind in "biuf" and values.dtype != bool:
        numbers = values[np.isfinite(values)].astype(np.float64)
        missing = len(values) - len(numbers)
        axes.hist(numbers, bins=bins, color=_BAR, edgecolor=_GROUND, linewidth=0.5)
        axes.set_xlabel(field, color=_INK)
        axes.set_ylabel("images", color=_INK)
        text = f"{field} of {count(len(numbers), 'image')}"
    else:
        counts = Counter(html.number(value) for value in values.tolist() if value is not None)
        missing = len(values) - sum(counts.values())
        top = counts.most_common(_MOST_TEXTS)[::-1]
        figure.set_size_inches(6.4, 1.0 + 0.24 * max(len(top), 1))
        axes.barh([_plain(name) for name, _ in top], [many for _, many in top], color=_BAR)
        axes.set_xlabel("images", color=_INK)
        rest = len(counts) - len(top)
        text = f"{field}: {count(len(counts), 'value')}{f', the {len(top)} most frequent' if rest else ''}"
    text += f"; {missing:,} without" if missing else ""
    axes.set_title(_plain(text), loc="left", fontsize=10, color=_INK)
    return Plot(figure, text)


def embedding_map(
    embeddings: Any, values: NDArray[Any] | None = None, field: str | None = None, *, method: str = "pca", seed: int = 0
) -> Plot:
    """Draw embeddings on a plane, a dot an image.

    Args:
        embeddings: (N, D) floating point, on any device.
        values: (N,) numbers or objects that colour the dots.
        field: The values' name.
        method: See `project`.
        seed: See `project`.
    """
    points = project(embeddings, method, seed)
    figure, axes = _axes(6.4, 4.8)
    axes.set_xticks([])
    axes.set_yticks([])
    dots: dict[str, Any] = {"s": 26 if len(points) < 2000 else 5, "linewidths": 0.4, "edgecolors": _GROUND}
    text = f"{count(len(points), 'image')} by {method.upper()}"
    if values is None:
        axes.scatter(*points.T, color=_BAR, **dots)
    else:
        text += f", coloured by {field}"
        if _is_scale(values):
            there = np.isfinite(values.astype(np.float64))
            axes.scatter(*points[~there].T, color="#c9ced4", **dots)
            drawn = axes.scatter(*points[there].T, c=values[there].astype(np.float64), cmap="viridis", **dots)
            figure.colorbar(drawn, ax=axes, label=field)
        else:
            _classes(figure, axes, points, values, dots)
    axes.set_title(_plain(text), loc="left", fontsize=10, color=_INK)
    return Plot(figure, text)


def _is_scale(values: NDArray[Any]) -> bool:
    """Whether values lie on a scale: fractions, or more whole numbers than there are colours."""
    if values.dtype.kind == "f":
        return True
    return values.dtype.kind in "iu" and len(np.unique(values)) > _MOST_CLASSES


def _classes(figure: Any, axes: Any, points: NDArray[Any], values: NDArray[Any], dots: dict[str, Any]) -> None:
    """Dots in a colour a value: of the most frequent ones, all others in grey."""
    names = np.array([html.number(value) or "none" for value in values.tolist()], object)
    frequent = [name for name, _ in Counter(names.tolist()).most_common(_MOST_CLASSES)]
    others = ~np.isin(names, frequent)
    if others.any():
        axes.scatter(*points[others].T, color="#c9ced4", label=f"others ({int(others.sum())})", **dots)
    for number, name in enumerate(sorted(frequent)):
        axes.scatter(*points[names == name].T, color=f"C{number}", label=_plain(name[:40]), **dots)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib ({error}): pip install 'curator-dali[notebook]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=9)
    return figure, axes


def _plain(text: str) -> str:
    r"""Text that matplotlib takes as it is: `$` would begin mathematics."""
    return "".join(c for c in text if c.isprintable()).replace("$", r"\$")[:60]


def project(embeddings: Any, method: str = "pca", seed: int = 0) -> NDArray[np.float32]:
    """Embeddings on a plane, (N, 2) float32.

    PCA: the two directions of the largest variance, each with its largest entry positive, so that a rerun looks alike.

    Args:
        embeddings: (N, D) floating point, on any device.
        method: "pca" or "umap".
        seed: Of UMAP.

    Raises:
        ValueError: No such method, or fewer than three images.
        ImportError: umap-learn is not installed.
    """
    import_whole("torch")
    import torch

    if method not in ("pca", "umap"):
        raise ValueError(f"method is {method!r}; allowed: 'pca', 'umap'")
    if len(embeddings) < 3:
        raise ValueError(f"a map needs at least three images, the batch has {len(embeddings)}")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError(f"method='umap' needs umap-learn ({error}): pip install umap-learn") from error
        neighbours = min(15, len(embeddings) - 1)
        made = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed)
        return np.asarray(made.fit_transform(arrays.to_host(embeddings)), np.float32)
    with torch.inference_mode():
        rows = arrays.to_torch(embeddings).float()
        centred = torch.nan_to_num(rows - rows.nanmean(dim=0))
        # in blocks, because float64 of a million rows is twice their memory again
        covariance = sum(block.T.double() @ block.double() for block in torch.split(centred, _ROWS_AT_ONCE))
        _, vectors = torch.linalg.eigh(covariance)
        axes = vectors[:, -2:].flip(1)
        if axes.shape[1] < 2:
            axes = torch.nn.functional.pad(axes, (0, 1))
        signs = torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
        points: NDArray[np.float32] = (centred @ (axes * signs).float()).cpu().numpy()
    return points
