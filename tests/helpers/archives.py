"""Small archives of random slices, spoiled and refused."""

import io
import json
import zipfile

import numpy as np
import pytest

from dnnlib.errors import UserError
from slices.archive.format import INDEX, Volume
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS

RESOLUTION = 8
FIRST = "slices/00000/00000000.npy"
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


def refused(path, *words):
    """Reading everything raises one UserError that names the file and contains the words."""
    with pytest.raises(UserError) as caught:
        reader = ArchiveReader(path)
        for i in range(len(reader)):
            reader.read_checked(i)
    message = str(caught.value)
    assert all(word in message for word in (str(path), *words)), message
