"""Batches, loaders and outputs as HTML, text, thumbnails and plots: made of plain values and arrays."""

from __future__ import annotations

from curator_dali.view import html, plots
from curator_dali.view.sheets import (
    Sheet,
    draw_contact_sheet,
    draw_image,
    embed_pictures,
    loader_html,
    make_card,
    make_sheet,
    size_of,
    take_pictures,
)
from curator_dali.view.thumbnails import make_thumbnails

__all__ = [
    "Sheet",
    "draw_contact_sheet",
    "draw_image",
    "embed_pictures",
    "html",
    "loader_html",
    "make_card",
    "make_sheet",
    "make_thumbnails",
    "plots",
    "size_of",
    "take_pictures",
]
