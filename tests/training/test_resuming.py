"""What may change when a run goes on, and what is refused."""

import json
from dataclasses import replace

import pytest

from dnnlib.config import from_json, to_json
from dnnlib.errors import UserError
from dnnlib.files import write_json
from slices.schema import BRATS
from training.resuming import (
    StoredRun,
    combine,
    configure,
    go_on,
    read_run,
    refuse_other_data,
    run_to_begin_or_continue,
    run_to_resume,
)

HAND = {"batch": 16, "z_dim": 64}  # the recipe's values that the run was begun with


def begun(processes=2, data=(), options=(), **recipe) -> StoredRun:
    """A run as a folder stores it."""
    data = {"path": "/data/x.zip", **dict(data)}
    request = combine(None, False, data, dict(options), {**HAND, **recipe}, processes)
    return StoredRun.of(configure(request, BRATS, 64, 0), request, "1" * 64)


def goes_on(stored, processes=2, resume=True, data=(), options=(), **recipe):
    """The configuration and the remarks of a call that continues a run."""
    request = combine(stored, resume, dict(data), dict(options), recipe, processes)
    return go_on("runs/x", stored.config, configure(request, BRATS, 64, 0), recipe.get("batch_gpu"), processes)


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        goes_on(*arguments, **options)
    return str(caught.value)


def test_a_run_is_stored_and_read(tmp_path):
    stored = begun(options={"exclude": ("test.zip",), "tf32": True, "best": "fid:max"}, kimg=3, gamma=2)
    write_json(tmp_path / "training_options.json", stored)
    assert read_run(tmp_path) == stored == run_to_resume(str(tmp_path)) == run_to_begin_or_continue(str(tmp_path))
    assert stored.request.options.gpus == 2 and stored.config.batch_gpu == 8 and stored.config.tf32
    assert from_json(StoredRun, json.loads(json.dumps(to_json(stored)))) == stored


def test_the_archives_path_gets_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert begun(data={"path": "x.zip"}).request.data.path == str(tmp_path / "x.zip")


def test_what_is_not_given_stays():
    stored = begun(data={"mirror": True}, options={"cfg": "stylegan2", "seed": 3, "state_minutes": 2.0}, gamma=5)
    assert goes_on(stored) == (stored.config, [])
    request = combine(stored, True, {}, {"max_bad_steps": 7}, {"kimg": 9}, processes=2)
    assert request == replace(
        stored.request,
        options=replace(stored.request.options, max_bad_steps=7),
        recipe={**stored.request.recipe, "kimg": 9},
    )


def test_what_may_change_changes():
    stored = begun(kimg=3)
    options = {"snap": 7, "gpus": 1, "state_minutes": 1.0, "max_bad_steps": 3, "nobench": True, "best": "fid"}
    config, remarks = goes_on(
        stored, processes=1, data={"path": "/new/place.zip", "workers": 5}, options=options, kimg=5, batch_gpu=4
    )
    assert config == replace(
        stored.config,
        data=replace(stored.config.data, path="/new/place.zip", workers=5),
        snap=7,
        kimg=5,
        batch_gpu=4,
    )
    assert remarks == [
        "batch-gpu 4 instead of 8: path lengths are now compared with the mean of other parts: another run, "
        "statistically as good"
    ]


@pytest.mark.parametrize(
    "changes, rows",
    [
        ({"options": {"seed": 5}}, ["--seed 0 5"]),
        ({"data": {"mirror": True, "subset": 9}}, ["--mirror 0 1", "--subset none 9"]),
        ({"batch": 32}, ["--batch 16 32"]),
        ({"fp32": True}, ["--precision fp16 fp32"]),
        ({"precision": "bf16"}, ["--precision fp16 bf16"]),
        ({"aug": "ada"}, ["--aug noaug ada", "--target none 0.6", "--ada-kimg none 500"]),
        ({"cbase": 512, "cmax": 32}, ["--cbase 16384 512", "--cmax 512 32"]),
        ({"z_dim": 8}, ["--z-dim 64 8", "--w-dim 64 8"]),
        ({"gamma": 0.0128000001}, ["--gamma 0.0128 0.0128000001"]),
        ({"options": {"tf32": True}}, ["--tf32 0 1"]),
        (
            {"options": {"cfg": "stylegan2"}},
            ["--map-depth 2 8", "--cbase 16384 32768", "--gamma 0.0128 10", "--lrate 0.0025 0.002"],
        ),
    ],
)
def test_what_decides_the_run_can_not_change(changes, rows):
    first, empty, header, line, *table = refusal(begun(), **changes).splitlines()
    told = "runs/x holds a run with other options, which can't change while it goes on; --resume takes its own:"
    assert first == told and not empty
    assert header.split() == ["field", "run", "now"] and set(line) == {"-", " "}
    found = [" ".join(row.split()) for row in table]
    assert found == rows if len(rows) < 3 else set(rows) <= set(found), found


