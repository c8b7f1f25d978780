"""The PyTorch training loop: batches as tensors with targets, equal steps on all ranks, resumable at any step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, SequentialSampler

from curator_dali.arguments import Limits, Natural, checked
from curator_dali.batch import ImageBatch, ImageObject
from curator_dali.decoding import Decoded
from curator_dali.errors import ImageError, PassEndedError
from curator_dali.loader import ImageLoader, LoaderStats
from curator_dali.sources import EncodedBatch, Mixture, Source
from curator_dali.transforms import Normalize

__all__ = ["EpochSampler", "Padded", "StepSampler", "TargetError", "TorchImageLoader", "pad_images"]

logger = logging.getLogger(__name__)

_TARGET_PROBES = 8  # samples of a source whose targets are looked at before any batch
_TARGET_FIX = "give target= another field, a function of the ImageObject, or None for images alone"

Layout = Literal["NCHW", "NHWC"]
T = TypeVar("T")


class TorchImageLoader:
    """Iterate over `(images, targets)` as over a `torch.utils.data.DataLoader`, from an `ImageLoader`.

    `images` is a tensor on the loader's device, the memory that DALI wrote: (N, C, H, W) floats where the transforms
    end in `Normalize()`, else (N, H, W, 3) uint8; a list of tensors where the sizes differ. `targets` is (N,) int64
    or float32 on the same device.

    **Epochs.** Every new `iter()` is another epoch, with its own order and its own random transforms, as with
    `DataLoader(shuffle=True)`: a pass that ends (or of which batches were taken before it was left) moves on to the
    next. `set_epoch` chooses the epoch of the next pass, and need not be called.

    **Equal steps.** All ranks make the same number of steps, of the same sizes, whatever images are bad. With
    `on_bad="refill"` the k-th bad image of a batch is replaced by its k-th good one (counted round), target and id
    with it, so that shapes stay static; with "shorten" it is left out. In a step without any good image, the epoch's
    first good images stand in (of the same bucket, with `Buckets`), whatever the option.

    **Resume.** `state_dict()` after any step is a few numbers of plain JSON, the same on all ranks; a loader with
    another number of ranks goes on with exactly the samples that were not seen. Where the world size does not divide
    what is left, the last step is filled up from the epoch's first samples (`Shard`). A state taken after the loop
    has ended is the next epoch's beginning, one taken inside it at the last batch has nothing left of its epoch.

    Args:
        source: An `ImageLoader`, which stays the caller's to close, or what it takes as its source.
        target: A metadata field, a function of the `ImageObject`, or None: then only `images` are yielded.
        classes: See `Targets`; for a field of names.
        target_dtype: torch.int64 or torch.float32; None goes by the first targets.
        layout: "NCHW" or "NHWC", as a view without a copy; None leaves what the transforms give.
        pad: Put images of different sizes into one tensor: `images` is then `Padded`. A number rounds height and
            width up to its multiple.
        as_dict: Yield {"images", "targets", "ids", "metadata"} (with "mask", where padded, and "views", if there are
            any) instead.
        on_bad: "refill" or "shorten".
        options: `ImageLoader`'s, where `source` is none.

    Raises:
        TargetError: A target of one of the first samples is missing or no number.
        ValueError: The shard is not this process's in torch.distributed, or an option is wrong.
        TypeError: Options together with an `ImageLoader`.
    """

    # DataLoader's own, for what makes a DataLoader of this loader; see `StepSampler`.
    num_workers: ClassVar[int] = 0
    prefetch_factor: ClassVar[int | None] = None

    @checked
    def __init__(
        self,
        source: Any,
        *,
        target: str | Callable[[ImageObject], Any] | None = "label",
        classes: Sequence[Any] | None = None,
        target_dtype: torch.dtype | None = None,
        layout: Layout | None = None,
        pad: bool | Annotated[int, Limits("the number of pixels that sizes are a multiple of", 0)] = False,
        as_dict: bool = False,
        on_bad: Literal["refill", "shorten"] = "refill",
        **options: Any,
    ) -> None:
        if target_dtype not in (None, torch.int64, torch.float32):
            raise ValueError(f"target_dtype is {target_dtype}; allowed: torch.int64, torch.float32, None")
        if isinstance(source, ImageLoader) and options:
            raise TypeError(f"{', '.join(sorted(options))}: give these to the ImageLoader, not beside it")
        floats = None if target_dtype is None else target_dtype == torch.float32
        self._targets = None if target is None else Targets(target, classes, floats)
        self._owns_loader = not isinstance(source, ImageLoader)
        self.loader: ImageLoader = ImageLoader(source, **options) if self._owns_loader else source
        self._layout, self._pad, self._as_dict, self._on_bad = layout, int(pad), as_dict, on_bad
        if self.loader.transforms is None:
            raise ValueError("the loader makes no images (transforms=None): give it transforms=(...) or ()")
        normalize = [transform for transform in self.loader.transforms if isinstance(transform, Normalize)]
        self._channels_first = bool(normalize) and normalize[-1].layout == "CHW"
        self._begun = False  # whether batches of the loader's epoch were taken
        self._current: object = None  # which iterator is the running one
        self._wanted: int | None = None  # the epoch that was chosen while a pass was under way
        self._warned = False
        try:
            self._check_ranks()
            if self._targets is not None:
                self._targets.probe(self.loader.source)
        except BaseException:
            self.close()
            raise

    @property
    def batch_size(self) -> int:
        """Samples a step on this rank."""
        return self.loader.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether steps that are not full are left out."""
        return self.loader.drop_last

    @property
    def dataset(self) -> Source:
        """The source, under the name that loops written for `DataLoader` use."""
        return self.loader.source

    @property
    def sampler(self) -> EpochSampler:
        """This rank's indices of the epoch: `loader.sampler.set_epoch(epoch)` works as with a `DistributedSampler`."""
        return EpochSampler(self)

    @property
    def batch_sampler(self) -> StepSampler:
        """The indices of each step: what accelerate's `skip_first_batches` and Lightning look at."""
        return StepSampler(self)

    def collate_fn(self, encoded: EncodedBatch) -> Any:
        """Make of a step that a `DataLoader` read what the loader itself yields; see `StepSampler`."""
        batch = self._fill(*self.loader.decode(encoded))
        self._begun = True
        return self._out(batch)

    def walk(self) -> Iterator[list[int]]:
        """Begin a pass as `iter(loader)`, and yield the indices of its steps for a `DataLoader` to read."""
        running = self._begin()
        for indices in self._go_through(running, self.loader.walk()):
            if running is not self._current:
                raise PassEndedError
            yield indices.tolist()

    @property
    def class_names(self) -> list[str]:
        """Names of the labels that came from folders, by label; else empty."""
        return self.loader.source.class_names

    @property
    def errors(self) -> list[ImageError]:
        """Bad images of the current pass; see `ImageLoader.errors`."""
        return self.loader.errors

    @property
    def stats(self) -> LoaderStats:
        """What the loader did in its current pass."""
        return self.loader.stats

    @property
    def epoch(self) -> int:
        """The epoch of the current pass, or of the next where none is under way."""
        return self.loader.position.epoch

    def __len__(self) -> int:
        """Steps of a whole epoch; the same on all ranks."""
        return len(self.loader)

    @checked
    def set_epoch(self, epoch: Natural) -> None:
        """Choose the epoch of the next pass. The one that `load_state_dict` restored goes on where it was left.

        A pass of which batches were taken goes on, as with a `DistributedSampler`.
        """
        if self._begun and self._current is not None:
            self._wanted = epoch
        else:
            self._move_to(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands, as plain JSON; the same on all ranks after the same number of steps."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass go on where `state` was taken; see `ImageLoader.load_state_dict`."""
        self.loader.load_state_dict(state)
        self._current, self._wanted, self._begun = None, None, False

    def __iter__(self) -> Iterator[Any]:
        return self._batches(self._begin())

    def _begin(self) -> object:
        """Choose the epoch of a pass that begins, and end the one that is under way."""
        self._check_ranks()
        if self.loader.is_counted:
            self._check_drop()
        if self._wanted is not None:
            self._move_to(self._wanted)
        elif self._begun:
            self._move_to(self.epoch + 1)
        self._current = running = object()
        return running

    def _check_drop(self) -> None:
        """Refuse a batch size of which no full step comes."""
        if self.drop_last and self.loader.num_samples and not len(self):
            world = self.loader.shard.world_size
            raise ValueError(
                f"drop_last leaves nothing of {self.loader.num_samples} samples: a step takes {self.batch_size} on "
                f"each of {world} rank(s); give a smaller batch_size, or drop_last=False"
            )

    def _go_through(self, running: object, steps: Iterator[T]) -> Iterator[T]:
        """Yield the steps of a pass, and move on to the next epoch if nobody stopped it."""
        try:
            yield from steps
            if running is self._current:
                self._check_drop()  # now that all samples are counted
                done, wanted = self.epoch, self._wanted
                self._move_to(done + 1 if wanted is None or wanted == done else wanted)
        finally:
            if running is self._current:
                self._current = None

    def _batches(self, running: object) -> Iterator[Any]:
        if running is not self._current:  # another iterator was made before this one was used
            raise PassEndedError
        for decoded, found in self._go_through(running, self.loader.steps()):
            batch = self._fill(decoded, found)
            self._begun = True
            yield self._out(batch)

    def _move_to(self, epoch: int) -> None:
        """Let the next pass be of this epoch."""
        self.loader.set_epoch(epoch)
        self._wanted, self._begun = None, False

    def _fill(self, decoded: Decoded, batch: ImageBatch | None) -> ImageBatch:
        """The batch of a step in which some images, or all, may be bad."""
        size, rows = len(decoded.encoded), decoded.rows
        if batch is None:
            batch = self.loader.stand_in(size)
            logger.debug("a step without a good image: %d others stand in", len(batch))
            rows = np.arange(min(size, len(batch)))
        elif len(rows) == size or self._on_bad == "shorten":
            return batch
        picked = np.full(size, -1, np.int64)
        picked[rows] = np.arange(len(rows))
        bad = np.flatnonzero(picked < 0)
        picked[bad] = np.arange(len(bad)) % len(rows)
        return batch[picked]

    def _out(self, batch: ImageBatch) -> Any:
        images = batch.to_torch()
        mask = None
        if self._pad:
            images, mask = pad_images(images, self._pad, channels_first=self._channels_first)
        images = self._laid_out(images)
        targets = None
        if self._targets is not None:
            targets = torch.from_numpy(self._targets(batch.data)).to(self.loader.device, non_blocking=True)
        if self._as_dict:
            out: dict[str, Any] = {
                "images": images,
                "ids": [item.image_id for item in batch.data],
                "metadata": [item.metadata for item in batch.data],
            }
            out |= {} if targets is None else {"targets": targets}
            out |= {} if mask is None else {"mask": mask}
            return out | ({"views": {view: batch.to_torch(view) for view in batch.views}} if batch.views else {})
        images = images if mask is None else Padded(images, mask)
        return images if targets is None else (images, targets)

    def _laid_out(self, images: Any) -> Any:
        """The same memory in the layout that was asked for."""
        if self._layout is None or (self._layout == "NCHW") == self._channels_first:
            return images
        if isinstance(images, list):
            return [self._laid_out(image[None])[0] for image in images]
        return images.permute(0, 3, 1, 2) if self._layout == "NCHW" else images.permute(0, 2, 3, 1)

    def _check_ranks(self) -> None:
        """Refuse a shard that is not this process's."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        shard = self.loader.shard
        if shard.world_size == 1 and world > 1 and not self.loader.follows_torch:
            if not self._warned:
                logger.warning(
                    'this is one of %d processes, and each will see all samples: give shard="torch" to divide them',
                    world,
                )
            self._warned = True
        elif (shard.rank, shard.world_size) != (rank, world):
            raise ValueError(
                f"the loader is rank {shard.rank} of {shard.world_size}, this process rank {rank} of {world} in "
                'torch.distributed; give shard="torch", and make the loader after init_process_group'
            )

    def close(self) -> None:
        """Stop every thread; close the loader if it was made here. May be called again."""
        self._current = None
        if self._owns_loader:
            self.loader.close()

    def __enter__(self) -> TorchImageLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TorchImageLoader({self.loader!r})"


class EpochSampler(SequentialSampler):
    """This rank's sample indices of the loader's epoch, with the methods of a `DistributedSampler`.

    It is a `SequentialSampler` so that Lightning leaves the loader's order to the loader.

    Args:
        loader: The loader whose order it tells.
    """

    def __init__(self, loader: TorchImageLoader) -> None:
        super().__init__(loader.dataset)
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the loader's next pass."""
        self._loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(indices.tolist() for indices, _ in self._loader.loader.indices())

    def __len__(self) -> int:
        return self._loader.loader.shard.num_samples(self._loader.loader.num_samples)


class StepSampler(BatchSampler):
    """The sample indices of each step of a pass over the loader.

    `DataLoader(loader.dataset, batch_sampler=StepSampler(loader), collate_fn=loader.collate_fn)` gives the loader's own
    batches, each decoded when it is asked for. accelerate's `skip_first_batches` makes such a `DataLoader`.

    Args:
        loader: The loader; a pass over the steps is a pass over it.
    """

    def __init__(self, loader: TorchImageLoader) -> None:
        super().__init__(loader.sampler, loader.batch_size, loader.drop_last)
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the loader's next pass."""
        self._loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return self._loader.walk()

    def __len__(self) -> int:
        return len(self._loader)


class Targets:
    """Collects the targets of batches.

    Args:
        target: A field of the metadata (`label` is the folder's, the `.cls` member's or the JSON's), or a function
            that takes an `ImageObject` and returns a number or an array of numbers.
        classes: Values of the field, in the order of their numbers: `["cat", "dog"]` makes a 1 of "dog".
        floats: True makes float32 of all numbers, False int64 and refuses what is none; None goes by the first ones.
    """

    def __init__(
        self,
        target: str | Callable[[ImageObject], Any],
        classes: Sequence[Any] | None = None,
        floats: bool | None = None,
    ) -> None:
        if not (isinstance(target, str) or callable(target)):
            raise TypeError(f"target is {target!r}; give the name of a metadata field, a function, or None for none")
        if classes is not None and (isinstance(classes, str) or len(set(classes)) != len(classes) or not classes):
            raise ValueError(f"classes is {classes!r}; give different values of the field, as ['cat', 'dog']")
        self._target, self._floats = target, floats
        self._numbers = None if classes is None else {value: number for number, value in enumerate(classes)}
        self._shape: tuple[int, ...] | None = None

    def probe(self, source: Source) -> None:
        """Look at the targets of a few samples, so that what is wrong with all is told before any batch.

        Raises:
            TargetError: One of them has none, or they are of different kinds.
        """
        named = {part: names for part, names in source.class_lists.items() if names}
        if self._target == "label" and self._numbers is None and len(set(map(tuple, named.values()))) > 1:
            raise TargetError(
                f"the parts of {source.name!r} number different classes: {named}; give target='label_name' and "
                "classes=[...], or a function of the ImageObject"
            )
        if source.streamed is not None and not source.streamed.is_complete:
            return  # a look at samples everywhere would wait for all tars: the first batch will tell
        parts = list(source.sources.values()) if isinstance(source, Mixture) else [source]
        items = []
        for part in parts:
            if len(part):
                chosen = np.unique(np.linspace(0, len(part) - 1, min(_TARGET_PROBES, len(part))).astype(np.int64))
                items += part.read(chosen).objects
        if not items:
            return
        values = [self._value(item) for item in items]
        if self._floats is None:
            self._floats = any(value.dtype.kind == "f" for value in values)
        self(items)

    def __call__(self, items: Sequence[ImageObject]) -> NDArray[Any]:
        """The targets of some images: (N,) int64 or float32, or (N, ...) where each is an array.

        Raises:
            TargetError: Names the image, its value and the fix.
        """
        values = [self._value(item) for item in items]
        if values and self._floats is None:
            self._floats = values[0].dtype.kind == "f"
        if values and self._shape is None:
            self._shape = values[0].shape
        for item, value in zip(items, values, strict=True):
            if not self._floats and value.dtype.kind == "f":
                raise TargetError(
                    f"{self._of(item)} is {value.tolist()}, the others are whole numbers; give "
                    "target_dtype=torch.float32 to make all of them floats, or mend it"
                )
            if value.shape != self._shape:
                raise TargetError(f"{self._of(item)} has the shape {value.shape}, the others {self._shape}")
        shape = (len(values), *(self._shape or ()))
        return np.array(values, np.float32 if self._floats else np.int64).reshape(shape)

    def _of(self, item: ImageObject) -> str:
        name = repr(self._target) if isinstance(self._target, str) else "the target"
        return f"{name} of image {item.image_id!r} ({item.image_path})"

    def _value(self, item: ImageObject) -> NDArray[Any]:
        if isinstance(self._target, str):
            metadata = item.metadata
            if self._target not in metadata:
                trouble = f" ({metadata['metadata_error']})" if "metadata_error" in metadata else ""
                raise TargetError(
                    f"image {item.image_id!r} ({item.image_path}) has no {self._target!r} in its metadata{trouble}; "
                    f"the fields there: {', '.join(map(str, metadata)) or 'none'}; {_TARGET_FIX}"
                )
            value = metadata[self._target]
        else:
            value = self._target(item)
        if self._numbers is not None:
            try:
                value = self._numbers[value]
            except (KeyError, TypeError):
                raise TargetError(f"{self._of(item)} is {value!r}; classes has {list(self._numbers)}") from None
        number = np.asarray(value) if value is not None and not isinstance(value, (str, bytes)) else None
        if number is None or number.dtype.kind not in "biuf":
            fix = "give classes=[...] to number them" if isinstance(value, str) else _TARGET_FIX
            raise TargetError(f"{self._of(item)} is {value!r} ({type(value).__name__}), not a number; {fix}")
        return number


class TargetError(ValueError):
    """An image has no target, or one of another kind than the others."""


class Padded(NamedTuple):
    """Images of different sizes in one tensor.

    Attributes:
        images: (N, H, W, C) or (N, C, H, W), zero where there is no image.
        mask: (N, H, W) bool on the same device, true where there is one.
    """

    images: torch.Tensor
    mask: torch.Tensor


def pad_images(images: Any, multiple: int = 1, *, channels_first: bool = False) -> Padded:
    """Put images of different sizes into the upper left corners of one tensor.

    Args:
        images: N tensors (H_i, W_i, C), or (C, H_i, W_i), on one device; or one tensor of equal ones.
        multiple: Height and width are rounded up to a multiple of this.
        channels_first: Which of the two.
    """
    rows = 1 if channels_first else 0
    sizes = [tuple(image.shape[rows : rows + 2]) for image in images]
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    mask = torch.zeros((len(images), height, width), dtype=torch.bool, device=images[0].device)
    for one, (h, w) in zip(mask, sizes, strict=True):
        one[:h, :w] = True
    if isinstance(images, torch.Tensor) and sizes[0] == (height, width):
        return Padded(images, mask)
    channels = images[0].shape[0 if channels_first else 2]
    shape = (channels, height, width) if channels_first else (height, width, channels)
    padded = images[0].new_zeros((len(images), *shape))
    for one, image, (h, w) in zip(padded, images, sizes, strict=True):
        (one[:, :h, :w] if channels_first else one[:h, :w]).copy_(image)
    return Padded(padded, mask)
