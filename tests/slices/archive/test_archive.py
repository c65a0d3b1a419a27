"""The archive: what is written comes back, and what doesn't fit is refused with a reason."""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import pickle
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from dnnlib.staged import Staged
from drawn import ONE_CLASS, SCHEMAS
from slices.archive.format import INDEX, Volume, pack_slice
from slices.archive.reader import ArchiveReader
from slices.archive.together import require_same_kind
from slices.archive.writer import ArchiveWriter
from slices.archive.zips import ZipReader, ZipWriter, pack
from slices.schema import BRATS, LABEL_ON, Schema

RESOLUTION = 8
OPPOSITE = str.maketrans("LPI", "RAS")
VOLUME = Volume(
    patient="a",
    shape=(8, 8, 3),
    affine=((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 7.5), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    pixel=1.0,
    windows={"t1": (0.1, 1e9 / 3), "t1ce": (-3.0, 2.0), "t2": (0.0, 1.0), "flair": (0.0, 1.0)},
)


def draw(schema, count=6, seed=0):
    """Random stored joint slices, uint8 [N, C + K, H, W]."""
    rng = np.random.default_rng(seed)
    contrasts = rng.integers(0, 256, (count, schema.num_contrasts, RESOLUTION, RESOLUTION), dtype=np.uint8)
    return schema.join(contrasts, rng.integers(0, max(1, schema.num_maps), (count, RESOLUTION, RESOLUTION)))


def write(path, schema=BRATS, stored=None, **arguments):
    stored = draw(schema) if stored is None else stored
    with ArchiveWriter(path, schema, RESOLUTION, {"options": {"x": 1}}, **arguments) as writer:
        writer.volumes["a"] = VOLUME
        for i, one in enumerate(stored):
            writer.add(one, patient="ab"[i >= 4], volume="a", index=i)
    return path


def rewrite(path, change_index=None, replace=None, drop=()):
    """Write an archive anew with a changed dataset.json, other members' bytes, or without some members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name not in drop}
    if change_index:
        content = json.loads(members[INDEX])
        members[INDEX] = json.dumps(change_index(content) or content).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | (replace or {})).items():
            archive.writestr(name, content)


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


FIRST = "slices/00000/00000000.npy"


# --- round trip -----------------------------------------------------------------------------------------------------


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


# --- nothing by halves ----------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="one slice at least"), ArchiveWriter(tmp_path / "x.zip", BRATS, 8, {}):
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
    """An error before the second one is complete leaves both old ones."""
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


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(path, *words):
    """Reading everything raises one UserError that names the file and contains the words."""
    with pytest.raises(UserError) as caught:
        reader = ArchiveReader(path)
        for i in range(len(reader)):
            reader.read_checked(i)
    message = str(caught.value)
    assert all(word in message for word in (str(path), *words)), message


def test_pixel_sizes_are_those_of_the_volumes_and_of_what_a_generator_learned_from(tmp_path):
    plain = write(tmp_path / "plain.zip")
    assert ArchiveReader(plain).info.pixels == (1.0, 1.0) and ArchiveReader(plain).info.pixel is None
    assert "pixel" not in json.loads(zipfile.ZipFile(plain).read(INDEX)), "archives of volumes stay as they were"
    assert ArchiveReader(write(tmp_path / "x.zip", pixel=(0.5, 0.75))).info.pixels == (0.5, 1.0)
    with ArchiveWriter(tmp_path / "fake.zip", BRATS, RESOLUTION, {}) as writer:
        writer.add(draw(BRATS)[0], patient="generated", seed=0)
    assert ArchiveReader(tmp_path / "fake.zip").info.pixels is None
    for wrong in ([0.0, 1.0], [2.0, 1.0]):
        rewrite(plain, lambda content, wrong=wrong: content | {"pixel": wrong})
        refused(plain, f"pixels of {wrong[0]:g} to {wrong[1]:g} mm")


@pytest.mark.parametrize("axes, slices", [("LPS", 5), ("RAI", 5), ("SLP", 3), ("PSL", 4)])
def test_a_volume_knows_how_many_slices_it_has(axes, slices):
    columns = [{"R": (2, 0, 0.1, 0), "A": (0, 2, 0, 0), "S": (0, 0.1, 3, 0)}[a.translate(OPPOSITE)] for a in axes]
    affine = np.array([*columns, (5, 6, 7, 1)]).T
    assert replace(VOLUME, shape=(3, 4, 5), affine=tuple(map(tuple, affine.tolist()))).slices == slices
    assert replace(VOLUME, affine=((0.0,) * 4,) * 4).slices is None


def test_missing_file_folder_and_text(tmp_path):
    refused(tmp_path / "none.zip", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "text.zip").write_text("no zip at all")
    refused(tmp_path / "text.zip", "not a complete zip")
    (tmp_path / "empty.zip").write_bytes(b"")
    refused(tmp_path / "empty.zip", "not a complete zip")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_zip(tmp_path, share):
    path = write(tmp_path / "x.zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "not a complete zip")


def test_a_flipped_byte_is_refused_or_harmless(tmp_path):
    path = write(tmp_path / "x.zip")
    good, content = ArchiveReader(path), path.read_bytes()
    expected = [good.read(i) for i in range(len(good))]
    refusals = 0
    for position in range(0, len(content), 61):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            reader = ArchiveReader(path)
            found = [reader.read(i) for i in range(len(reader))]
        except UserError as error:
            assert str(path) in str(error)
            refusals += 1
        else:
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True)), position
    assert refusals > 20


def test_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("picture.png", b"")
    refused(tmp_path / "x.zip", f"no {INDEX}", "dataset_tool.py convert")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(INDEX, '{"labels": null}')  # as other programs' archives of pictures have
    refused(tmp_path / "x.zip", "does not describe joint slices")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(INDEX, "{")
    refused(tmp_path / "x.zip", "is not JSON")


@pytest.mark.parametrize(
    "content, words",
    [
        (as_npy(np.zeros((8, 8, 4), np.uint8)), ["uint8 [8, 8, 4]", "uint8 [8, 8, 8]"]),
        (as_npy(np.zeros((8, 8, 8), np.int16)), ["int16"]),
        (as_npy(np.array([{"a": 1}], dtype=object)), ["not a plain array"]),
        (pickle.dumps([1, 2]), ["not a plain array"]),
        (b"", ["not a plain array"]),
        (as_npy(np.zeros((8, 8, 8), np.uint8))[:200], ["not a plain array"]),
        (as_npy(np.zeros((8, 8, 8), np.uint8)), ["not one-hot"]),
        (as_npy(np.full((8, 8, 8), LABEL_ON, np.uint8)), ["not one-hot"]),
        (as_npy(np.full((8, 8, 8), 7, np.uint8)), ["not one-hot"]),
    ],
    ids=["shape", "dtype", "objects", "pickle", "empty", "cut off", "no class", "all classes", "grey label maps"],
)
def test_wrong_member(tmp_path, content, words):
    path = write(tmp_path / "x.zip")
    rewrite(path, replace={FIRST: content})
    refused(path, FIRST, *words)


def test_label_maps_are_one_hot_in_every_pixel_or_refused(tmp_path):
    """One wrong byte anywhere, also where the others make up for it: two classes here and none there, 127 + 128."""
    good = draw(BRATS)[0]
    on, off = ([tuple(i) for i in np.argwhere(good[4:] == value) + [4, 0, 0]] for value in (LABEL_ON, 0))
    for changes in ({on[9]: 1}, {on[9]: 0}, {off[9]: 1}, {on[9]: 0, off[9]: LABEL_ON}, {on[0]: 127, off[0]: 128}):
        wrong = good.copy()
        for place, value in changes.items():
            wrong[place] = value
        columns = wrong[4:].reshape(4, -1)
        one_hot = (np.isin(columns, (0, LABEL_ON)).all() and ((columns == LABEL_ON).sum(axis=0) == 1).all()).item()
        path = write(tmp_path / "x.zip", stored=[good, wrong])
        if one_hot:
            ArchiveReader(path).read_checked(1)
        else:
            refused(path, "00000001.npy are not one-hot", f"expected {LABEL_ON} in one of them and 0 in the others")


def test_missing_member(tmp_path):
    path = write(tmp_path / "x.zip")
    rewrite(path, drop=[FIRST])
    refused(path, f"the member {FIRST} is missing")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x.update(version=1), ["version 1", "reads 2"]),
        (lambda x: x.update(format="pictures"), ["joint-slices"]),
        (lambda x: x.update(resolution="8"), ["resolution", "expected int", "'8'"]),
        (lambda x: x.update(resolution=16), ["[8, 16, 16]"]),
        (lambda x: x.update(extra=1), ["unknown field 'extra'"]),
        (lambda x: x.pop("schema") and None, ["'schema' is missing"]),
        (lambda x: x["slices"][1].update(index="one"), ["slices[1].index", "expected int"]),
        (lambda x: x["slices"][1].pop("patient") and None, ["slices[1]", "'patient' is missing"]),
        (lambda x: x["volumes"]["a"].update(shape=[1, 2]), ["volumes['a'].shape", "expected 3 values"]),
        (lambda x: x["schema"].update(contrasts=[]), ["0 contrasts", "1 to 16"]),
        (lambda x: x.update(slices=[]), ["holds no slice"]),
        (lambda x: x["slices"].append(x["slices"][0]), [f"lists {FIRST} twice"]),
        (lambda x: [x], ["does not describe"]),
    ],
)
def test_wrong_index(tmp_path, change, words):
    path = write(tmp_path / "x.zip")
    rewrite(path, change)
    with pytest.raises(UserError) as caught:
        ArchiveReader(path).read(0)
    assert all(word in str(caught.value) for word in words), caught.value


def test_other_label_values_make_no_other_channels(tmp_path):
    """The same classes from files of 2018 and of 2023, which number them differently, can be mixed."""
    renumbered = replace(BRATS, classes=tuple(replace(c, value=c.value + 10) for c in BRATS.classes))
    readers = [ArchiveReader(write(tmp_path / f"{n}.zip", schema)) for n, schema in enumerate((BRATS, renumbered))]
    require_same_kind(*readers)
    assert readers[0].schema != readers[1].schema


def test_archives_of_one_kind(tmp_path):
    first = ArchiveReader(write(tmp_path / "x.zip"))
    require_same_kind(first, ArchiveReader(write(tmp_path / "y.zip", stored=draw(BRATS, seed=1))))
    with pytest.raises(UserError, match="t1, t2, flair | MS"):
        require_same_kind(first, ArchiveReader(write(tmp_path / "z.zip", ONE_CLASS)))


# --- processes ------------------------------------------------------------------------------------------------------


def test_a_reader_travels_to_spawned_processes(tmp_path):
    reader = ArchiveReader(write(tmp_path / "x.zip"))
    expected = reader.read(3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(3), expected)


# --- zips -----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_a_zip_to_others(tmp_path):
    """zipfile and this reader find the same members with the same content; equal contents give equal bytes."""
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
    """Beyond 65,535 members and 4 GB, where a zip's numbers become 64 bits wide."""
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
    """All read at random through one open file: a shared position would mix up their slices."""
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
