"""Mix the images of a batch with each other: on torch tensors, wherever they are, after the loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curator_dali.arguments import Count, checked

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Mix:
    """Base of both: each image is mixed with the one before it in the batch, all by one share.

    As torchvision's v2 transforms of these names, but for where the random numbers come from: the share is a pure
    function of the key that is given with each batch. A sample's partner is its neighbour, so what a sample looks like
    depends on the batch that the order put it in; that is what mixing means.

    Args:
        num_classes: Classes; targets come out as (N, num_classes) float32 shares.
        alpha: Of the share's distribution Beta(alpha, alpha).
    """

    num_classes: Count
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"{type(self).__name__}.alpha is {self.alpha}; give a positive number")

    @checked
    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, key: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            images: (N, C, H, W) floats; not changed.
            targets: (N,) classes, or (N, num_classes) shares.
            key: Integers such as (seed, epoch, step); the same ones mix the same batch in the same way.

        Returns:
            (N, C, H, W) of the same dtype, and (N, num_classes) float32.

        Raises:
            ValueError: Shapes or classes do not fit, or the key has no integers.
            TypeError: Images that are no floats.
        """
        import torch

        if not all(isinstance(number, (int, np.integer)) for number in key):
            raise ValueError(f"key is {key!r}; give integers, as (seed, epoch, step)")
        if not isinstance(images, torch.Tensor) or not isinstance(targets, torch.Tensor):
            raise TypeError(
                f"images and targets are {type(images).__name__} and {type(targets).__name__}; give tensors"
            )
        if images.ndim != 4 or len(targets) != len(images):
            raise ValueError(
                f"images of shape {tuple(images.shape)} and targets of shape {tuple(targets.shape)} do not fit: give "
                "(N, C, H, W) and (N,) or (N, num_classes)"
            )
        if not images.is_floating_point():
            raise TypeError(f"images are {images.dtype}; mix them behind Normalize, as floats")
        if targets.ndim == 1:
            if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < self.num_classes:
                raise ValueError(
                    f"targets lie in {int(targets.min())}..{int(targets.max())}; num_classes={self.num_classes}"
                )
            shares = torch.nn.functional.one_hot(targets.long(), self.num_classes).to(torch.float32)
        elif targets.shape[1:] == (self.num_classes,):
            shares = targets.to(torch.float32)
        else:
            raise ValueError(f"targets have shape {tuple(targets.shape)}; give (N,) or (N, {self.num_classes})")
        # RandomState's stream is frozen; that of Generator.beta may change with numpy's releases
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([n % 2**64 for n in key])))
        mixed, share = self._mix(images, images.roll(1, 0), float(random.beta(self.alpha, self.alpha)), random)
        return mixed, share * shares + (1 - share) * shares.roll(1, 0)

    def _mix(
        self, images: torch.Tensor, others: torch.Tensor, share: float, random: np.random.RandomState
    ) -> tuple[torch.Tensor, float]:
        """The mixed images, and the share of them that is still `images`."""
        raise NotImplementedError


@checked
@dataclass(frozen=True)
class MixUp(_Mix):
    """Weighted sums of images and of their targets (Zhang et al. 2018); see `CutMix` for rectangles instead."""

    def _mix(
        self, images: torch.Tensor, others: torch.Tensor, share: float, random: np.random.RandomState
    ) -> tuple[torch.Tensor, float]:
        return images * share + others * (1 - share), share


@checked
@dataclass(frozen=True)
class CutMix(_Mix):
    """A rectangle of another image in each image, targets by area (Yun et al. 2019)."""

    def _mix(
        self, images: torch.Tensor, others: torch.Tensor, share: float, random: np.random.RandomState
    ) -> tuple[torch.Tensor, float]:
        height, width = images.shape[-2:]
        row, column = int(random.randint(height)), int(random.randint(width))
        half = 0.5 * (1 - share) ** 0.5
        half_height, half_width = int(half * height), int(half * width)
        top, bottom = max(row - half_height, 0), min(row + half_height, height)
        left, right = max(column - half_width, 0), min(column + half_width, width)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)
