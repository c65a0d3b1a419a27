"""Fixtures for all tests; what tests share besides lies in helpers/, such as helpers/drawn.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.drawn import write_archive
from helpers.operator_faces import native_operators
from torch_utils.ops import native


@pytest.fixture(params=["reference", "cpu", "cuda"])
def face(request) -> Iterator[str]:
    """The test runs three times: with the operators in plain PyTorch, with those compiled for this CPU, and with those
    compiled for the GPU, if there is one; new tensors then are there."""
    if request.param == "reference":
        with native.reference_only():
            yield request.param
    else:
        with native_operators(request.param):
            yield request.param


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "drawn.zip")


@pytest.fixture
def odd_folder(tmp_path) -> Path:
    """A folder whose name is not UTF-8."""
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/M\xfcller \xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    return folder
