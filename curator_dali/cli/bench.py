"""How fast a loader is on a source: several passes, their median and spread, and where the time goes."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from curator_dali.loader.loader import ImageLoader

__all__ = ["Benchmark", "Pass", "measure"]


@dataclass(frozen=True)
class Pass:
    """One pass over a source.

    Attributes:
        samples: Images decoded.
        failed: Images that could not be.
        seconds: From the request for the first batch to the end.
        stats: The loader's own account of the pass.
    """

    samples: int
    failed: int
    seconds: float
    stats: dict[str, Any]

    @property
    def images_per_second(self) -> float:
        """Images, good and bad, a second."""
        return (self.samples + self.failed) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Benchmark:
    """Passes over a source; the first one builds the pipeline and warms the caches and stands apart.

    Attributes:
        device: Where the pixels were.
        passes: In order.
        peak_bytes: Largest resident memory of the process, in bytes.
    """

    device: str
    passes: list[Pass]
    peak_bytes: int

    @property
    def steady(self) -> list[Pass]:
        """The passes after the first, or the first where there is no other."""
        return self.passes[1:] or self.passes

    @property
    def images_per_second(self) -> float:
        """Median over the steady passes."""
        return statistics.median(one.images_per_second for one in self.steady)

    @property
    def spread(self) -> tuple[float, float]:
        """Slowest and fastest steady pass, images a second."""
        rates = [one.images_per_second for one in self.steady]
        return min(rates), max(rates)

    def as_dict(self) -> dict[str, Any]:
        """The benchmark as plain values for JSON."""
        return {
            "device": self.device,
            "images_per_second": self.images_per_second,
            "spread": list(self.spread),
            "peak_bytes": self.peak_bytes,
            "passes": [asdict(one) | {"images_per_second": one.images_per_second} for one in self.passes],
        }


def measure(loader: ImageLoader, rounds: int = 3, progress: Callable[[int], object] | None = None) -> Benchmark:
    """Pass over a loader's source once to warm up, and then `rounds` times.

    Ctrl-C ends the measurement; what was measured until then is returned if it holds a whole pass.

    Args:
        loader: What to measure; stays open.
        rounds: Steady passes.
        progress: Called with the number of images, good and bad, done since the last call.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first pass was over.
        ValueError: The source has no samples.
    """
    if not loader.num_samples:
        raise ValueError("the source has no samples: nothing to measure")
    passes: list[Pass] = []
    try:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            seen = 0
            for _ in loader:
                done = loader.stats.samples + loader.stats.failed
                if progress:
                    progress(done - seen)
                seen = done
            seconds = time.perf_counter() - started
            passes.append(Pass(loader.stats.samples, loader.stats.failed, seconds, loader.stats.as_dict()))
    except KeyboardInterrupt:
        if not passes:
            raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Benchmark(loader.device, passes, peak)
