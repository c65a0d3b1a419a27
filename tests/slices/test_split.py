"""Splits into train and test: drawn by names and seed, or read from a file."""

import json

import pytest

from dnnlib.errors import UserError
from slices.split import draw_split, read_split

PATIENTS = [f"Brats18_{n:03d}" for n in range(210)]


def test_split_of_210_patients():
    split = draw_split(PATIENTS, 0.1, seed=0)
    assert (len(split.train), len(split.test)) == (189, 21)
    assert sorted(split.train + split.test) == PATIENTS


def test_split_depends_on_names_and_seed_alone():
    split = draw_split(PATIENTS, 0.1, seed=0)
    assert draw_split(reversed(PATIENTS), 0.1, seed=0) == split
    assert draw_split(PATIENTS * 2, 0.1, seed=0) == split
    assert draw_split(PATIENTS, 0.1, seed=1) != split
    assert set(split.test) < set(draw_split(PATIENTS, 0.2, seed=0).test)
    assert split.test[:3] == ("Brats18_028", "Brats18_033", "Brats18_035")  # a published split must stay what it is


def test_small_splits():
    assert [len(side) for side in vars(draw_split("ab", 0.1, 0)).values()] == [1, 1]
    assert [len(side) for side in vars(draw_split("abc", 0.99, 0)).values()] == [1, 2]
    with pytest.raises(UserError, match="1 patient .a. can't be split"):
        draw_split("a", 0.1, 0)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"train": ["a"], "test": ["x", "y"]}, "names unknown patients: x, y"),
        ({"train": ["a", "b"], "test": ["b"]}, "names b more than once"),
        ({"train": ["a"]}, "'test' is missing"),
        ({"train": ["a"], "test": ["b"], "val": []}, "unknown field 'val'"),
        ({"train": ["a"], "test": [1]}, "expected str, found 1"),
        ([], "expected an object"),
    ],
)
def test_wrong_split_files(tmp_path, content, words):
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_split(tmp_path / "split.json", ["a", "b", "c"])
    assert words in str(caught.value) and "split.json" in str(caught.value)
