"""What a batch and an image can do in a notebook: methods that only call `curator_dali.display`.

This is the one place below `display` that imports it, and it does so when a method runs and never before: the data
model stays free of HTML, Pillow and matplotlib, and still `batch.show()` is where people look for it.
tests/test_imports.py knows of this exception, and that no other is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["Pictured", "Viewable"]


class Pictured:
    """An image with a rich display."""

    def _repr_html_(self) -> str:
        from curator_dali.display.batches import image_html

        return image_html(cast(Any, self))


class Viewable:
    """A batch with rich displays, tables and plots. What it needs is what `ImageBatch` has."""

    def show(
        self,
        n: int = 24,
        *,
        sort_by: str | None = None,
        descending: bool = False,
        columns: Sequence[str] | None = None,
        group_by: Any = None,
        view: Sequence[Any] | None = None,
    ) -> Any:
        """A contact sheet: HTML in a notebook, text in a terminal. Only thumbnails leave the device.

        Args:
            n: Images to show; the rest is counted.
            sort_by: A field, as `values` takes it.
            descending: Whether the highest value comes first.
            columns: Fields to write beneath each image; by default size, scores and caption.
            group_by: A field whose equal values stand together; title -> row numbers; or duplicates, as
                `similarity.group` finds them. Of each the first `n` / groups are shown, at least four while `n` has
                room.
            view: Show this view instead of `images`.

        Returns:
            A `display.Sheet`: the last value of a cell is shown; `.save("sheet.html")` writes a page.

        Raises:
            KeyError: No image has the field.
        """
        from curator_dali.display.batches import show

        return show(
            cast(Any, self),
            n,
            sort_by=sort_by,
            descending=descending,
            columns=columns,
            group_by=group_by,
            view=view,
        )

    def sort_by(self, field: str, *, descending: bool = False) -> Self:
        """The same images in the order of a field, as `values` takes it; those without a value come last.

        Raises:
            KeyError: No image has the field.
            TypeError: Its values cannot be compared with each other.
        """
        from curator_dali.fields import order

        batch = cast(Any, self)
        try:
            rows = order(batch.values(field), descending)
        except TypeError as error:
            raise TypeError(f"the values of {field!r} are of different kinds: {error}") from error
        return cast("Self", batch[rows])

    def to_table(self, *, exif: bool = False, embeddings: bool = False) -> pa.Table:
        """A `pyarrow.Table`, a row an image: id, path, scores, `columns`, metadata.

        A metadata field with values of several kinds is JSON text. Where a column and a metadata field have one name,
        the column counts, as in `values`.

        Args:
            exif: Add a column `exif`, tag name -> text, read from `encoded` (the loader's `keep_encoded`) or,
                far slower for members of tars, from `image_path`.
            embeddings: Add the embeddings, as float32 lists of a fixed size.

        Raises:
            ValueError: Embeddings are asked for and there are none.
        """
        from curator_dali.display.table import to_table

        return to_table(cast(Any, self), exif=exif, embeddings=embeddings)

    def to_pandas(self, *, exif: bool = False) -> pd.DataFrame:
        """`to_table()` as a pandas frame; whole numbers that some images lack stay whole.

        Raises:
            ImportError: pandas is not installed: `pip install 'curator-dali[notebook]'`.
        """
        from curator_dali.display.table import to_pandas

        return to_pandas(cast(Any, self), exif=exif)

    def histogram(self, field: str, *, bins: int = 30) -> Any:
        """How often each value of a field occurs: bars of numbers in `bins` ranges, or of the most frequent texts.

        Returns:
            A `display.plots.Plot`: a picture in a notebook; `.figure` is matplotlib's, `.save("x.png")` writes it.

        Raises:
            KeyError: No image has the field.
            ImportError: matplotlib is not installed: `pip install 'curator-dali[notebook]'`.
        """
        from curator_dali.display.plots import histogram

        return histogram(cast(Any, self), field, bins=bins)

    def embedding_map(
        self, color_by: str | None = None, *, method: Literal["pca", "umap"] = "pca", seed: int = 0
    ) -> Any:
        """The embeddings on a plane, a dot an image: what lies close together is alike.

        Args:
            color_by: A field, as `values` takes it: numbers on a scale, up to ten texts or classes in colours.
            method: "pca" keeps the two directions of the largest variance, on the device; "umap" keeps neighbours
                together, if umap-learn is installed.
            seed: Of UMAP.

        Returns:
            A `display.plots.Plot`.

        Raises:
            ValueError: There are fewer than three images, or no embeddings.
            ImportError: matplotlib or umap-learn is not installed.
        """
        from curator_dali.display.plots import embedding_map

        return embedding_map(cast(Any, self), color_by, method=method, seed=seed)

    def nearest(self, query: int | str | NDArray[np.floating[Any]] | Any, k: int = 12) -> Self:
        """The images whose embeddings have the highest cosine with a query, best first.

        Args:
            query: A row number or an image's id (which comes first itself), or a (D,) embedding: numpy, CuPy or torch.
            k: How many, at the most.

        Returns:
            A batch with `columns["similarity"]`, (k,) float32.

        Raises:
            ValueError: No embeddings, or one of another length.
            KeyError: No image has that id.
        """
        from curator_dali.display.neighbours import nearest

        return cast("Self", nearest(cast(Any, self), query, k))

    def search(self, text: str, encoder: Any, k: int = 12) -> Self:
        """The images that fit a text best, by an encoder with a text tower; the one that made the embeddings.

        Args:
            text: What is looked for.
            encoder: A `models.ImageEncoder`.
            k: How many, at the most.

        Raises:
            ValueError: No embeddings, or of another length than the encoder's.
            NotImplementedError: The encoder knows no texts.
        """
        from curator_dali.display.neighbours import search

        return cast("Self", search(cast(Any, self), text, encoder, k))

    def _repr_html_(self) -> str:
        html: str = self.show()._repr_html_()
        return html
