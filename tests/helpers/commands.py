"""Calls of dataset_tool.py as a user makes them, and checks of their result."""

import re
from pathlib import Path

from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]  # of the checkout


def call(*arguments, expected=0, command=None):
    """Run a program in this process, check its exit code, and return everything that it printed.

    command: by default dataset_tool.py.
    """
    if command is None:
        import dataset_tool  # here, so that worker processes of tests that only need ROOT start faster

        command = dataset_tool.main
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expected, result.output
    return result.output.replace("\r", "\n")  # progress bars go back to the start of the line


def refused(output, *words):
    """Assert that the program ends with one message that contains these words, and no traceback."""
    errors = re.findall(r"^error: .*", output, re.MULTILINE)
    assert len(errors) == 1 and "Traceback" not in output, output
    assert all(str(word) in errors[0] for word in words), errors[0]


def convert(source, dest, *arguments, expected=0):
    """Convert at 64×64 pixels. Returns everything that the program printed."""
    return call(
        "convert", "--source", source, "--dest", dest, "--resolution", 64, "--workers", 1, *arguments, expected=expected
    )


def convert_2018(source, dest, *arguments, expected=0):
    """Convert cases of any names in the layout of BraTS 2018."""
    return convert(source, dest, "--release", 2018, *arguments, expected=expected)


def content(folder):
    """Files that a user sees in a folder: name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
