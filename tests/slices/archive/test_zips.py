"""Zip files: compatibility with zipfile, many members, and reading from many threads and processes."""

import contextlib
import multiprocessing
import pickle
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.archives import draw, write
from slices.archive.format import pack_slice
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.archive.zips import ZipReader, ZipWriter, pack
from slices.schema import BRATS, Schema


def test_a_reader_travels_to_spawned_processes(tmp_path):
    reader = ArchiveReader(write(tmp_path / "x.zip"))
    expected = reader.read(3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(3), expected)


def test_what_is_written_is_a_zip_to_others(tmp_path):
    """zipfile and ZipReader find the same members and content. Equal content gives equal bytes."""
    rng = np.random.default_rng(0)
    contents = {f"a/ü{n}.bin": rng.integers(0, 1 + n, 10 ** (n % 5), dtype=np.uint8).tobytes() for n in range(20)}
    for name in ("x.zip", "y.zip"):
        with contextlib.closing(ZipWriter(tmp_path / name)) as writer:
            for member, content in contents.items():
                writer.add(member, pack(content))
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()
    reader = ZipReader(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as other:
        assert other.testzip() is None and other.namelist() == list(contents)
        for member, content in contents.items():
            assert other.read(member) == reader.read(member, 10_000) == content
            packed = reader.packed(member, 10_000)
            assert zlib.decompress(packed.deflated, -15) == content and packed.crc == zlib.crc32(content)
    with pytest.raises(UserError, match="10000 bytes; expected at most 9999"):
        reader.read("a/ü4.bin", 9_999)


def test_more_members_and_bytes_than_a_plain_zip_can_count(tmp_path):
    """More than 65,535 members and 4 GB, where a zip needs 64-bit numbers."""
    writer, small = ZipWriter(tmp_path / "x.zip"), pack(b"small")
    for n in range(65_600):
        writer.add(str(n), small)
    writer._zip.start_dir = 5 << 30  # a hole in the file, in place of members
    writer.add("behind", pack(b"far away"))
    writer.close()
    reader = ZipReader(tmp_path / "x.zip")
    assert len(reader) == 65_601 and reader.read("behind", 100) == b"far away" and reader.read("65599", 100) == b"small"
    with zipfile.ZipFile(tmp_path / "x.zip") as other:
        assert other.read("behind") == b"far away"


def test_a_reader_serves_threads_forks_and_copies_at_once(tmp_path):
    """All read in random order through one open file. A shared position would mix up their slices."""
    stored = draw(BRATS, count=40)
    reader = ArchiveReader(write(tmp_path / "x.zip", stored=stored))
    reader.read(0)  # opens the file before the fork

    def read_all(reader, seed):
        order = np.random.RandomState(seed).randint(0, 40, 300)
        return all(np.array_equal(reader.read(i), stored[i]) for i in order)

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=lambda s=s: answers.put(read_all(reader, s)), daemon=True) for s in range(3)]
    for child in children:
        child.start()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read_all, [reader, reader, pickle.loads(pickle.dumps(reader)), reader], range(4)))
    assert [answers.get() for _ in children] == [True] * 3
    for child in children:
        child.join()


@pytest.mark.slow
def test_an_archive_of_more_slices_and_bytes_than_a_plain_zip_can_count(tmp_path):
    schema = Schema(("t1",))
    pictures = [np.full((1, 1, 1), level, np.uint8) for level in range(256)]
    packed = [pack_slice(picture) for picture in pictures]
    with ArchiveWriter(tmp_path / "x.zip", schema, 1, {}) as writer:
        for n in range(65_600):
            if n == 65_500:
                writer._zip._zip.start_dir = 5 << 30  # a hole in the file, in place of slices
            writer.add_packed(packed[n % 256], patient="p")
    reader = ArchiveReader(tmp_path / "x.zip")
    assert len(reader) == 65_600 and (tmp_path / "x.zip").stat().st_size > 5 << 30
    for n in (0, 255, 65_499, 65_500, 65_535, 65_536, 65_599):
        assert reader.read(n) == pictures[n % 256], n
