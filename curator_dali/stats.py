"""`LoaderStats`: where the time of a pass went."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["LoaderStats"]


@dataclass
class LoaderStats:
    """What a loader did in its current pass. Times are in seconds and overlap: they are of different threads.

    Attributes:
        samples: Images that came out.
        failed: Images that could not be used.
        fallback: Images that Pillow decoded instead of DALI.
        batches: Batches that came out.
        bytes: Encoded bytes read.
        seconds: Since the pass began.
        wait_seconds: The consumer waited for a batch.
        read_seconds: Readers spent reading bytes.
        gate_seconds: Readers spent on headers.
        decode_seconds: The decoding thread waited for DALI and Pillow.
    """

    samples: int = 0
    failed: int = 0
    fallback: int = 0
    batches: int = 0
    bytes: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    gate_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Images that came out, per second of the pass."""
        return self.samples / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, float]:
        """All of it, as plain numbers for a log, JSON or a table."""
        return {**asdict(self), "images_per_second": self.images_per_second}
