"""Local files that are not what their size says."""

from pathlib import Path

from curator_dali.sources.row_groups import read_file

SHORT = Path("/sys/devices/system/cpu/online")  # the kernel says 4,096 bytes, and has a few


def test_a_file_that_ends_before_its_size_is_a_failure() -> None:
    assert SHORT.stat().st_size > len(SHORT.read_bytes())
    result = read_file(str(SHORT))
    assert isinstance(result, OSError)
    assert "became shorter while it was read" in str(result)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    result = read_file(str(tmp_path / "a"))
    assert not isinstance(result, BaseException)
    assert result.tobytes() == b"abc"
