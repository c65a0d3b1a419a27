"""Writing an archive: it comes back when it is read, and is never left incomplete."""

import contextlib
import errno
import os

import numpy as np
import pytest

from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from dnnlib.publish import Staged
from helpers.archives import FIRST, RESOLUTION, VOLUME, draw, refused, rewrite, write
from helpers.drawn import SCHEMAS
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS, Schema


@SCHEMAS
def test_round_trip(tmp_path, schema):
    stored = draw(schema)
    reader = ArchiveReader(write(tmp_path / "x.zip", schema, stored))
    assert reader.schema == schema and reader.resolution == RESOLUTION
    assert len(reader) == len(stored)
    np.testing.assert_array_equal(np.stack([reader.read_checked(i) for i in range(len(reader))]), stored)
    assert reader.info.volumes == {"a": VOLUME}  # floats come back to the last bit
    assert reader.info.made == {"options": {"x": 1}}
    assert [record.index for record in reader.info.slices] == list(range(6))
    assert reader.info.patients == ["a", "b"]
    assert reader.by_patient() == {"a": [0, 1, 2, 3], "b": [4, 5]}
    assert reader.label(0) is None and reader.info.num_labels == 0


def test_generated_slices_keep_seed_and_snapshot(tmp_path):
    with ArchiveWriter(tmp_path / "x.zip", BRATS, RESOLUTION, {}) as writer:
        for seed, one in enumerate(draw(BRATS)):
            writer.add(one, patient=f"seed{seed}", seed=seed, snapshot="abc")
    records = ArchiveReader(tmp_path / "x.zip").info.slices
    assert [(r.seed, r.snapshot, r.volume, r.index) for r in records] == [(s, "abc", None, None) for s in range(6)]


def test_class_labels(tmp_path):
    with ArchiveWriter(tmp_path / "x.zip", BRATS, RESOLUTION, {}, label_names=("HGG", "LGG")) as writer:
        for i, one in enumerate(draw(BRATS)):
            writer.add(one, patient="a", label=i % 2)
    reader = ArchiveReader(tmp_path / "x.zip")
    assert [reader.label(i) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert reader.info.num_labels == 2 and reader.info.label_names == ("HGG", "LGG")

    rewrite(tmp_path / "x.zip", lambda index: index.update(labels=index["labels"][1:]))
    with pytest.raises(UserError, match=f"1 slices have no class label, the first is {FIRST}"):
        ArchiveReader(tmp_path / "x.zip")


def test_bytes_depend_on_the_content_alone(tmp_path):
    first, again = write(tmp_path / "x.zip"), write(tmp_path / "y.zip")
    other = write(tmp_path / "z.zip", stored=draw(BRATS, seed=1))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_members_lie_a_thousand_to_a_folder(tmp_path):
    stored = np.zeros((1, 1, 1), np.uint8)
    with ArchiveWriter(tmp_path / "x.zip", Schema(("t1",)), 1, {}) as writer:
        for _ in range(1001):
            writer.add(stored, patient="a")
    files = [record.file for record in ArchiveReader(tmp_path / "x.zip").info.slices]
    assert files[0] == FIRST and files[999:] == ["slices/00000/00000999.npy", "slices/00001/00001000.npy"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_no_archive(tmp_path, error):
    with pytest.raises(error), ArchiveWriter(tmp_path / "x.zip", BRATS, RESOLUTION, {}) as writer:
        writer.add(draw(BRATS)[0], patient="a")
        raise error
    refused(tmp_path / "x.zip", "not a complete zip")


def test_an_exception_leaves_the_archive_that_was_there(tmp_path):
    before = write(tmp_path / "x.zip").read_bytes()
    with (
        pytest.raises(RuntimeError),
        atomic_path(tmp_path / "x.zip") as place,
        ArchiveWriter(place, BRATS, RESOLUTION, {}) as writer,
    ):
        writer.add(draw(BRATS, seed=1)[0], patient="a")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    assert (tmp_path / "x.zip").read_bytes() == before


def test_an_archive_without_slices_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="at least one slice"), ArchiveWriter(tmp_path / "x.zip", BRATS, 8, {}):
        pass


def test_an_impossible_destination_is_noticed_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught, ArchiveWriter(tmp_path / "file" / "x.zip", BRATS, 8, {}):
        pytest.fail("the block should not be entered")
    assert caught.value.filename == str(tmp_path / "file" / "x.zip")


def test_a_slice_of_another_shape_or_type_is_a_bug(tmp_path):
    for wrong in (np.zeros((8, 8, 7), np.uint8), np.zeros((8, 8, 8), np.float32)):
        with pytest.raises(AssertionError), ArchiveWriter(tmp_path / "x.zip", BRATS, 8, {}) as writer:
            writer.add(wrong, patient="a")


@pytest.mark.parametrize("complete", [True, False])
def test_archives_that_are_staged_together_appear_together(tmp_path, complete):
    """An error before the second archive is complete leaves both old ones in place."""
    paths = [write(tmp_path / name) for name in ("train.zip", "test.zip")]
    before = [path.read_bytes() for path in paths]
    with contextlib.ExitStack() as outside:
        if not complete:
            outside.enter_context(pytest.raises(OSError, match="No space left"))
        with Staged(paths[0], force=True) as staged, contextlib.ExitStack() as opened:
            for path in paths:
                writer = opened.enter_context(ArchiveWriter(staged.place(path), BRATS, RESOLUTION, {"new": 1}))
                writer.add(draw(BRATS)[0], patient="x")
            if not complete:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.read_bytes() == old for path, old in zip(paths, before, strict=True)] == [not complete] * 2
    assert len(list(tmp_path.iterdir())) == 2
