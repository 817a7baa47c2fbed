"""Files that are written whole or not at all, and the bar that shows how far a pass has come."""
import os
import sys

import numpy as np
import pytest

import fastbn
from fastbn._data import atomic_write, progress


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_there_when_the_block_is_over(tmp_path, durable):
    target = tmp_path / "a"
    with atomic_write.replacing(target, durable) as file:
        file.write(b"new")
        assert not target.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(error):
        with atomic_write.replacing(target) as file:
            file.write(b"new")
            raise error
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with atomic_write.replacing(tmp_path / "no" / "a"):
            pass
    assert caught.value.filename == os.path.realpath(tmp_path / "no" / "a")


def test_names_as_long_as_a_file_system_allows(tmp_path):
    target = tmp_path / ("a" * 255)
    with atomic_write.replacing(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_new_files_have_the_permissions_of_new_files(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write.replacing(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_layer_is_saved_through_it(tmp_path, monkeypatch):
    layer = fastbn.BatchNorm(3)
    layer.save(tmp_path / "layer.npz")
    before = (tmp_path / "layer.npz").read_bytes()

    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("the disk is full")
    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="full"):
        layer.save(tmp_path / "layer.npz")
    assert (tmp_path / "layer.npz").read_bytes() == before and os.listdir(tmp_path) == ["layer.npz"]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "_is_terminal", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


def test_bytes_are_counted(terminal, capsys):
    pytest.importorskip("rich")
    with progress.counted_bytes("reading", 5_000_000) as advance:
        for _ in range(2):
            advance(1_000_000)
    out, err = capsys.readouterr()
    assert out == "" and "reading" in err and "2.0/5.0 MB" in err


def test_a_bar_inside_another(terminal, capsys):
    """Two at once on one console of rich are an error."""
    rich_progress = pytest.importorskip("rich.progress")
    with progress.counted_bytes("reading") as advance:
        for _ in rich_progress.track(range(3), description="making"):
            advance(1)
    out, err = capsys.readouterr()
    assert "making" in out and "reading" in err


@pytest.mark.parametrize("stream", [None, "closed", "file"])
def test_no_bar_without_a_terminal(tmp_path, monkeypatch, stream):
    file = open(tmp_path / "log", "w")
    if stream == "closed":
        file.close()
    monkeypatch.setattr(sys, "stderr", file if stream else None)
    with progress.counted_bytes("reading", 10) as advance:
        advance(10)
    file.close()
    assert (tmp_path / "log").read_text() == ""
