"""Any image model of timm (DINOv2 and a thousand others), by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dali.arrays import resolve_device
from curator_dali.models.base import ImageEncoder
from curator_dali.models.network import Network, compute_dtype
from curator_dali.models.preprocessing import Preprocessing
from curator_dali.models.weights import WeightsError, lineage_of, load_state, sha256, state_sha256

if TYPE_CHECKING:
    import torch

__all__ = ["TimmEncoder", "import_timm"]


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


class TimmEncoder(ImageEncoder):
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
        self.view, self.dim = preprocessing.view, int(getattr(net, "head_hidden_size", 0) or net.num_features)
        self.lineage = lineage_of(
            self.name,
            hashes,
            dtype=str(kind).removeprefix("torch."),
            view=self.view,
            libraries=("torch", "timm"),
        )
        self.network = Network(
            net,
            name=self.name,
            dim=self.dim,
            preprocessing=preprocessing,
            device=self.device,
            dtype=kind,
            batch_size=batch_size,
            compile=compile,
        )

    def _load(self, net: Any, path: Path) -> None:
        state = load_state(path)
        names = set(net.state_dict())
        missing = sorted(names - set(state))
        if missing:
            raise WeightsError(
                f"{path} holds no weights of {self.name}: {len(missing)} missing, as {', '.join(missing[:5])}"
            )
        try:
            net.load_state_dict({name: state[name] for name in names})
        except RuntimeError as error:
            raise WeightsError(f"{path} holds no weights of {self.name}: {error}") from error

    def __call__(self, images: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.network(images)
