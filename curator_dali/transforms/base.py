"""`Transform`: the base of all transforms; and conditional branches for some samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Size

Branch = Callable[[Any, Mapping[str, Any]], Any]

ATTEMPTS = 10  # at a rectangle that fits; as torchvision's and DALI's own


@dataclass(frozen=True)
class Transform:
    """Base of all transforms.

    Attributes:
        takes_floats: Whether it also works behind `Normalize`, on floats in CHW or HWC.
        gives_floats: Whether what it gives is no longer HWC uint8 pixels.
    """

    takes_floats: ClassVar[bool] = False
    gives_floats: ClassVar[bool] = False

    def lower(self, images: Any) -> Any:
        """The DALI graph: an HWC uint8 RGB node in, a node out, on the same device.

        Args:
            images: A `nvidia.dali.data_node.DataNode`.
        """
        raise NotImplementedError

    def output_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """(height, width) after this transform where every image has the same; None where they differ.

        Args:
            size: The same of the images that come in.
        """
        return size

    def output_sizes(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, 2) int64, each image's height and width after this transform.

        Args:
            sizes: (N, 2) int64, heights and widths of the images that come in.
        """
        fixed = self.output_size(None)
        if fixed is not None:
            return np.broadcast_to(np.array(fixed, np.int64), sizes.shape)
        return np.array([self.output_size((h, w)) for h, w in sizes.tolist()], np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class RandomTransform(Transform):
    """Base of the random transforms: everything random about a sample comes from `draws` uniform numbers of its own.

    The numbers are a pure function of (seed, epoch, sample index, place of the transform in its sequence), so a
    sample looks the same whatever the batch, the threads, the ranks and the point of resumption.

    Args:
        stream: Another number gives other draws at the same place: for two different views of an image.
    """

    draws: ClassVar[int] = 0
    stream: int = field(default=0, kw_only=True)

    def parameters(self, uniforms: NDArray[np.float64], sizes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What DALI is to do to each sample, computed for a whole batch at once.

        Args:
            uniforms: (draws, N) float64 in [0, 1), each row contiguous.
            sizes: (N, 2) int64, heights and widths of the images that come in, at least 1.

        Returns:
            Name -> (N, ...) array of float32, int32 or bool. Names and dtypes are always the same ones, and
            `lower_random` uses all of them (DALI drops an input that nothing uses, and then it cannot be fed).
        """
        raise NotImplementedError

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:
        """The DALI graph, as `lower`, with `parameters` as nodes on the host: a sample's own values each."""
        raise NotImplementedError


@dataclass(frozen=True)
class Crop(RandomTransform):
    """Base of the random transforms that begin with cutting a window out, known before the image is decoded.

    `parameters` are `start` (N, 2) and `shape` (N, 2) int32, rows and columns of pixels, always inside the image.
    """

    def lower_random(self, images: Any, parameters: Mapping[str, Any]) -> Any:  # noqa: D102
        return self.lower_cut(lower_window(images, **parameters))

    def lower_cut(self, images: Any) -> Any:
        """The DALI graph behind the cut: a node of the windows alone in, a node out."""
        return images


def lower_window(images: Any, start: Any, shape: Any) -> Any:
    """The DALI graph of a cut; `start` and `shape` are rows and columns."""
    from nvidia.dali import fn

    # "pad": where a header lied about the size, the image is partly black, and its batch does not fail
    return fn.slice(images, start=start, shape=shape, axes=(0, 1), out_of_bounds_policy="pad")


def output_size(transforms: Sequence[Transform]) -> tuple[int, int] | None:
    """(height, width) that a sequence of transforms gives every image, or None where they differ.

    Raises:
        TypeError: Something in the sequence is no transform.
        ValueError: A transform of pixels comes behind `Normalize`.
    """
    size: tuple[int, int] | None = None
    floats = False
    for i, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            raise TypeError(f"transforms[{i}] is {transform!r}; give values of curator_dali.transforms, as Resize(224)")
        if floats and not transform.takes_floats:
            raise ValueError(
                f"Normalize must be the last transform (only RandomErasing may follow): transforms[{i}], "
                f"{type(transform).__name__}, works on HWC uint8 pixels"
            )
        floats = floats or transform.gives_floats
        size = transform.output_size(size)
    return size


def pair(size: Size) -> tuple[int, int]:
    """Return (height, width) of a side or a pair."""
    return (size, size) if isinstance(size, int) else size


def check_range(values: tuple[float, float], what: str) -> None:
    """Refuse what is no range of positive numbers."""
    if not 0 < values[0] <= values[1] < float("inf"):
        raise ValueError(f"{what} is {values!r}; give (lowest, highest), both positive")


def draw_sides(
    uniforms: NDArray[np.float64], pixels: NDArray[np.int64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the sides of a rectangle of area ~ U(scale) and log(ratio) ~ U(log(ratio)), `ATTEMPTS` times.

    Args:
        uniforms: (2 * ATTEMPTS or more, N), of which the first are used.
        pixels: (N,) areas of the images.
        scale: Range of the area, as a share of the image's.
        ratio: Range of the first side / the second.

    Returns:
        (ATTEMPTS, N) first sides and second sides.
    """
    low, high = np.log(ratio)
    areas = (scale[0] + (scale[1] - scale[0]) * uniforms[:ATTEMPTS]) * pixels
    ratios = np.exp(low + (high - low) * uniforms[ATTEMPTS : 2 * ATTEMPTS])
    return np.rint(np.sqrt(areas * ratios)).astype(np.int64), np.rint(np.sqrt(areas / ratios)).astype(np.int64)


def some(uniforms: NDArray[np.float64], p: float) -> dict[str, NDArray[Any]]:
    """The parameter of a transform that changes a sample with probability `p`, for `lower_some`; none where p is 1."""
    return {} if p == 1 else {"apply": uniforms < p}


def lower_some(images: Any, branch: Branch, parameters: Mapping[str, Any]) -> Any:
    """`branch` for the samples that `some` has chosen; it gets the other parameters."""
    rest = {name: node for name, node in parameters.items() if name != "apply"}
    return only_where(images, parameters["apply"], branch, rest) if "apply" in parameters else branch(images, rest)


def only_where(images: Any, predicate: Any, branch: Branch, parameters: Mapping[str, Any]) -> Any:
    """`branch(images, parameters)` for the samples where `predicate` holds; the others stay as they are."""
    return either(images, predicate, branch, lambda images, own: images, parameters)


def either(images: Any, predicate: Any, yes: Branch, no: Branch, parameters: Mapping[str, Any]) -> Any:
    """`yes(images, parameters)` for the samples where `predicate` holds, `no` for the others.

    The two operators are what `@pipeline_def(enable_conditionals=True)` makes of `if predicate: images = ...`; used
    directly, because that way would rewrite the source of every function that the graph's own function calls.
    `predicate` is a node of bool scalars on the host; of `parameters` each branch gets the rows of its own samples.
    """
    from nvidia.dali import fn

    conditional: Any = fn._conditional  # type: ignore[attr-defined]
    chosen, others = conditional.split(images, predicate=predicate)
    parts = {name: conditional.split(node, predicate=predicate) for name, node in parameters.items()}
    done = yes(chosen, {name: part[0] for name, part in parts.items()})
    return conditional.merge(done, no(others, {name: part[1] for name, part in parts.items()}), predicate=predicate)