def test_the_older_name_of_a_precision_is_the_same():
    """Also where a run of before has stored it."""
    run = begun(precision="fp32")
    old = replace(run, request=replace(run.request, recipe={**HAND, "fp32": True}))
    assert begun(fp32=True) == run and begun(fp32=True, precision="fp32") == run
    assert begun(fp32=False).config == begun(precision="fp16").config == begun().config
    assert begun(fp32=False, precision="bf16") == begun(precision="bf16")
    for stored in (run, old):
        for same in ({}, {"fp32": True}, {"precision": "fp32"}):
            assert goes_on(stored, **same)[0] == run.config
        for other in ({"fp32": False}, {"precision": "fp16"}):
            assert refusal(stored, **other).split()[-3:] == ["--precision", "fp32", "fp16"]
        assert refusal(stored, precision="bf16").split()[-3:] == ["--precision", "fp32", "bf16"]


@pytest.mark.parametrize("fp32, precision", [(True, "bf16"), (True, "fp16"), (False, "fp32")])
def test_names_of_precisions_that_contradict_each_other(fp32, precision):
    with pytest.raises(UserError, match=f"^--fp32={int(fp32)} and --precision={precision} contradict each other: give"):
        begun(fp32=fp32, precision=precision)


def test_an_unchanged_command_goes_on_and_another_one_is_refused():
    """With --run-dir, an option that is left out has its default, not the run's value."""
    stored = begun(data={"mirror": True}, options={"seed": 3}, kimg=3)
    command = {"resume": False, "data": {"path": "x.zip", "mirror": True}, "options": {"seed": 3}, **HAND, "kimg": 3}
    assert goes_on(stored, **command)[0] == replace(stored.config, data=replace(stored.config.data, path="x.zip"))
    assert "--mirror" in refusal(stored, **{**command, "data": {"path": "x.zip"}})
    assert "--z-dim" in refusal(stored, **{**command, "z_dim": 512})


@pytest.mark.parametrize("cfg", ["auto", "paper256", "cifar"])
def test_another_number_of_processes_is_the_same_run(cfg):
    """Defaults follow from the processes that the run began with; the requeued command has others."""
    request = combine(None, False, {"path": "x.zip"}, {"cfg": cfg, "gpus": 5}, {}, processes=5)
    stored = StoredRun.of(configure(request, BRATS, 64, 0), request, "1" * 64)
    assert (
        stored.config.batch != configure(replace(request, options=replace(request.options, gpus=1)), BRATS, 64, 0).batch
    )
    for resume in (True, False):
        again = combine(stored, resume, {"path": "x.zip"}, {"cfg": cfg, "gpus": 1}, {}, processes=1)
        config, remarks = go_on("f", stored.config, configure(again, BRATS, 64, 0), None, processes=1)
        assert config == stored.config and not remarks


@pytest.mark.parametrize(
    "began, processes, part",
    [
        ({"processes": 1, "batch": 32}, 2, 16),
        ({"processes": 1, "batch": 32}, 8, 4),
        ({"processes": 4, "batch": 32}, 1, 8),
        ({"processes": 4, "batch": 32}, 2, 8),
        ({"processes": 3, "batch": 24}, 2, 4),
        ({"processes": 1, "batch": 24, "batch_gpu": 8}, 3, 8),
    ],
)
def test_parts_divide_over_other_processes(began, processes, part):
    """The parts stay if they divide; otherwise they shrink, and the groups within them stay."""
    stored = begun(**began)
    config, remarks = goes_on(stored, processes)
    assert config == replace(stored.config, batch_gpu=part)
    assert config.discriminator.mbstd_group_size == 4 and config.batch // part % processes == 0
    assert bool(remarks) == (part != stored.config.batch_gpu)
    # A second time, from what is stored then.
    after = StoredRun.of(config, combine(stored, True, {}, {}, {}, processes), "1" * 64)
    assert goes_on(after, processes) == (config, [])


