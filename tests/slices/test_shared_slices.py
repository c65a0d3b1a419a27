"""Slices kept once for several processes."""

import os

import numpy as np
import pytest

from dnnlib.processes import map_in_order
from slices.shared_slices import SharedSlices

SHAPE, COUNT = (3, 5, 7), 40


def drawn(n):
    return np.random.default_rng(n).integers(0, 256, SHAPE, dtype=np.uint8)


def fill(job):
    """Get every slice, or put it there. Returns how many were there."""
    path, seed = job
    shared = SharedSlices(path, COUNT, SHAPE, create=False)
    found = 0
    for n in np.random.default_rng(seed).permutation(COUNT):
        kept = shared.get(n)
        if kept is None:
            shared[n] = drawn(n)
        else:
            found += 1
            assert np.array_equal(kept, drawn(n)), n
    return found


def test_processes_find_what_others_have_put_there(tmp_path):
    """Two processes fill the file at the same time. Its name may be gone by then; here it is needed to open it."""
    path = tmp_path / "shared"
    shared = SharedSlices(path, COUNT, SHAPE, create=True)
    assert path.stat().st_blocks * 512 >= COUNT * np.prod(SHAPE), "the disk has set the room aside"
    assert path.stat().st_mode & 0o077 == 0, "no other user reads patients' data"
    assert all(shared.get(n) is None for n in range(COUNT))
    list(map_in_order(fill, [(path, seed) for seed in range(4)], workers=2))
    assert fill((path, 9)) == COUNT
    path.unlink()
    assert all(np.array_equal(shared.get(n), drawn(n)) for n in range(COUNT))
    with pytest.raises(ValueError, match="read-only"):
        shared.get(0)[:] = 0


def test_a_slice_that_could_not_be_written_or_read_whole_is_not_there(tmp_path, monkeypatch):
    shared = SharedSlices(tmp_path / "shared", COUNT, SHAPE, create=True)
    real = os.pwrite
    for failing in (lambda file, content, place: real(file, content[:-1], place), full):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing)
            shared[3] = drawn(3)
        assert shared.get(3) is None
    shared[3] = drawn(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda file, size, place: b"\1"[:size])
        assert shared.get(3) is None
    assert np.array_equal(shared.get(3), drawn(3)) and shared.get(2) is None


def test_a_file_that_is_there_is_not_taken_and_a_full_disk_leaves_none(tmp_path, monkeypatch):
    path = tmp_path / "shared"
    with pytest.raises(FileNotFoundError):
        SharedSlices(path, COUNT, SHAPE, create=False)
    path.write_text("of another user")
    with pytest.raises(FileExistsError):
        SharedSlices(path, COUNT, SHAPE, create=True)
    with pytest.raises(OSError, match="disk full: .*other"):
        monkeypatch.setattr("slices.shared_slices._make_room", full)
        SharedSlices(tmp_path / "other", COUNT, SHAPE, create=True)
    assert [p.name for p in tmp_path.iterdir()] == ["shared"] and path.read_text() == "of another user"


def full(*_):
    raise OSError(28, "disk full")
