"""Selectors that come first decide before anything is decoded: the same rows, and no pixel of what they drop."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

import curator_dali as cd
from curator_dali.batch import ImageBatch
from curator_dali.decoding import read_headers, scan
from curator_dali.errors import StageError
from curator_dali.sources import Source, TarSource, reopen
from curator_dali.stages import HEADER_FIELDS, Quality, Selector, Stage, make_plan
from tests.curation.helpers import read_members, read_rows
from tests.helpers import encode, write_tar
from tests.sources.web_server import Server

DAMAGED = (12, 18)


def make_samples(photo: Image.Image, count: int = 24) -> list[tuple[str, bytes, dict[str, Any]]]:
    """(key, image, metadata): of many sizes, some turned by EXIF, of several formats, some bad."""
    turned = Image.Exif()
    turned[0x0112] = 6
    samples = []
    for n in range(count):
        image = photo.resize((40 + 7 * n, 120))
        format = "PNG" if n in DAMAGED else ("JPEG", "PNG", "WEBP", "GIF", "TIFF")[n % 5]
        data = encode(image, format, **({"exif": turned} if n % 10 in (5, 6, 7) else {}))
        if n == 11:
            data = b"no image"
        if n in DAMAGED:  # only decoding tells
            data = data[:100] + bytes(len(data) - 200) + data[-100:]
        samples.append((f"{n:03}", data, {"score": n % 7, "pixels": "x"} if n % 4 else {}))
    return samples


def write(path: Path, samples: list[tuple[str, bytes, dict[str, Any]]]) -> TarSource:
    members = []
    for key, data, metadata in samples:
        members += [(f"{key}.jpg", data), (f"{key}.json", json.dumps(metadata).encode())]
    return TarSource(write_tar(path, members), index="beside")


@dataclass(frozen=True)
class Late(Selector):
    """The same verdicts as another stage, behind the decoder: it looks at a view."""

    inner: Any = None

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(self.inner.reads)

    @property
    def views(self) -> Any:
        return (((cd.transforms.Resize((8, 8))),),)

    @property
    def name(self) -> str:
        return str(self.inner.name)

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        found: NDArray[np.object_] = self.inner.judge(batch)
        return found


STAGES = st.lists(
    st.sampled_from(
        [
            cd.Filter("width", min=100),
            cd.Filter("height", min=121, max=190),
            cd.Filter("pixels", max=20_000),
            cd.Filter("aspect_ratio", min=0.9, max=1.6),
            cd.Filter("format", equals=("jpeg", "png", "gif")),
            cd.Filter("score", max=4, missing="keep"),
            cd.Filter("score", min=1),
            cd.Filter("index", where=lambda index: index % 3 != 1),
        ]
    ),
    min_size=1,
    max_size=3,
    unique_by=repr,
)


def facts(out: Path) -> list[dict[str, Any]]:
    return [{name: repr(value) for name, value in row.items()} for row in read_rows(out)]


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stages=STAGES, batch_size=st.integers(3, 30), behind=st.booleans())
def test_rows_are_those_of_stages_behind_the_decoder(
    photo: Image.Image, tmp_path_factory: pytest.TempPathFactory, stages: list[Stage], batch_size: int, behind: bool
) -> None:
    folder = tmp_path_factory.mktemp("screen")
    samples = [(key, data, {"score": about["score"]} if about else {}) for key, data, about in make_samples(photo)]
    samples = [sample for sample in samples if int(sample[0]) not in DAMAGED]
    more = [Quality(), cd.Filter("brightness", max=0.9)] if behind else []
    write(folder / "a.tar", samples)
    tar = folder / "a.tar"
    for place in range(2):  # without and with headers in the index
        source = TarSource(tar, index="beside")
        assert bool(source.headers(np.arange(20))["codec"].any()) == bool(place)
        late = [Late(inner=stage) for stage in stages]
        options: dict[str, Any] = {"batch_size": batch_size, "metadata": ["score"]}
        reports = [
            cd.curate(source, folder / f"early{place}", stages=[*stages, *more], **options),
            cd.curate(source, folder / f"late{place}", stages=[*late, *more], **options),
        ]
        source.close()
        assert facts(folder / f"early{place}") == facts(folder / f"late{place}")
        assert read_members(folder / f"early{place}") == read_members(folder / f"late{place}")
        assert [reports[0].dropped, reports[0].failed] == [reports[1].dropped, reports[1].failed]


def test_a_dropped_image_is_not_decoded(photo: Image.Image, tmp_path: Path) -> None:
    samples = make_samples(photo)
    report = cd.curate(write(tmp_path / "a.tar", samples), tmp_path / "out", stages=[cd.Filter("width", min=170)])
    rows = {row["image_id"]: row for row in read_rows(tmp_path / "out")}
    assert [rows[f"{n:03}"]["status"] for n in DAMAGED] == ["dropped"] * 2
    assert rows["011"]["status"] == "failed"  # its header is none
    assert sum(report.failed.values()) == 1
    for key, data, _ in samples:
        if int(key) not in (11, *DAMAGED):
            with Image.open(io.BytesIO(data)) as image:
                width, height = ImageOps.exif_transpose(image).size
            assert (rows[key]["width"], rows[key]["height"]) == (width, height)
            assert rows[key]["status"] == ("kept" if width >= 170 else "dropped")


def test_known_headers_spare_the_images(photo: Image.Image, tmp_path: Path, server: Server) -> None:
    noise = Image.effect_noise((1000, 1000), 90).convert("RGB")
    images = [encode(noise, quality=90), encode(photo.resize((200, 100)))]
    members = []
    for n in range(12):
        members += [(f"{n:02}.jpg", images[n % 2]), (f"{n:02}.json", b'{"n": %d}' % n)]
    server.files["/a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    source = TarSource(f"{server.url}/a.tar")
    read: list[int] = []
    for out in ("first", "second"):
        server.requests.clear()
        stages = [cd.Filter("width", max=500), cd.Filter("n", min=4)]
        cd.curate(source, tmp_path / out, stages=stages, metadata=["n"], html=False)
        read.append(sum(end - begin for begin, end in server.ranges_sent("/a.tar")))
    assert read[0] > 6 * len(images[0])
    assert read[1] < len(images[0])
    assert facts(tmp_path / "first") == facts(tmp_path / "second")
    rows = read_rows(tmp_path / "second")
    assert [row["n"] for row in rows] == list(range(12))
    assert [row["image_id"] for row in rows if row["status"] == "kept"] == ["05", "07", "09", "11"]


def test_a_field_of_the_metadata_goes_before_the_header(photo: Image.Image, tmp_path: Path) -> None:
    source = write(tmp_path / "a.tar", [(str(n), encode(photo), {"pixels": n}) for n in range(4)])
    cd.curate(source, tmp_path / "out", stages=[cd.Filter("pixels", min=2)])
    assert [row["pixels"] for row in read_rows(tmp_path / "out")] == [0, 1, 2, 3]
    assert [row["status"] for row in read_rows(tmp_path / "out")] == ["dropped"] * 2 + ["kept"] * 2


def test_verdicts_that_change_are_refused(photo: Image.Image, tmp_path: Path) -> None:
    source: Source = write(tmp_path / "a.tar", [(str(n), encode(photo), {}) for n in range(4)])
    cd.curate(source, tmp_path / "first", stages=[cd.Filter("width", min=1)])  # so that headers are known
    calls: list[int] = []

    def whim(values: NDArray[Any]) -> NDArray[np.bool_]:
        calls.append(1)
        return np.full(len(values), len(calls) % 2 == 0)

    with pytest.raises(StageError, match="Filter\\(width\\) gives other verdicts on the same image"):
        cd.curate(source, tmp_path / "out", stages=[cd.Filter("width", where=whim)])


def test_stages_that_screen() -> None:
    filters: list[Stage] = [cd.Filter("width", min=1), cd.Filter("caption", equals="a"), cd.Filter("pixels", min=2)]
    types = {"caption": "string"}
    for stages, count, by_header in (
        (filters, 3, 1),
        ([filters[2], filters[0], Quality(), filters[1]], 2, 2),
        ([Quality(), *filters], 0, 0),
        ([filters[1], filters[0]], 2, 0),
        ([], 0, 0),
    ):
        plan = make_plan(stages, types, derived=HEADER_FIELDS)
        assert (plan.screening, plan.screening_headers) == (count, by_header)


@pytest.mark.parametrize("tars", [True, False])
def test_an_image_that_comes_back_is_decoded_first(photo: Image.Image, tmp_path: Path, tars: bool) -> None:
    source = TarSource(write(tmp_path / "a.tar", make_samples(photo)).locations)
    cd.curate(source, tmp_path / "out", stages=[cd.Filter("width", min=170)], tars=tars)
    filters = {"second": cd.Filter("width", min=160), "third": cd.Filter("width", min=60)}
    for before, out in (("out", "second"), ("second", "third")):
        cd.rethreshold(tmp_path / before, tmp_path / out, stages=[filters[out]], source=source, tars=tars)
    cd.curate(source, tmp_path / "fresh", stages=[Quality(), cd.Filter("width", min=60)], tars=tars)
    for name in ("status", "stage", "reason", "reason_kind"):
        assert [row[name] for row in read_rows(tmp_path / "third")] == [
            row[name] for row in read_rows(tmp_path / "fresh")
        ]
    rows = {row["image_id"]: row for row in read_rows(tmp_path / "third")}
    assert [(rows[f"{n:03}"]["status"], rows[f"{n:03}"]["stage"]) for n in DAMAGED] == [("failed", "decode")] * 2
    keys = {key for _, key in read_members(tmp_path / "third")}
    assert keys == ({key for key, row in rows.items() if row["status"] == "kept"} if tars else set())


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_sizes_of_the_metadata_spare_the_images(photo: Image.Image, tmp_path: Path, kind: str) -> None:
    samples: list[tuple[str, bytes, dict[str, Any]]] = []
    for n in range(8):
        image = encode(photo.resize((100 + 10 * n, 50)))
        claims = [{"w": 100 + 10 * n, "h": 50}, {"w": "120", "h": 50}, {"w": 500, "h": 50}, {}][0 if n < 5 else n - 4]
        samples.append((str(n), image if n != 1 else b"never read", claims))
    if kind == "tar":
        write(tmp_path / "a.tar", samples).close()
        source = cd.open_source(tmp_path / "a.tar", index="beside")
    else:
        (tmp_path / "a").mkdir()
        for key, data, claims in samples:
            (tmp_path / "a" / f"{key}.jpg").write_bytes(data)
            (tmp_path / "a" / f"{key}.json").write_text(json.dumps(claims))
        source = cd.open_source(tmp_path / "a")
    trusting = source.trust_sizes("w", "h")
    stages = [cd.Filter("width", min=120, max=160)]
    cd.curate(trusting, tmp_path / "out", stages=stages, metadata=["w"], html=False)
    rows = read_rows(tmp_path / "out")
    assert [row["status"] for row in rows] == ["dropped"] * 2 + ["kept"] * 3 + ["kept", "dropped", "dropped"]
    assert [row["width"] for row in rows] == [100, 110, 120, 130, 140, 150, 500, 170]  # the seventh was not looked at
    assert [row["reason"] for row in rows][6:] == ["width 500 > 160", "width 170 > 160"]
    again = reopen(trusting.origin or {})
    assert again.fingerprint == trusting.fingerprint == source.fingerprint
    assert trusting.headers(np.arange(8))["codec"].tolist() == [64, 64, 1, 1, 1, 1, 64, 1]
    found = scan(trusting)
    assert found.formats == {"jpeg": 5, "claimed": 3}
    assert found.by_pillow == found.unreadable == 0
    cd.rethreshold(tmp_path / "out", tmp_path / "new", stages=[cd.Filter("width", min=5)], source=source)
    rows = read_rows(tmp_path / "new")
    assert [row["status"] for row in rows] == ["kept", "failed"] + ["kept"] * 6
    assert [rows[n]["width"] for n in (0, 2, 6, 7)] == [100, 120, 160, 170]
    (bucketed,) = read_headers(source.trust_sizes("w", "h"))
    assert bucketed.headers["width"].tolist() == [100, 0, 120, 130, 140, 150, 160, 170]
