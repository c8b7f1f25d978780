"""From what a library says of a model's preprocessing to our transforms and the two vectors of the normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curator_dali.transforms.base import Transform, output_size
from curator_dali.transforms.colour import Normalize
from curator_dali.transforms.presets import for_model

__all__ = ["Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input: `view`, then `(pixel / 255 - mean) / std`.

    Args:
        view: Transforms that end in a fixed size.
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.

    Raises:
        ValueError: The view gives images of different sizes, or mean and std are not three numbers each.
    """

    view: tuple[Transform, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if output_size(self.view) is None:
            raise ValueError(f"the preprocessing {self.view} gives images of different sizes; a network takes one size")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"a network of RGB needs three means and positive stds, not {self.mean} and {self.std}")

    @classmethod
    def of(cls, model: Any) -> Preprocessing:
        """That of a transformers image processor or a timm data config.

        Raises:
            TypeError: It is neither.
            ValueError: It does something that our transforms cannot; see `for_model`.
        """
        sequence = for_model(model)
        if sequence and isinstance(last := sequence[-1], Normalize):
            return cls(sequence[:-1], last.mean, last.std)
        return cls(sequence, (0.0,) * 3, (1 / 255,) * 3)  # neither rescaled nor normalised: the pixels as they are

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the view."""
        size = output_size(self.view)
        assert size is not None
        return size
