"""Folders and split files that can't be converted, and paths that are no files."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from forge import paths_in, put
from helpers.commands import call, refused
from names import BAD_NAMES, HOSTILE_VALUES
from runner import REFUSED, Cases, require

CASES = Cases(__file__)


@CASES.way("cases", 5)
def files_are_missing(bench, random, k):
    with bench.place() as folder:
        name = f"Brats18_X_{k}_1"
        case = bench.write_case(folder / "source", name, dict.fromkeys(random.sample(list(bench.files), 1 + k)))
        options = ("--source", folder / "source", "--dest", folder / "x.zip", "--resolution", 16)
        code, words = bench.call("convert", *options)
        bench.judge(words if code else None, REFUSED, case, folder / "source")
        require(os.listdir(folder) == ["source"], "left behind:", os.listdir(folder))


@CASES.way("cases")
def one_case_in_two_grades(bench, random, k):
    with bench.place() as folder:
        source = folder / "source"
        bench.write_case(source, "Brats18_X_0_1", {})
        shutil.copytree(source / "HGG", source / "LGG")
        code, words = bench.call("convert", "--source", source, "--dest", folder / "x.zip", "--resolution", 16)
        bench.judge(words if code else None, REFUSED, source)


# --- split files ----------------------------------------------------------------------------------------------------

NAMES = ["Brats18_A_1", "Brats18_B_1", "Brats18_C_1"]
GOOD = {"train": NAMES[:2], "test": NAMES[2:]}
TEXT = json.dumps(GOOD)


def try_split(bench, content: bytes) -> None:
    with bench.place() as folder:
        for name in NAMES:
            bench.write_case(folder / "source", name, {})
        path, dest = folder / "split.json", folder / "new"
        path.write_bytes(content)
        options = ("--dest", dest, "--resolution", 16, "--workers", 1, "--split-file", path)
        code, words = bench.call("convert", "--source", folder / "source", *options)
        bench.judge(words if code else None, REFUSED, path)
        require(not dest.exists(), "left behind:", dest)


TEXTS = (
    "",
    "[]",
    "null",
    "{}",
    TEXT[:-1],
    TEXT + "]",
    "\0",
    "\ufeff" + TEXT,
    '{"train": NaN, "test": []}',
    "[" * 960,
    "9" * 5000,
    TEXT.replace(NAMES[0], "\\ud800"),
    f'{{"train": {10**400}, "test": [1e999]}}',
    TEXT[:-1] + ', "test": []}',
)


@CASES.way("split file", len(TEXTS))
def no_split_in_JSON(bench, random, k):
    try_split(bench, TEXTS[k].encode())


DEPTHS = (900, 990, 10_000, 100_000)


@CASES.way("split file", len(DEPTHS))
def nested_deep(bench, random, k):
    depth = DEPTHS[k]
    lists = f'{{"train": {"[" * depth}{"]" * depth}, "test": []}}'
    try_split(bench, (lists if k % 2 else '{"a":' * depth + "1" + "}" * depth).encode())


@CASES.way("split file", 12)
def another_value(bench, random, k):
    split = json.loads(TEXT)
    value = random.choice([value for value in HOSTILE_VALUES if value not in ([], {})])
    put(split, random.choice([path for path in paths_in(split) if len(path) == 1 + k % 2]), value)
    try_split(bench, json.dumps(split).encode("utf-16" if k % 4 == 3 else "utf-8"))


@CASES.way("split file", 4)
def a_patient_that_is_not_there_or_twice(bench, random, k):
    first = (*random.sample(BAD_NAMES, 2), NAMES[1], NAMES[2])[k]
    try_split(bench, json.dumps({"train": [first, NAMES[1]], "test": NAMES[2:]}).encode())


@pytest.mark.parametrize("way", CASES.ways)
def test_refused_or_read_correctly(way):
    CASES.check(way)


# --- paths ----------------------------------------------------------------------------------------------------------

LINKS = (lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, *LINKS], ids=["pipe", "folder", "device", "link to itself"])
def test_what_is_no_file_is_refused_at_once(make, tmp_path):
    make(tmp_path / "x.zip")
    refused(call("inspect", tmp_path / "x.zip", expected=2), tmp_path / "x.zip")
