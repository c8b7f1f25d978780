"""From what a library says of a model's preprocessing to our transforms and the two vectors of the normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curator_dali.transforms import CenterCrop, Resize, Transform, output_size

__all__ = ["Preprocessing", "from_processor", "from_timm"]

_PILLOW = {0: "nearest", 1: "lanczos", 2: "linear", 3: "cubic"}  # PIL.Image.Resampling, as transformers stores it
_TIMM = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos"}


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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the view."""
        size = output_size(self.view)
        assert size is not None
        return size


def from_processor(processor: Any) -> Preprocessing:
    """The preprocessing of one of transformers' image processors (CLIP's and SigLIP's kind: resize, crop, normalise).

    Raises:
        ValueError: It does something that these transforms cannot.
    """
    view: list[Transform] = []
    if getattr(processor, "do_resize", True):
        view.append(Resize(_processor_size(processor.size, "size"), _interpolation(processor.resample)))
    if getattr(processor, "do_center_crop", False):
        crop = _processor_size(processor.crop_size, "crop_size")
        # written as `transforms.clip` writes it, so that models of one view share it
        view.append(CenterCrop(crop[0] if isinstance(crop, tuple) and crop[0] == crop[1] else crop))
    # (pixel * factor - mean) / std, written in units of pixel / 255
    factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
    unit = 255 * factor
    normalize = getattr(processor, "do_normalize", True)
    mean, std = (processor.image_mean, processor.image_std) if normalize else ((0.0,) * 3, (1.0,) * 3)
    return Preprocessing(tuple(view), tuple(m / unit for m in mean), tuple(s / unit for s in std))


def _processor_size(size: Any, what: str) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    get: Any = size.get if isinstance(size, Mapping) else lambda key: getattr(size, key, None)
    if get("height") and get("width"):
        return int(get("height")), int(get("width"))
    if get("shortest_edge") and not get("longest_edge"):
        return int(get("shortest_edge"))
    raise ValueError(
        f"the image processor's {what} is {size!r}; known are a number, shortest_edge, or height and width"
    )


def _interpolation(resample: Any) -> Any:
    if resample is None or int(resample) not in _PILLOW:
        raise ValueError(f"the image processor resamples with {resample!r}; known are Pillow's {_PILLOW}")
    return _PILLOW[int(resample)]


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The evaluation preprocessing of a timm model, from its data config.

    Args:
        config: What `timm.data.resolve_model_data_config` gives: input_size (3, H, W), crop_pct, crop_mode,
            interpolation, mean, std.

    Raises:
        ValueError: It asks for something that these transforms cannot do.
    """
    channels, height, width = config["input_size"]
    mode, interpolation = config.get("crop_mode") or "center", config.get("interpolation") or "bicubic"
    if channels != 3 or interpolation not in _TIMM or mode not in ("center", "squash"):
        raise ValueError(
            f"timm's data config asks for {channels} channels, {interpolation!r}, crop_mode {mode!r}; known are 3, "
            f"{', '.join(_TIMM)}, and center or squash"
        )
    # as timm's transforms_imagenet_eval: the whole is the input over crop_pct, rounded down
    share = config.get("crop_pct") or 0.875
    whole = math.floor(height / share), math.floor(width / share)
    if mode == "center" and height != width:
        raise ValueError(f"timm's data config crops {height}x{width} from the centre; only squares are known")
    resize = Resize(whole[0] if mode == "center" else whole, _TIMM[interpolation])  # type: ignore[arg-type]
    crop = CenterCrop(height if height == width else (height, width))
    return Preprocessing((resize, crop), tuple(map(float, config["mean"])), tuple(map(float, config["std"])))
