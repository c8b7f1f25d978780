"""From encoded bytes to device arrays: the gate in front of DALI, DALI, and Pillow for the rest."""

from __future__ import annotations

from curator_dali.decoding import pillow
from curator_dali.decoding.decoder import Decoded, Decoder, Gated, Screen, gate, read_gated
from curator_dali.decoding.headers import MAX_PIXELS, Codec, read_headers, scan, upright_sizes

__all__ = [
    "MAX_PIXELS",
    "Codec",
    "Decoded",
    "Decoder",
    "Gated",
    "Screen",
    "gate",
    "pillow",
    "read_gated",
    "read_headers",
    "scan",
    "upright_sizes",
]
