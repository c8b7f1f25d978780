"""Ready sequences: what training on ImageNet uses, and what a pretrained model's images went through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from curator_dali.arguments import Count, checked
from curator_dali.transforms.base import Transform
from curator_dali.transforms.colour import IMAGENET_MEAN, IMAGENET_STD, Normalize
from curator_dali.transforms.geometry import CenterCrop, HorizontalFlip, Interpolation, RandomResizedCrop, Resize

_PILLOW_FILTERS: dict[int, Interpolation] = {1: "lanczos", 2: "linear", 3: "cubic"}  # Pillow's numbers
_TIMM_FILTERS: dict[str, Interpolation] = {
    "lanczos": "lanczos",
    "bilinear": "linear",
    "bicubic": "cubic",
    "nearest": "nearest",
}
_PROCESSOR_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_HARMLESS = {*_PROCESSOR_STEPS, "do_convert_rgb"}  # flags of a processor
_STEP_METHODS = ("preprocess", "_preprocess", "resize", "center_crop", "rescale", "normalize", "rescale_and_normalize")


@checked
def clip(size: Count = 224, *, normalize: bool = False) -> tuple[Transform, ...]:
    """CLIP's evaluation preprocessing: bicubic resize of the shorter side, centre crop, and (if wanted) normalise.

    Equals transformers' `CLIPImageProcessor` within 2/255, within 4/255 for images that are enlarged; on a GPU but for
    the two outermost pixels, where it differs by up to 7/255.

    Args:
        size: Side of the square, in pixels.
        normalize: Whether to end with `Normalize()`: (N, 3, H, W) float32 instead of (N, H, W, 3) uint8.
    """
    return (Resize(size), CenterCrop(size), *([Normalize()] if normalize else []))


def imagenet_train(
    size: int | tuple[int, int] = 224, *, dtype: Literal["float32", "float16"] = "float32"
) -> tuple[Transform, ...]:
    """Random resized crop, horizontal flip, normalise: (N, 3, H, W), as torchvision's references train with.

    Args:
        size: Side, or (height, width).
        dtype: Of what comes out.
    """
    return (RandomResizedCrop(size), HorizontalFlip(), Normalize(IMAGENET_MEAN, IMAGENET_STD, dtype))


@checked
def imagenet_eval(size: Count = 224, *, dtype: Literal["float32", "float16"] = "float32") -> tuple[Transform, ...]:
    """Bilinear resize to 8/7 of the size (256 for 224), centre crop, normalise: (N, 3, H, W).

    As torchvision's `ImageClassification(crop_size=size)` on Pillow images, within 2/255 but for the border.

    Args:
        size: Side of the square.
        dtype: Of what comes out.
    """
    return (
        Resize(size * 8 // 7, "linear"),
        CenterCrop(size, rounding="even"),
        Normalize(IMAGENET_MEAN, IMAGENET_STD, dtype),
    )


def for_model(model: Any, *, normalize: bool = True) -> tuple[Transform, ...]:
    """What a pretrained model's images go through, from its transformers image processor or timm's `data_config`.

    Equals the processor's own output within 2/255 of a channel's range but for 1 value in 1,000, along the border
    (timm's "nearest": but where two pixels are equally near, of which DALI may take the other).

    Args:
        model: A transformers image processor (`AutoImageProcessor.from_pretrained(...)`, of either backend), or the
            mapping that `timm.data.resolve_data_config` gives.
        normalize: False leaves the last step out: (N, H, W, 3) uint8, for models that normalise on their own.

    Returns:
        A sequence that ends in (N, 3, H, W) float32 where the processor rescales or normalises, else uint8 HWC.

    Raises:
        TypeError: `model` is neither.
        ValueError: It does something that these transforms cannot reproduce; the message names it.
    """
    if isinstance(model, Mapping):
        sequence = _for_timm(model)
    elif all(hasattr(model, name) for name in ("do_resize", "do_normalize", "size")):
        sequence = _for_processor(model)
    else:
        raise TypeError(f"for_model takes a transformers image processor or timm's data_config, not {model!r}")
    return sequence if normalize else tuple(t for t in sequence if not isinstance(t, Normalize))


def _for_timm(config: Mapping[str, Any]) -> tuple[Transform, ...]:
    missing = [name for name in ("input_size", "interpolation", "mean", "std") if name not in config]
    if missing:
        raise ValueError(
            f"timm's data_config lacks {', '.join(missing)}; give what timm.data.resolve_data_config gives"
        )
    input_size, interpolation = tuple(config["input_size"]), config["interpolation"]
    crop_pct, crop_mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
    if len(input_size) != 3 or input_size[0] != 3:
        raise ValueError(f"data_config's input_size is {input_size}; only (3, height, width) can be made")
    if interpolation not in _TIMM_FILTERS:
        raise ValueError(f"data_config's interpolation is {interpolation!r}; allowed: {', '.join(_TIMM_FILTERS)}")
    if crop_mode not in ("center", "squash"):
        raise ValueError(f"data_config's crop_mode is {crop_mode!r}; allowed: center, squash")
    height, width = input_size[1:]
    scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if crop_mode == "center" and height != width:
        raise ValueError(f"data_config's input_size is {input_size}; crop_mode center can be made of squares only")
    return (
        Resize(scaled[0] if crop_mode == "center" else scaled, _TIMM_FILTERS[interpolation]),
        CenterCrop(height if height == width else (height, width), rounding="even"),
        Normalize(tuple(config["mean"]), tuple(config["std"])),
    )


def _for_processor(processor: Any) -> tuple[Transform, ...]:
    name = type(processor).__name__
    convnext = "ConvNext" in name
    others = [key for key, value in vars(processor).items() if key.startswith("do_") and key not in _HARMLESS and value]
    if others:
        raise ValueError(f"{name} has {', '.join(others)} set, which no transform here does")
    own = _own_ways(processor)
    if own and not convnext:
        raise ValueError(f"{name} has its own way of {', '.join(own)}, which cannot be read from its configuration")
    resize, crop, rescale, normalize = (bool(getattr(processor, step, False)) for step in _PROCESSOR_STEPS)
    sequence: list[Transform] = []
    if resize:
        interpolation = _PILLOW_FILTERS.get(int(processor.resample)) if processor.resample is not None else None
        if interpolation is None:
            raise ValueError(f"{name}'s resample is {processor.resample!r}; allowed: LANCZOS, BILINEAR, BICUBIC")
        size = _size(processor.size, f"{name}.size", shorter=True)
        if convnext and isinstance(size, int):
            if size < 384:  # as ConvNextImageProcessor.resize
                sequence += [Resize(int(size / processor.crop_pct), interpolation), CenterCrop(size)]
            else:
                sequence += [Resize((size, size), interpolation)]
        else:
            sequence += [Resize(size, interpolation)]
    if crop:
        sequence += [CenterCrop(_size(processor.crop_size, f"{name}.crop_size", shorter=False))]
    if rescale or normalize:
        unit = 255.0 * (processor.rescale_factor if rescale else 1)  # 1 where the factor is 1/255, but for rounding
        unit = 1.0 if math.isclose(unit, 1) else unit
        mean = tuple(processor.image_mean) if normalize else (0.0, 0.0, 0.0)
        std = tuple(processor.image_std) if normalize else (1.0, 1.0, 1.0)
        # (x * factor - mean) / std, written as (x / 255 - mean') / std'
        sequence += [Normalize(_three(mean, unit), _three(std, unit))]
    return tuple(sequence)


def _own_ways(processor: Any) -> list[str]:
    """The steps that a processor's class does otherwise than transformers' common backends."""
    before: list[type] = []
    for cls in type(processor).__mro__:
        if cls.__name__ in ("TorchvisionBackend", "PilBackend", "BaseImageProcessorFast"):
            return [step for step in _STEP_METHODS if any(step in vars(one) for one in before)]
        before.append(cls)
    return []  # transformers 4's slow processors: each has methods of its own, and the configuration says all


def _size(size: Any, what: str, *, shorter: bool) -> int | tuple[int, int]:
    """A side where the shorter one is set, or (height, width), from a number or one of transformers' size mappings."""
    if isinstance(size, int):
        return size
    fields = size if isinstance(size, Mapping) else getattr(size, "__dict__", {})  # transformers 5 has a dataclass
    given = {key: value for key, value in fields.items() if value is not None}
    if shorter and set(given) == {"shortest_edge"}:
        return int(given["shortest_edge"])
    if set(given) == {"height", "width"}:
        height, width = int(given["height"]), int(given["width"])
        return height if height == width and not shorter else (height, width)
    allowed = "shortest_edge, or height and width" if shorter else "height and width"
    raise ValueError(f"{what} is {given}; only {allowed} can be made")


def _three(values: tuple[float, ...], unit: float) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError(f"the processor normalises {len(values)} channels; only three can be made")
    first, second, third = (float(value) / unit for value in values)
    return first, second, third
