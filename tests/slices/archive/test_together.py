"""Compatibility of archives that are used together."""

from dataclasses import replace

import pytest

from dnnlib.errors import UserError
from helpers.archives import draw, write
from helpers.drawn import ONE_CLASS
from slices.archive.compatible import require_same_kind
from slices.archive.reader import ArchiveReader
from slices.schema import BRATS


def test_other_label_values_make_no_other_channels(tmp_path):
    """The same classes can be mixed, even if BraTS 2018 and 2023 give them other label values."""
    renumbered = replace(BRATS, classes=tuple(replace(c, value=c.value + 10) for c in BRATS.classes))
    readers = [ArchiveReader(write(tmp_path / f"{n}.zip", schema)) for n, schema in enumerate((BRATS, renumbered))]
    require_same_kind(*readers)
    assert readers[0].schema != readers[1].schema


def test_archives_of_one_kind(tmp_path):
    first = ArchiveReader(write(tmp_path / "x.zip"))
    require_same_kind(first, ArchiveReader(write(tmp_path / "y.zip", stored=draw(BRATS, seed=1))))
    with pytest.raises(UserError, match="t1, t2, flair | MS"):
        require_same_kind(first, ArchiveReader(write(tmp_path / "z.zip", ONE_CLASS)))
