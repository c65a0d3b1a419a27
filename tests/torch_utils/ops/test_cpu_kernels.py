"""The CPU kernels as built for several kinds of processor, and with sanitizers: cpu_kernels/fuzz.cpp."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from emulation.harness import CHECKED, ENVIRONMENT, SOURCES, has_sanitizer
from torch_utils.ops import build

HERE = Path(__file__).parent / "cpu_kernels"
TORCH = Path(torch.__file__).parent


def understands(feature: str) -> bool:
    return Path("/proc/cpuinfo").exists() and f" {feature} " in Path("/proc/cpuinfo").read_text().replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine, feature, options",
    [
        ("native", None, [*CHECKED, "-O1", "-DOPS_CACHES=1"]),
        ("x86-64-v3", "avx2", ["-O3", "-DOPS_CACHES=8192"]),
        ("x86-64", None, ["-O3", "-DOPS_CACHES=1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_kernels_meet_their_equations(machine, feature, options, tmp_path):
    """Run the kernels on memory that ends where tensors end, with several numbers of threads.

    OPS_CACHES makes the caches small, so that results are stored past them whenever possible.
    """
    if machine != "native" and platform.machine() != "x86_64" or feature and not understands(feature):
        pytest.skip(f"this processor does not run programs for {machine}")
    if not has_sanitizer(tmp_path):
        pytest.skip("no g++ with AddressSanitizer here: the CPU kernels are tested through PyTorch only")
    usual = ("-O", "-march", "-fopenmp")  # the test chooses these itself
    flags = [flag for flag in build.LIBRARIES["cpu"].flags if not flag.startswith(usual)]
    flags += [*options, f"-march={machine}", f"-I{HERE}", f"-I{SOURCES}", f"-isystem{TORCH}/include"]
    libraries = [f"-L{TORCH}/lib", "-lc10", f"-Wl,-rpath,{TORCH}/lib"]
    subprocess.run(
        ["g++", "-std=c++20", *flags, HERE / "fuzz.cpp", "-o", tmp_path / "fuzz", *libraries],
        check=True,
    )
    run = subprocess.run([tmp_path / "fuzz", "200"], env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
