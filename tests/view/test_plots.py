"""Plots, maps, neighbours and sorting, against numpy."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curator_dali.batch.batch import ImageBatch
from curator_dali.batch.image import ImageObject, sort_rows
from curator_dali.view.plots import project
from tests.view.conftest import EVIL


def blobs(count: int = 60, dim: int = 32) -> ImageBatch:
    """Three clusters of embeddings, far apart along different directions."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    centres = rng.normal(size=(3, dim)) * 6
    data = [ImageObject(f"{n}.jpg", f"i{n}", {"label": int(label)}) for n, label in enumerate(labels)]
    embeddings = (centres[labels] + rng.normal(size=(count, dim))).astype(np.float32)
    return ImageBatch("t", "d", data, embeddings=embeddings)


@pytest.mark.parametrize("field", ["sharpness", "label", "caption", "image_id"])
def test_histogram_is_a_picture(batch: ImageBatch, field: str) -> None:
    plot = batch.histogram(field)
    data, size = plot._repr_png_()
    picture = Image.open(io.BytesIO(data))
    assert picture.width > size["width"] > 300
    assert np.asarray(picture.convert("L")).std() > 5
    assert field in repr(plot)


def test_histogram_counts_every_value_once(batch: ImageBatch) -> None:
    batch.columns["sharpness"][2] = np.nan
    bars = batch.histogram("sharpness", bins=4).figure.axes[0].patches
    expected, _ = np.histogram(np.delete(batch.columns["sharpness"], 2), 4)
    assert [bar.get_height() for bar in bars] == expected.tolist()
    assert "1 without" in batch.histogram("sharpness").text
    texts = [label.get_text() for label in batch.histogram("image_path").figure.axes[0].get_yticklabels()]
    assert not any("$x" in text.replace(r"\$", "") for text in texts)
    with pytest.raises(ValueError, match="bins is 0"):
        batch.histogram("sharpness", bins=0)
    with pytest.raises(KeyError, match="colour"):
        batch.histogram("colour")


def test_plots_leave_nothing_in_pyplot(batch: ImageBatch) -> None:
    import matplotlib.pyplot as plt

    for _ in range(3):
        batch.histogram("sharpness")._repr_png_()
    assert plt.get_fignums() == []


def test_pca_is_that_of_numpy() -> None:
    batch = blobs()
    points = project(batch.embeddings)
    centred = batch.embeddings - batch.embeddings.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    for axis in range(2):
        assert np.abs(points[:, axis]) == pytest.approx(np.abs(expected[:, axis]), abs=1e-3)
    assert np.array_equal(points, project(batch.embeddings))


@pytest.mark.parametrize("color_by", [None, "label", "image_id", "score"])
def test_map_draws_every_image(color_by: str | None) -> None:
    batch = blobs()
    batch.columns["score"] = np.where(np.arange(60) % 7, np.arange(60), np.nan).astype(np.float32)
    batch[0].image_id = EVIL
    plot = batch.embedding_map(color_by)
    assert sum(len(drawn.get_offsets()) for drawn in plot.figure.axes[0].collections) == 60
    assert plot._repr_png_()


def test_few_values_have_a_legend_and_many_a_scale() -> None:
    batch = blobs()
    batch.columns["number"] = np.arange(60)
    few, many = batch.embedding_map("label").figure, batch.embedding_map("number").figure
    assert [text.get_text() for text in few.legends[0].get_texts()] == ["0", "1", "2"]
    assert (len(few.axes), len(many.axes), len(many.legends)) == (1, 2, 0)  # the second is the scale's


def test_map_says_what_it_needs(batch: ImageBatch) -> None:
    with pytest.raises(ValueError, match="no embeddings"):
        batch.embedding_map()
    with pytest.raises(ValueError, match="at least three images"):
        blobs()[:2].embedding_map()
    with pytest.raises(ValueError, match="'tsne'; allowed"):
        blobs().embedding_map(method="tsne")  # type: ignore[arg-type]
    assert project(np.ones((3, 1), np.float32)).shape == (3, 2)


def test_umap_if_installed() -> None:
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install umap-learn"):
            blobs().embedding_map(method="umap")
    else:
        assert project(blobs().embeddings, "umap").shape == (60, 2)


