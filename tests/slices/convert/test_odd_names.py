"""A source folder with a name that is no valid text: conversion works, and what it stores can be read."""

import os
import subprocess
import sys

from dnnlib import config
from helpers.commands import ROOT
from helpers.drawn import draw_head, write_archive, write_case
from slices.archive.edit import merge
from slices.archive.options import MergeOptions
from slices.archive.reader import ArchiveReader
from slices.convert.cut_cases import Origin, origin_of
from slices.convert.recognition import find_cases
from slices.convert.releases import release_of_name


def test_data_below_a_folder_that_is_no_text_are_converted_and_merged(odd_folder):
    for n in range(2):
        write_case(odd_folder / "source", f"P{n}", draw_head(seed=n))
    options = ["--release", "2018", "--resolution", "64", "--workers", "1"]
    command = [sys.executable, ROOT / "dataset_tool.py", "convert", "--source", odd_folder / "source", "--dest"]
    done = subprocess.run([*command, odd_folder / "\udce9.zip", *options], capture_output=True, env=os.environ)
    assert done.returncode == 0 and rb"M\xfcller \xff/\xe9.zip" in done.stdout, done.stderr
    assert [path.name for path in odd_folder.iterdir() if path.name.startswith(".")] == []
    other = write_archive(odd_folder / "other.zip", resolution=64, count=3)
    merge([odd_folder / "\udce9.zip", other], MergeOptions(odd_folder / "both.zip"))
    made = ArchiveReader(odd_folder / "both.zip").info.made
    assert [source["name"] for source in made["sources"]] == [r"\xe9.zip", "other.zip"]


def test_a_case_cut_from_such_a_folder_is_known_again(odd_folder):
    write_case(odd_folder, "P0", draw_head(seed=0))
    origin = origin_of(find_cases(odd_folder, release_of_name("2018")).cases[0])
    assert config.from_json(Origin, config.to_json(origin)) == origin
    assert origin.files[0].path.endswith(r"/M\xfcller \xff/P0/P0_t1.nii.gz")
