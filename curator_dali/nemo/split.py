"""`SplitFilesStage`: files of any size as tasks of a bounded number of samples, so that nobody holds a whole shard."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import FileGroupTask

from curator_dali.errors import SourceError
from curator_dali.sources.open import open_source

__all__ = ["RANGE", "SampleRangeTask", "SplitFilesStage", "range_of"]

RANGE = "samples"
"""Of a `FileGroupTask`'s `reader_config`: [start, stop) of the files' samples that it is about."""


@dataclass
class SampleRangeTask(FileGroupTask):  # type: ignore[misc]
    """A `FileGroupTask` that is about some samples of its files: [start, stop) in `reader_config["samples"]`."""

    def get_deterministic_id(self) -> str:
        """Of the files and the range; that of the files alone would be the same for all tasks of a file."""
        start, stop = self.reader_config[RANGE]
        return f"{super().get_deterministic_id()}-{start}-{stop}"


@dataclass
class SplitFilesStage(ProcessingStage[FileGroupTask, FileGroupTask]):  # type: ignore[misc]
    """Cut groups of files into tasks of at most so many samples each, for the reader or the fused stage behind it.

    A NeMo Curator stage gives back all that it makes of a task at once, so a reader that gets whole files holds all
    of their pixels. With this stage before it, it holds `samples_per_task` images at most, executors can start the
    next stage on the first of them, and one large shard is work for several readers.

    Args:
        samples_per_task: The most samples of a task.
    """

    samples_per_task: int = 1000
    name: str = "split_files"

    def __post_init__(self) -> None:
        if self.samples_per_task < 1:
            raise ValueError(f"samples_per_task is {self.samples_per_task}; give a number of at least 1")
        self.resources = Resources(cpus=1.0)

    def inputs(self) -> tuple[list[str], list[str]]:
        """What a task must have."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """What the tasks have."""
        return ["data"], []

    def process(self, task: FileGroupTask) -> list[FileGroupTask]:
        """The ranges of each file, in order. A file that cannot be opened stays as it is: the reader reports it."""
        if RANGE in task.reader_config:
            return [task]
        found: list[FileGroupTask] = []
        for file in task.data:
            shared = {"dataset_name": task.dataset_name, "data": [file]}
            try:
                source = open_source(file)
            except SourceError:
                found.append(FileGroupTask(**shared, _metadata=dict(task._metadata)))
                continue
            count = len(source)
            source.close()
            for start in range(0, count, self.samples_per_task):
                config = {**task.reader_config, RANGE: [start, min(start + self.samples_per_task, count)]}
                found.append(SampleRangeTask(**shared, _metadata=dict(task._metadata), reader_config=config))
        return found


def range_of(task: FileGroupTask, count: int) -> tuple[int, int]:
    """Which of a source's `count` samples a task is about.

    Raises:
        ValueError: `reader_config["samples"]` is no range of them.
    """
    start, stop = task.reader_config.get(RANGE, (0, count))
    if not 0 <= start <= stop <= count:
        raise ValueError(f'reader_config["samples"] is [{start}, {stop}], and {task.data} hold {count} samples')
    return int(start), int(stop)
