"""Mistakes become one message and exit code 2; bugs stay tracebacks."""

import errno

import click
from click.testing import CliRunner

from dnnlib.errors import UserError, reports_user_errors


def test_user_errors_and_full_disks_end_with_code_2_and_bugs_with_a_traceback():
    @click.command()
    @click.argument("what")
    @reports_user_errors
    def command(what):
        raise {
            "user": UserError("3 is not 4: use 4"),
            "disk": OSError(errno.ENOSPC, "No space left on device", "x.zip"),
            "bug": KeyError("x"),
        }[what]

    invoke = CliRunner().invoke
    assert (invoke(command, ["user"]).exit_code, invoke(command, ["user"]).output) == (2, "error: 3 is not 4: use 4\n")
    disk = invoke(command, ["disk"])
    assert disk.exit_code == 2 and disk.output.startswith("error: x.zip: No space left on device; free some space")
    assert isinstance(invoke(command, ["bug"]).exception, KeyError)
