"""Options made from dataclass fields: help text, parsing, and messages about refused values."""

from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dnnlib.cli import HELP, Checked, arguments, given, like, limited, option, options
from dnnlib.config import from_json, optional, to_json
from dnnlib.errors import UserError


def two() -> int:
    return 2


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    data: tuple[str, ...] = option("Archives.", metavar="ZIP")
    steps: int = option("Steps.", least=1, most=100)
    rate: float = option("Learning rate.", default=1e-3, above=0, example=0.001)
    share: float | None = option("Share.", default=None, least=0, below=1, noun="a share", shown="as they come")
    edge: float = option("Edge.", default=200.0, above=0, below=1000)
    mirror: bool = option("Flips.", default=False)
    form: str = option("Form.", default="nifti", choices=("nifti", "png"))
    wanted_class: str | None = option("Class.", default=None, flag="--class", metavar="NAME|N")
    out_dir: Path | None = option("Folder.", default=None)
    exclude: tuple[str, ...] = option("Others.", default=(), optional=True)
    workers: int = option("Processes.", default=two, shown="number of CPUs of this machine, but no more than 8")
    dry_run: bool = option("Stop early.", switch=True, short="-n")
    found: int = 7  # no option


GIVEN = {"data": ("a.zip",), "steps": 3}


@click.command(context_settings=HELP)
@options(Options, "told")
@click.option("--more", default=1)
def record(told, more):
    click.echo(repr((told, more)))


@click.command(context_settings=HELP)
@options(Options, "told", unless_given="the recipe's")
def changes(told):
    click.echo(repr(told))


@click.command(context_settings=HELP)
@options(Options, "told", unless_given="the recipe's", decides=("rate", "share"))
def decided(told):
    click.echo(repr(told))


def call(command, *words, code=0) -> str:
    result = CliRunner().invoke(command, words)
    assert result.exit_code == code and (result.exception is None or code), (result.output, result.exception)
    return result.output


def test_help_tells_default_range_and_choices_in_the_order_of_the_fields():
    text = " ".join(call(record, "-h").split())
    words = [
        "--data ZIP Archives. [required]",
        "--steps INTEGER Steps. [from 1 to 100] [required]",
        "--rate FLOAT Learning rate. [default: 0.001; above 0]",
        "--share FLOAT Share. [default: as they come; from 0 to below 1]",
        "--edge FLOAT Edge. [default: 200; between 0 and 1000]",
        "--mirror BOOL Flips. [default: 0]",
        "--form [nifti|png] Form. [default: nifti]",
        "--class NAME|N Class.",
        "--out-dir PATH Folder.",
        "--exclude TEXT Others.",
        "--workers INTEGER Processes. [default: number of CPUs of this machine, but no more than 8]",
        "-n, --dry-run Stop early.",
        "--more INTEGER",
    ]
    places = [text.index(line) for line in words]
    assert places == sorted(places) and "found" not in text and text == " ".join(call(record, "--help").split())


def test_help_names_who_decides_what_was_not_given():
    text = " ".join(call(changes, "-h").split())
    assert "Learning rate. [default: 0.001; above 0]" in text and "Folder. [default: the recipe's]" in text
    text = " ".join(call(decided, "-h").split())
    assert "Learning rate. [default: the recipe's; above 0]" in text and "Flips. [default: 0]" in text
    assert call(decided, "--rate=2") == "{'rate': 2.0}\n"


