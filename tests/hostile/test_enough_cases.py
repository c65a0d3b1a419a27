"""There are cases enough: a file of tests that lost most of its ways would still pass."""

import importlib

import pytest

LEAST = {
    "test_hostile_arrays": 100,
    "test_hostile_folders": 40,
    "test_hostile_index": 400,
    "test_hostile_networks": 70,
    "test_hostile_nifti": 250,
    "test_hostile_published": 500,
    "test_hostile_zips": 250,
}


@pytest.mark.parametrize("module", LEAST)
def test_every_file_of_tests_has_cases_enough(module):
    cases = importlib.import_module(module).CASES
    assert sum(count for _, count in cases.ways.values()) >= LEAST[module]
