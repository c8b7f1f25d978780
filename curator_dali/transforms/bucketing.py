"""`ToBucket`: each image to the size of its bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked
from curator_dali.sampling.buckets import Buckets
from curator_dali.transforms.base import RandomTransform, Transform
from curator_dali.transforms.geometry import Interpolation, lower_resize

__all__ = ["ToBucket", "bring_to"]


@checked
@dataclass(frozen=True)
class ToBucket(RandomTransform):
    """Cut an image to the shape of the nearest bucket, around its centre, and scale it to the bucket's size.

    Nothing about it is random; like random transforms it does something else to each image. A loader with `buckets`
    puts it in front of its transforms by itself.

    Args:
        buckets: The sizes.
        interpolation: As in `Resize`.
    """

    buckets: Buckets
    interpolation: Interpolation = "cubic"

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:  # noqa: D102
        targets = self.output_sizes(sizes)
        scale = (targets / sizes).max(axis=1, keepdims=True)
        window = np.clip(np.rint(targets / scale).astype(np.int64), 1, sizes)
        return {
            "start": ((sizes - window) // 2).astype(np.int32),
            "shape": window.astype(np.int32),
            "size": targets.astype(np.int32),
        }

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        from nvidia.dali import fn

        # "pad": where a header lied about the size, the image is partly black, and its batch does not fail
        start, shape, size = parameters["start"], parameters["shape"], parameters["size"]
        images = fn.slice(images, start=start, shape=shape, axes=(0, 1), out_of_bounds_policy="pad")
        return lower_resize(images, size[0], size[1], self.interpolation)

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:  # noqa: D102
        if len(self.buckets.sizes) == 1:
            return self.buckets.sizes[0]
        if size is None:
            return None
        height, width = self.output_sizes(np.array([size], np.int64))[0].tolist()
        return height, width

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: D102
        return np.array(self.buckets.sizes, np.int64)[self.buckets.assign(np.maximum(sizes, 1))]


def bring_to(buckets: Buckets, transforms: Sequence[Transform] | None) -> tuple[Transform, ...]:
    """A sequence of transforms that begins with bringing images to their buckets.

    Args:
        buckets: The sizes.
        transforms: May begin with a `ToBucket` of the same sizes, to say how it interpolates.

    Raises:
        ValueError: It has a `ToBucket` elsewhere, or of other sizes; or there is none (None).
    """
    if transforms is None:
        raise ValueError("buckets are for the images, and transforms=None makes none: give transforms=()")
    first = transforms[0] if transforms else None
    if isinstance(first, ToBucket) and first.buckets == buckets:
        return tuple(transforms)
    for transform in transforms:
        if isinstance(transform, ToBucket):
            raise ValueError(
                f"{transform!r} must come first and have the loader's sizes {buckets.sizes}, or be left out"
            )
    return (ToBucket(buckets), *transforms)
