"""A release of five small patients."""

import shutil

import pytest

from helpers.layouts import write_five_patients


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Five small patients; read only."""
    return write_five_patients(tmp_path_factory.mktemp("data") / "release")


@pytest.fixture
def copy(release, tmp_path):
    """The same patients, to be damaged."""
    return shutil.copytree(release, tmp_path / "release")
