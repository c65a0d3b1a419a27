"""Failures: what log.txt keeps, and what the terminal shows, of a process that is alone."""

import json

import click
import pytest
from click.testing import CliRunner

from dnnlib.errors import Failure, UserError, reports_user_errors
from dnnlib.failures import LostPeer, Record, failure_log, leave_record, read_record, record_of


@pytest.mark.parametrize(
    "error, status, message, logged",
    [
        (UserError("3 is not 4"), 2, "error: 3 is not 4", "error: 3 is not 4\n"),
        (Failure("no memory left"), 1, "error: no memory left", "Failure: no memory left\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (more in {log})", "KeyError: 'x'\n"),
        (LostPeer("another one is gone"), 1, "error: another one is gone", ""),
    ],
)
def test_the_log_has_the_traceback_and_the_terminal_a_line(tmp_path, error, status, message, logged):
    log = tmp_path / "log.txt"
    log.write_text("")

    @click.command()
    @reports_user_errors
    def command():
        with failure_log(log, "Continue with: again"):
            raise error

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (status, f"{message.format(log=log)}\nContinue with: again\n")
    assert log.read_text().endswith(logged) and bool(logged) == bool(log.read_text())
    assert log.read_text().startswith("Traceback") == (status == 1 and bool(logged))


def test_no_log_can_be_written(tmp_path):
    with pytest.raises(Failure, match="ZeroDivisionError"), failure_log(tmp_path / "gone" / "log.txt", "go on"):
        raise ZeroDivisionError


def test_a_record_reaches_the_launcher(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    for error, expected in [
        (UserError("bytes \udcff"), Record("bytes \udcff", 2, "", "", False, 0)),
        (LostPeer("gone", advice="again"), Record("gone", 1, "again", "", True, 0)),
    ]:
        leave_record(record_of(error))
        record = read_record(json.loads(path.read_text()))
        assert record is not None and record.time > 1e9 and record._replace(time=0) == expected
    leave_record(record_of(KeyError("x")))
    record = read_record(json.loads(path.read_text()))
    assert record is not None and record.traceback.endswith("KeyError: 'x'\n") and record.message == "KeyError: 'x'"
    assert read_record({"message": "<NONE>"}) is None
