"""Reading an archive: anything that doesn't fit is refused with a reason."""

import pickle
import zipfile

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.archives import FIRST, as_npy, draw, refused, rewrite, write
from slices.archive.format import INDEX
from slices.archive.reader import ArchiveReader
from slices.schema import BRATS, LABEL_ON


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
        archive.writestr(INDEX, '{"labels": null}')  # as in archives of pictures from other programs
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
    ids=["shape", "dtype", "objects", "pickle", "empty", "cut off", "no class", "all classes", "gray label maps"],
)
def test_wrong_member(tmp_path, content, words):
    path = write(tmp_path / "x.zip")
    rewrite(path, replace={FIRST: content})
    refused(path, FIRST, *words)


def test_label_maps_are_one_hot_in_every_pixel_or_refused(tmp_path):
    """Wrong bytes are noticed, even if they cancel: two classes at one pixel and none at another, or 127 + 128."""
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