def test_without_path_length_only_rounding_changes():
    assert goes_on(begun(pl_weight=0), processes=4)[1] == ["batch-gpu 4 instead of 8: nothing changes but rounding"]


@pytest.mark.parametrize(
    "processes, batch_gpu, message",
    [
        (3, None, "--batch 16 over 3 GPUs does not divide into groups of 4 on each, .* one of 1, 2, 4$"),
        (8, None, "--batch 16 over 8 GPUs does not divide into groups of 4 on each, .* one of 1, 2, 4$"),
        (4, 8, "--batch 16 over 4 GPUs does not divide into parts of --batch-gpu 8 on each: .* or --batch-gpu 4$"),
        (1, 2, "^--batch-gpu 2 does not divide into groups of 4, which this run has$"),
        (1, 6, "^--batch-gpu 6 does not divide into groups of 4: use 4 or 8$"),
    ],
)
def test_processes_and_parts_that_do_not_fit(processes, batch_gpu, message):
    given = {} if batch_gpu is None else {"batch_gpu": batch_gpu}
    with pytest.raises(UserError, match=message):
        goes_on(begun(), processes, **given)


def test_other_data_is_refused():
    stored = begun()
    refuse_other_data(stored, "/moved/y.zip", "1" * 64)
    with pytest.raises(
        UserError, match=r"^/moved/y.zip \(SHA-256 2{12}…\) is not .* /data/x.zip \(SHA-256 1{12}…\), nor"
    ):
        refuse_other_data(stored, "/moved/y.zip", "2" * 64)


def test_data_is_missing():
    with pytest.raises(UserError, match="^--data is missing"):
        combine(None, False, {"mirror": True}, {}, {}, 1)
    with pytest.raises(UserError, match="^--data is missing"):
        combine(begun(), False, {}, {}, {}, 1)


def test_folders_that_can_not_be_continued(tmp_path):
    """Each ends in one line that says what is there, and nothing changes on the disk."""
    stored = to_json(begun())
    options = {
        "old": {"batch": 4, "seed": 0},
        "newer": {**stored, "version": 2},
        "damaged": {**stored, "config": {}},
        "forged": {**stored, "request": {**stored["request"], "recipe": [1]}},
    }
    for name, content in options.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "training_options.json", content)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "training_options.json").write_text('{"format": ')
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    (tmp_path / "network-snapshot-000004.safetensors").write_text("")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    both = {
        "old": "holds a run of an earlier version, which can't continue",
        "newer": "version 2 of the format of runs; this program reads version 1",
        "damaged": "config: the field 'data' is missing",
        "forged": "recipe: expected an object, found",
        "cut": "not a JSON file",
    }
    resume = {
        "none": "no such folder; --run-dir=",
        "network-snapshot-000004.safetensors": f"is a snapshot; it takes the run folder: --resume={tmp_path}",
        "file": "is a file; it takes the run folder",
        "empty": "no run of train.py is there",
        "foreign": "no run of train.py is there",
    }
    run_dir = {
        "file": "is a file; expected a run folder",
        "foreign": "holds 'thesis.tex', but no run of train.py: choose an empty or a new folder",
    }
    for find, expected in ((run_to_resume, both | resume), (run_to_begin_or_continue, both | run_dir)):
        for name, message in expected.items():
            with pytest.raises(UserError) as caught:
                find(str(tmp_path / name))
            assert message in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "empty" / ".lock").write_text("")
    assert run_to_begin_or_continue(str(tmp_path / "none")) is None
    assert run_to_begin_or_continue(str(tmp_path / "empty")) is None
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "empty" / ".lock"])


def test_values_of_the_recipe_are_checked_when_they_are_read():
    stored = begun()
    for recipe, message in [
        ({"batch": "16"}, "batch: expected int"),
        ({"gama": 1}, "unknown field"),
        ({"map_depth": 0}, "--map-depth 0"),
    ]:
        with pytest.raises(UserError, match=message):
            configure(replace(stored.request, recipe=recipe), BRATS, 64, 0)
