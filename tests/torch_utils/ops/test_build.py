"""Tools of a build, messages about a failed one, and a real build of the CUDA library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.commands import ROOT
from torch_utils.ops import build, native
from toys import needs_compiler, script


@pytest.fixture
def toolkit(tmp_path, monkeypatch) -> Path:
    """A CUDA 13.0 toolkit, found through an nvcc that is a script in another folder."""
    home = tmp_path / "toolkit"
    (home / "include").mkdir(parents=True)
    (home / "include/cuda_runtime.h").touch()
    script(
        home / "bin/nvcc",
        'case "$*" in',
        f'*--dryrun*) echo "#$ _HERE_={home}/bin" >&2; echo "#$ TOP={home}/bin/.." >&2;;',
        '*--version*) echo "Cuda compilation tools, release 13.0, V13.0.88";;',
        "*--list-gpu-arch*) echo compute_75; echo compute_80; echo compute_90; echo compute_120;;",
        "esac",
    )
    wrapper = script(tmp_path / "wrapper/bin/nvcc", f'exec {home}/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return home


def test_toolkit_behind_a_wrapper_is_found(toolkit, tmp_path, monkeypatch):
    assert next(build.cuda_homes()) == toolkit
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "nvcc").symlink_to(toolkit / "bin/nvcc")
    monkeypatch.setenv("PATH", f"{linked}{os.pathsep}{os.environ['PATH']}")
    assert next(build.cuda_homes()) == toolkit
    other = shutil.copytree(toolkit, tmp_path / "other")
    monkeypatch.setenv("CUDA_PATH", str(other))
    assert next(build.cuda_homes()) == other
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    assert next(build.cuda_homes()) == other
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert list(build.cuda_homes())[:2] == [toolkit, other]


def test_toolkit_of_another_major_version_is_passed_over(toolkit, monkeypatch):
    monkeypatch.setattr(build, "_cuda_candidates", lambda: [toolkit])
    assert build.cuda_toolkit() == (toolkit, "13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert build.cuda_toolkit() == (toolkit, "13.0")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(build.Unavailable, match="built for CUDA 12.8; found the toolkit 13.0 in .* set CUDA_HOME"):
        build.cuda_toolkit()
    monkeypatch.setattr(build, "_cuda_candidates", list)
    with pytest.raises(build.Unavailable, match="the CUDA toolkit is missing: .* install one of version 12.8"):
        build.cuda_toolkit()


@pytest.mark.parametrize(
    "cards, architectures",
    [
        ([(9, 0)], "9.0"),
        ([(9, 0), (8, 0), (9, 0)], "8.0;9.0"),
        ([(8, 6)], "8.0+PTX"),
        ([(12, 1)], "12.0+PTX"),
        ([(7, 0)], "compute capability 7.0"),
        ([], "no CUDA GPU is visible"),
    ],
)
def test_architectures_are_those_of_the_cards_as_far_as_the_toolkit_knows(toolkit, monkeypatch, cards, architectures):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: cards[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    try:
        assert build.cuda_architectures(toolkit) == architectures
    except build.Unavailable as error:
        assert architectures in str(error)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6+PTX")
    assert build.cuda_architectures(toolkit) == "8.6+PTX"


@needs_compiler
def test_architectures_and_toolkit_hold_for_the_build_alone(toolkit, tmp_path, monkeypatch):
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("toy.cpp", "toy.cu"):
        (sources / name).touch()
    seen = []

    def load(build_directory, **options):
        seen.append((os.environ["TORCH_CUDA_ARCH_LIST"], builder.CUDA_HOME))
        Path(build_directory, "toy.so").touch()

    builder = SimpleNamespace(load=load, CUDA_HOME="before")
    monkeypatch.setattr(build, "_cpp_extension", lambda: builder)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    library = build.Library("cuda", sources, ("toy.cpp", "toy.cu"), ())
    first = native.load(library).file
    assert "TORCH_CUDA_ARCH_LIST" not in os.environ
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    second = native.load(library)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0" and builder.CUDA_HOME == "before"
    assert seen == [("9.0", str(toolkit)), ("8.0", str(toolkit))]
    assert first != second.file and f"CUDA toolkit 13.0 in {toolkit} for 8.0" in second.tools


@pytest.mark.parametrize(
    "log, told",
    [
        ("FAILED: a.o\nc++ -DX a.cpp\na.cpp:1:2: error: not declared\nstopped", "  a.cpp:1:2: error: not declared"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_20'", "set TORCH_CUDA_ARCH_LIST"),
        ("b.h:3:10: fatal error: cusparse.h: No such file or directory", "install the whole CUDA toolkit"),
        ("b.h:3:10: fatal error: Python.h: No such file or directory", "python3-dev"),
        ("/usr/bin/ld: cannot find -lcudart: No such file", "runtime library"),
        ("/opt/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /x/a.so)", "set CXX to an older"),
        ("host_config.h:143:2: error: #error -- unsupported GNU version! gcc", "set CC and CXX"),
        ("g++: error: unrecognized command-line option '-std=c++20'", "install a newer C++ compiler"),
        ("as: No space left on device", "TORCH_EXTENSIONS_DIR"),
        ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)\nninja stopped", "MAX_JOBS=1"),
        ("one\ntwo\nthree", "  one\n  two\n  three"),
    ],
)
def test_what_is_wrong_is_picked_from_the_log(log, told):
    explained = build.explain(log)
    assert told in explained and "FAILED" not in explained and "-DX" not in explained


def run_python(*arguments: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None or not any(build.cuda_homes()), reason="needs a CUDA toolkit")
def test_cuda_library_builds_and_loads_without_a_card(tmp_path):
    code = "from torch_utils.ops import build, native; print(native.load(build.LIBRARIES['cuda']).file)"
    file = run_python("-c", code, TORCH_EXTENSIONS_DIR=str(tmp_path), TORCH_CUDA_ARCH_LIST="9.0")
    assert Path(file.strip()).is_file()
