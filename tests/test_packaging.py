"""A checkout that runs from its root: installed in place only, its names found before a stranger's, or else a word."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib.jobs import Graph, Job, Programs
from dnnlib.slots import Slots
from helpers.commands import ROOT


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_environment_yml_lists_what_pyproject_does():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["demo"], *extras["dev"]]
    yml = (ROOT / "environment.yml").read_text()
    assert re.findall(r"^      - (\S+)$", yml, re.MULTILINE) == listed
    assert all(f"pip install '{requirement}'" in yml for requirement in extras["tensorboard"])
    readme = (ROOT / "README.md").read_text()
    for requirement in listed + extras["tensorboard"]:
        name = re.match(r"[a-z0-9]+", requirement)[0]
        assert re.search(rf"^\| `{name}`", readme, re.MULTILINE), f"the README gives no reason for {name}"


@pytest.fixture
def strangers(tmp_path, monkeypatch) -> Path:
    """A working folder with modules of this project's names. None of them may run."""
    for name in ("train.py", "dataset_tool.py", "config.py", "slices/__init__.py", "dnnlib/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a stranger runs')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("program", [[str(ROOT / "segmentation")], ["-m", "segmentation"], [str(ROOT / "train.py")]])
def test_modules_of_the_working_folder_are_not_taken_for_the_projects(strangers, program):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("Usage: "), done.stderr


def test_jobs_run_the_projects_own_segmentation(strangers):
    (strangers / "segmentation.py").write_text("raise SystemExit('a stranger runs')")
    (strangers / "record.txt").write_text("of an earlier run")
    command = ["-m", "segmentation", "train", "--help"]
    job = Job("unet", "", command, [], ["record.txt"], replaces=False)
    Graph(strangers, Programs(ROOT, {}), [job]).run(Slots(1))
