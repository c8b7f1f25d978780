"""Batches, loaders and outputs as HTML, text, thumbnails and plots: made of plain values and arrays."""

from __future__ import annotations

from curator_dali.view import html, plots, thumbnails
from curator_dali.view.sheets import Sheet, draw_cards, draw_image, list_images, loader_html, size_of
from curator_dali.view.thumbnails import draw_contact_sheet, thumbnail

__all__ = [
    "Sheet",
    "draw_cards",
    "draw_contact_sheet",
    "draw_image",
    "html",
    "list_images",
    "loader_html",
    "plots",
    "size_of",
    "thumbnail",
    "thumbnails",
]
