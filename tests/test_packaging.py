"""A checkout that runs from its root: installed in place only, its names found before a stranger's, or else a word."""

import importlib.util
import os
import subprocess
import sys

import pytest

from commands import ROOT


def run(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, **options)


@pytest.mark.parametrize("call", [("-m", "slices"), ("-c", "import slices.schema")])
def test_another_projects_dnnlib_is_named(tmp_path, call):
    """StyleGAN2-ADA and many others have a package of this name, and Python looks into the working folder first."""
    (tmp_path / "dnnlib").mkdir()
    (tmp_path / "dnnlib" / "__init__.py").write_text("class EasyDict(dict): pass\n")
    found = run(*call, cwd=tmp_path)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert found.stderr.startswith(f"error: another project's dnnlib was found first: {tmp_path}")


@pytest.mark.parametrize(
    ("call", "usage"),
    [
        (("-m", "slices"), "python -m slices"),
        (("-m", "training"), "python -m training"),
        ((ROOT / "slices",), "python"),
    ],
)
def test_packages_run_as_their_programs_do(tmp_path, call, usage):
    found = run(*call, "--help", cwd=tmp_path)
    assert found.returncode == 0 and found.stdout.startswith(f"Usage: {usage}"), found.stderr


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="setuptools is not installed")
def test_nothing_is_copied_into_site_packages(tmp_path):
    """Names such as train and slices are too plain to lie among everybody's modules."""
    found = run("setup.py", "build", "--build-base", str(tmp_path), cwd=ROOT)
    assert found.returncode and "install it with: pip install --editable ." in found.stderr
    assert not list(tmp_path.rglob("*.py"))