def test_values_have_the_types_of_the_annotations():
    assert call(record, "--data=a.zip", "--steps=3") == f"{(Options(**GIVEN), 1)!r}\n"
    words = ["--data=a.zip", "--data=b.zip", "--steps=3", "--rate=1", "--share=0", "--mirror=1", "--form=png"]
    words += ["--class=2", "--out-dir=x", "--exclude=c.zip", "--workers=0", "-n", "--more=4"]
    expected = Options(
        data=("a.zip", "b.zip"),
        steps=3,
        rate=1.0,
        share=0.0,
        mirror=True,
        form="png",
        wanted_class="2",
        out_dir=Path("x"),
        exclude=("c.zip",),
        workers=0,
        dry_run=True,
    )
    assert call(record, *words) == f"{(expected, 4)!r}\n"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 0}, "--steps 0: expected a whole number from 1 to 100"),
        ({"steps": 10**400}, f"--steps {10**17}...{'0' * 19}: expected a whole number from 1 to 100"),
        ({"rate": 0}, "--rate 0: expected a number above 0, such as 0.001"),
        ({"rate": float("inf")}, "--rate inf: expected a number above 0, such as 0.001"),
        ({"rate": float("nan")}, "--rate nan: expected a number above 0, such as 0.001"),
        ({"share": 1.0}, "--share 1: expected a share from 0 to below 1"),
        ({"edge": 1000.0}, "--edge 1000: expected a number between 0 and 1000"),
    ],
)
def test_values_out_of_bounds_are_one_message_and_code_2(values, message):
    words = arguments({**GIVEN, **values})
    assert call(record, *words, code=2) == f"error: {message}\n" == call(changes, *words, code=2)
    with pytest.raises(UserError) as error:
        Options(**{**GIVEN, **values})
    with pytest.raises(UserError):
        replace(Options(**GIVEN), **values)
    assert str(error.value) == message


def test_what_click_refuses_has_code_2_as_well():
    for words in (["--steps=3"], ["--data=a", "--steps=x"], ["--data=a", "--steps=1", "--form=gif"], ["--found=3"]):
        assert "Error: " in call(record, *words, code=2)
    with pytest.raises(UserError, match="^--form gif: expected one of nifti, png$"):
        Options(**GIVEN, form="gif")


def test_only_what_is_given_changes_a_recipe():
    assert call(changes) == "{}\n"
    assert call(changes, "--steps=3", "--mirror=0", "--rate=0.5") == "{'steps': 3, 'rate': 0.5, 'mirror': False}\n"
    text = " ".join(call(changes, "-h").split())
    assert "Learning rate. [default: 0.001; above 0]" in text and "[default: as they come; from 0" in text
    assert "required" not in text and "Steps. [default: the recipe's; from 1 to 100]" in text


def test_arguments_are_what_is_typed():
    assert arguments({"map_depth": 2, "fp32": True, "lr": 0.01, "subset": None, "data": ("a", "b"), "exclude": ()}) == [
        "--map-depth=2",
        "--fp32=1",
        "--lr=0.01",
        "--data=a",
        "--data=b",
    ]
    assert given({"a": 0, "b": None, "c": (), "d": False}) == {"a": 0, "d": False}
    values = {**GIVEN, "rate": 1e-7, "share": 0.1, "mirror": True, "out_dir": Path("a b"), "exclude": ("x", "y z")}
    assert call(record, *arguments(values)) == f"{(Options(**values), 1)!r}\n"


@dataclass(frozen=True)
class Stored(Checked):
    channel_max: int = limited(name="--cmax", least=1, most=64)
    num_maps: int = limited(default=0, least=0)
    clamp: float | None = limited(default=None, least=0, most=16)
    rate: float = like(Options, "rate", default=0.5)
    later: str = limited(default="", optional=True)
    old: tuple[int, ...] = optional(())


def test_records_with_limits_are_stored_and_checked_when_read():
    assert to_json(Stored(8)) == {"channel_max": 8, "num_maps": 0, "clamp": None, "rate": 0.5}
    for one in (Stored(8), Stored(8, 1, 2.5, 2.0, "x", (1,))):
        assert from_json(Stored, to_json(one)) == one
    stored = to_json(Options(**GIVEN))
    assert "exclude" not in stored and from_json(Options, {**stored, "out_dir": None}) == Options(**GIVEN)
    for values, message in [
        ({"channel_max": -8}, "Stored: --cmax -8: expected a whole number from 1 to 64"),
        ({"channel_max": 8, "num_maps": -1}, "Stored: num_maps -1: expected a whole number from 0 up"),
        ({"channel_max": 8, "clamp": -1.5}, "Stored: clamp -1.5: expected a number from 0 to 16"),
        ({"channel_max": 8, "rate": 0.0}, "Stored: --rate 0: expected a number above 0, such as 0.001"),
        ({"channel_max": 1 << 62}, r"Stored: --cmax 4611686018427387904: expected a whole number from 1 to 64"),
    ]:
        with pytest.raises(UserError, match=f"^{message}$"):
            from_json(Stored, values)
