"""Files that cannot be written are refused before the work starts."""

import sys

import pytest

from mlx_qwen3.errors import OutputError, UsageError
from mlx_qwen3.inspect import Options, check_files, inspect, write_files


def test_a_picture_a_page_or_both(four_layers, tmp_path):
    report = inspect(four_layers, Options(length=2))
    write_files(report, None, None)
    write_files(report, tmp_path / "a.png", tmp_path / "a.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_what_could_not_be_made_is_refused(tmp_path, monkeypatch):
    check_files(tmp_path / "a.png", tmp_path / "a.html")
    with pytest.raises(UsageError, match=r"expected a name that ends in \.png"):
        check_files(tmp_path / "a.pdf", None)
    with pytest.raises(OutputError, match="is a folder"):
        check_files(None, tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for files in ((tmp_path / "a.png", None), (None, tmp_path / "a.html")):
        with pytest.raises(UsageError, match="pictures need matplotlib"):
            check_files(*files)
