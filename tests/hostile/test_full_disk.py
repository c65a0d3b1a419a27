"""A disk that is full, from the start or at the last moment: what was there stays, and nothing else is left."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import dataset_tool
from helpers.disks import small_disk_at
from helpers.drawn import draw_small_head, write_case, write_full_archive


@pytest.fixture
def release(tmp_path):
    for k in "ABC":
        write_case(tmp_path / "source" / "HGG", f"Brats18_{k}_1", draw_small_head())
    return tmp_path / "source"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB."""
    with small_disk_at(tmp_path / "small", "256k") as folder:
        yield folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_convert(source: Path, dest: Path) -> tuple[int, list[str]]:
    """Exit code and error messages of a conversion that replaces what is there."""
    options = ["--resolution=64", "--workers=1", "--slices=all", "--force"]
    result = CliRunner().invoke(dataset_tool.main, ["convert", f"--source={source}", f"--dest={dest}", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, re.findall(r"^error: .*", result.output.replace("\r", "\n"), re.MULTILINE)


def fill(folder: Path, free: int) -> None:
    """Leave `free` bytes of a disk, or a page less."""
    left = shutil.disk_usage(folder).free - free
    (folder / "other").write_bytes(bytes(max(0, left)))


@pytest.mark.parametrize("free", [0, 4096, 8192, 16384, 40960])
def test_a_full_disk_leaves_the_archives_that_are_there(small_disk, release, free):
    write_full_archive(small_disk / "all.zip")
    (small_disk / "folder").mkdir()
    for name in ("train.zip", "test.zip", "split.json"):
        shutil.copy(small_disk / "all.zip", small_disk / "folder" / name)
    fill(small_disk, free)
    before = contents(small_disk)
    for dest in (small_disk / "all.zip", small_disk / "folder"):
        code, errors = run_convert(release, dest)
        assert code == 2 and len(errors) == 1, errors
        assert str(small_disk) in errors[0] and "No space left" in errors[0] and "free some space" in errors[0]
        kept = {name for name in contents(small_disk) if ".converting" in name}  # cases that are cut already
        assert {name: value for name, value in contents(small_disk).items() if name not in kept} == before
        assert not [name for name in kept if name.endswith(".part")]


@pytest.mark.parametrize("free", [0, 4096, 12288])
def test_a_full_disk_while_slices_are_generated(small_disk, free):
    path = write_full_archive(small_disk / "x.zip")
    fill(small_disk, free)
    before = contents(small_disk)
    with pytest.raises(OSError) as caught:
        write_full_archive(path, 200)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert contents(small_disk) == before


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_last_moment(release, tmp_path, monkeypatch, function):
    """As where room is made only when a file is closed: a quota, a network's disk."""
    dest = write_full_archive(tmp_path / "x.zip")
    before = dest.read_bytes()
    real = getattr(os, function)

    def full(what, *arguments):
        name = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        if Path(name).name.startswith(".x.zip."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(what, *arguments)

    monkeypatch.setattr(os, function, full)
    code, errors = run_convert(release, dest)
    assert code == 2 and len(errors) == 1 and str(dest) in errors[0] and "free some space" in errors[0]
    assert dest.read_bytes() == before
    assert not [path for path in tmp_path.rglob("*.part")]