def test_nearest_is_brute_force() -> None:
    batch = blobs()
    unit = batch.embeddings / np.linalg.norm(batch.embeddings, axis=1, keepdims=True)
    for query in (7, "i7", batch.embeddings[7] * 3, batch.to_torch("embeddings")[7]):
        found = batch.nearest(query, 5)
        cosines = unit @ unit[7]
        assert [item.image_id for item in found] == [f"i{row}" for row in np.argsort(-cosines)[:5]]
        assert found.columns["similarity"] == pytest.approx(np.sort(cosines)[::-1][:5], abs=1e-5)
    assert "similarity" not in batch.columns
    assert len(batch.nearest(-1, 500)) == 60


def test_images_without_a_direction_are_near_nothing() -> None:
    batch = blobs()
    batch.embeddings[3], batch.embeddings[4, 5] = 0, np.nan
    found = batch.nearest(5, 60)
    assert len(found) == 58
    assert not {"i3", "i4"} & {item.image_id for item in found}
    with pytest.raises(ValueError, match="row 0"):
        batch.nearest(3)


def test_text_search_ranks_by_the_text_s_embedding() -> None:
    batch = blobs()

    class Encoder:
        """As `models.ImageEncoder`, whose own tests show that texts and images share a space."""

        def encode_text(self, texts: list[str]) -> np.ndarray:
            return batch.embeddings[[int(text) for text in texts]] * 2

    assert batch.search("9", Encoder(), 1)[0].image_id == "i9"


def test_duplicates_stand_beside_what_was_kept() -> None:
    from curator_dali import similarity

    batch = blobs(9)
    batch.embeddings[6], batch.embeddings[7] = batch.embeddings[0], batch.embeddings[1]
    pairs = similarity.similar_pairs(batch.embeddings, 0.999)
    groups = similarity.group(pairs, np.arange(9))
    text = batch.show(group_by=groups)._repr_html_()
    assert "2 groups" in text
    assert text.count('class="cd-mark cd-kept">kept<') == 2
    assert text.count('class="cd-mark cd-dropped">dropped<') == 2
    assert "5 more images not shown" in text


def test_nearest_says_what_is_wrong(batch: ImageBatch) -> None:
    with pytest.raises(ValueError, match="no embeddings"):
        batch.nearest(0)
    with pytest.raises(KeyError, match="'zzz'"):
        blobs().nearest("zzz")
    with pytest.raises(IndexError, match="row 60"):
        blobs().nearest(60)
    with pytest.raises(ValueError, match="3 columns, where 32 are needed"):
        blobs().nearest(np.ones(3))
    with pytest.raises(ValueError, match="k is 0"):
        blobs().nearest(0, 0)


@given(st.lists(st.none() | st.integers(-3, 3) | st.floats(allow_nan=True)), st.booleans())
def test_order_is_a_stable_sort_with_missing_last(values: list[float | None], descending: bool) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    rows = sort_rows(array, descending).tolist()
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    there = [row for row in range(len(values)) if row not in missing]
    assert rows == sorted(there, key=lambda row: values[row], reverse=descending) + missing


@pytest.mark.parametrize("dtype", [bool, np.uint64, np.int8, np.float32, "U4"])
def test_order_of_every_dtype(dtype: object) -> None:
    values = np.array([0, 1, 1, 0, 1]).astype(dtype)  # type: ignore[call-overload]
    assert sort_rows(values).tolist() == [0, 3, 1, 2, 4]
    assert sort_rows(values, descending=True).tolist() == [1, 2, 4, 0, 3]


def test_values_of_different_kinds_cannot_be_sorted(batch: ImageBatch) -> None:
    batch[1].metadata["odd"], batch[2].metadata["odd"] = 1, "a"
    with pytest.raises(TypeError, match="'odd' are of different kinds"):
        batch.sort_by("odd")


def test_sorting_keeps_rows_together(batch: ImageBatch) -> None:
    sums = {item.image_id: int(image.sum()) for item, image in zip(batch, batch.images, strict=True)}
    after = batch.sort_by("width", descending=True)
    assert after.columns["width"].tolist() == sorted(batch.columns["width"].tolist(), reverse=True)
    assert {item.image_id: int(image.sum()) for item, image in zip(after, after.images, strict=True)} == sums
    assert [image.shape[1] for image in after.images] == after.columns["width"].tolist()
