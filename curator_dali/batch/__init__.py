"""The data model, with the names and meanings of NeMo Curator's: `Task`, `ImageBatch`, `ImageObject`."""

from __future__ import annotations

from curator_dali.batch.batch import ImageBatch, Task, concat, contact_sheet
from curator_dali.batch.image import ImageObject, clone, sort_rows

__all__ = ["ImageBatch", "ImageObject", "Task", "clone", "concat", "contact_sheet", "sort_rows"]
