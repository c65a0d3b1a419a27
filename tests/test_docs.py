"""Every command that the README and docs/ show parses, and every file that they name is there."""

import importlib
import re
import shlex
from pathlib import Path

import click
import click.testing
import pytest

import dataset_tool
import generate
import reproduce
import segmentation.__main__
import torch_utils.ops.__main__
import train
import training.report.__main__
from dnnlib.cli import arguments
from helpers.commands import ROOT
from reproduce_jobs import PRESETS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("-m pytest",)  # not ours
PROGRAMS = {
    "dataset_tool.py": dataset_tool.main,
    "train.py": train.main,
    "generate.py": generate.main,
    "reproduce.py": reproduce.main,
    "-m segmentation": segmentation.__main__.main,
    "-m torch_utils.ops": torch_utils.ops.__main__.main,
    "-m training.report": training.report.__main__.main,
}


def commands_on(page: Path) -> list[str]:
    """Commands in the page's code blocks that start one of our programs, through torchrun also."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    ranks = [re.search(r"\btorchrun .*?(\w+\.py [^']*)", line) for line in lines]
    return [line for line in lines if line.startswith("python ")] + [f"python {found[1]}" for found in ranks if found]


def benchmark(name: str) -> click.Command:
    """The command of a file such as benchmarks/training.py."""
    return importlib.import_module(name.removesuffix(".py").replace("/", ".")).main


def parse(words: list[str]) -> None:
    """Parse the words behind `python` as the program would; click raises for what it doesn't know."""
    name = " ".join(words[:2]) if words[0] == "-m" else words[0]
    arguments = words[len(name.split()) :]
    if name in OTHERS:
        assert all((ROOT / a).exists() for a in arguments if a.endswith(".py"))
        return
    command = benchmark(name) if name.startswith("benchmarks/") else PROGRAMS[name]
    if isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page):
    found = commands_on(page)
    assert found or page.name in ("code.md", "statistics.md", "CONTRIBUTING.md", "CHANGELOG.md")
    for line in found:
        try:
            parse(shlex.split(line, comments=True)[1:])
        except click.exceptions.Exit:
            pass  # --help
        except click.ClickException as error:
            pytest.fail(f"{page.name}: {line}\n{error.format_message()}")


def test_what_reproduce_runs_parses():
    for preset in PRESETS.values():
        parse(["dataset_tool.py", "convert", "--source=x", "--dest=y", *arguments(preset.convert)])
        parse(["train.py", "--outdir=x", "--data=y", *arguments(preset.train)])
        parse(["-m", "segmentation", "train", "--data=x", "--outdir=y", *arguments(preset.unet)])
        if preset.phantom:
            parse(["dataset_tool.py", "phantom", "--dest=x", *arguments(preset.phantom)])


def test_the_demo_is_shown_as_it_is():
    (command,) = (c for c in commands_on(ROOT / "docs" / "training.md") if "--cbase" in c)
    assert set(arguments(PRESETS["demo"].train)) - set(command.split()) <= {"--cfg=auto", "--snap=2"}


def test_a_wrong_option_would_be_noticed():
    with pytest.raises(click.ClickException):
        parse(["train.py", "--outdir=x", "--data=y", "--augment=bgc"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_speak_in_one_manner(name):
    """-h and --help; an option's help is a sentence or explains a choice, with its default and limits in brackets."""
    program = PROGRAMS[name]
    for command in [program, *getattr(program, "commands", {}).values()]:
        for option in (p for p in command.params if isinstance(p, click.Option)):
            # As it is printed, with what click adds: it would write limits as x>=1.
            _, help = option.get_help_record(click.Context(command)) or ("", "")
            known = r"(  \[(default: [^][<>]+|(from|above|below|between|up to) [^][<>]+)\])?(  \[required\])?"
            start = "|".join(["[A-Z-]", *(f"{re.escape(choice)}: " for choice in getattr(option.type, "choices", ()))])
            assert re.fullmatch(rf"(?s)({start}).*\.{known}", help), f"{name} {option.opts}: {help}"
    result = click.testing.CliRunner().invoke(program, ["-h"])
    assert result.exit_code == 0 and "-h, --help" in result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_nothing_is_left_to_fill_in(page):
    assert not re.search(r"@[A-Z]+@|TODO|FIXME", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples_import_what_is_there(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec("\n".join(line for line in block.splitlines() if line.startswith(("from ", "import "))), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lines_are_short(page):
    for n, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        assert len(line) <= 120, f"{page.name}, line {n}: {len(line)} characters"


def test_the_map_of_the_code_names_what_is_there():
    """Every file in the drawing of the floors exists in one of the rooms, and every room's files are in it."""
    (drawing,) = re.findall(r"^```\n(4  .*?)^```", (ROOT / "docs" / "code.md").read_text(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"\w+", drawing))
    rooms = ("dnnlib", "slices", "training", "segmentation", "torch_utils")
    files = {path.stem for room in rooms for path in (ROOT / room).rglob("*.py") if "ops" not in path.parts}
    there = files | {path.stem for path in ROOT.glob("*.py")}
    assert set(re.findall(r"(\w+)\.py", drawing)) <= there | {"__main__"}
    in_words = {"joint_head", "export", "nifti_folder", "picture_folder"}
    assert files - {"__init__", "__main__"} - in_words <= named
