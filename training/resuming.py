"""What a run was asked for, and what may change when it goes on. Decides only: reads one file, imports no torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dnnlib.cli import name_of, show
from dnnlib.config import from_json, optional, shorten, to_json
from dnnlib.errors import UserError
from dnnlib.files import read_json
from dnnlib.text import format_table
from slices.schema import Schema
from training.config import TrainingConfig, precision_of, resolve
from training.division import divide, largest_part
from training.options import DataConfig, RunOptions
from training.recipes import ADA, FIXED, FP16, FP32, NOAUG, Recipe, find_recipe

OPTIONS_FILE = "training_options.json"
FORMAT, VERSION = "stylegan2-mr run", 1
# Fields of a configuration that may change. Others decide what the run computes.
_MAY_CHANGE = {"--data", "--workers", "--kimg", "--snap", "--batch-gpu"}
_PRECISION = {"num_fp16_res", "conv_clamp", "half"}  # what --precision decides


# --- what a run was asked for -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a user asked for: a run's configuration follows from it and from the archive."""

    data: DataConfig
    options: RunOptions  # gpus: the number of processes when the run began, which `auto` and other defaults depend on
    recipe: dict[str, Any]  # values of the recipe given by hand; batch_gpu as when the run began


@dataclass(frozen=True)
class KnownPatients:
    """Patients behind the weights with which a run began. Its fakes may resemble them."""

    names: tuple[str, ...]
    more: bool = False  # the file does not say all of them


@dataclass(frozen=True)
class StoredRun:
    """Content of a run folder's training_options.json."""

    format: str
    version: int
    config: TrainingConfig
    request: Request
    data_sha256: str  # SHA-256 of the archive
    known: KnownPatients | None = optional(None)  # with --transfer

    @classmethod
    def of(
        cls, config: TrainingConfig, request: Request, data_sha256: str, known: KnownPatients | None = None
    ) -> StoredRun:
        """Return the content to store now. Paths get their folders: a run may go on from another one."""
        data = replace(request.data, path=os.path.abspath(request.data.path))
        options = request.options
        if options.transfer is not None:
            options = replace(options, transfer=os.path.abspath(options.transfer))
        return cls(FORMAT, VERSION, config, replace(request, data=data, options=options), data_sha256, known)


def read_run(folder: Path) -> StoredRun | None:
    """Read what a folder's run was asked for. None: there is no run. Raises UserError if the file can't be used."""
    path = folder / OPTIONS_FILE
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{folder} holds a run of an earlier version, which can't continue: begin a new one elsewhere")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: version {shorten(content.get('version'))} of the format of runs; this program reads version "
            f"{VERSION}: continue with the program that wrote it"
        )
    return from_json(StoredRun, content, str(path))


def run_to_resume(folder: str) -> StoredRun:
    """Return the run of `--resume FOLDER`. Raises UserError that says what is there instead."""
    path = Path(folder)
    if path.is_file():
        what = "a snapshot" if path.name.startswith("network-snapshot-") else "a file"
        raise UserError(f"--resume {path} is {what}; it takes the run folder: --resume={path.parent}")
    if not path.is_dir():
        raise UserError(f"--resume {path}: no such folder; --run-dir={path} begins a run there")
    found = read_run(path)
    if found is None:
        raise UserError(f"--resume {path}: no run of train.py is there, as {OPTIONS_FILE} is missing")
    return found


def run_to_begin_or_continue(folder: str) -> StoredRun | None:
    """Return the run of `--run-dir FOLDER`. None: it is to begin. Raises UserError if something else is there."""
    path = Path(folder)
    if not path.exists():
        return None
    if not path.is_dir():
        raise UserError(f"--run-dir {path} is a file; expected a run folder, or the name of a new one")
    found = read_run(path)
    # Hidden files are locks, and what killed processes have left behind.
    if found is None and (others := sorted(name for name in os.listdir(path) if not name.startswith("."))):
        raise UserError(
            f"--run-dir {path} holds {shorten(others[0])}, but no run of train.py: choose an empty or a new folder"
        )
    return found


def combine(
    stored: StoredRun | None,
    resume: bool,
    data: Mapping[str, Any],
    options: Mapping[str, Any],
    recipe: Mapping[str, Any],
    processes: int,
) -> Request:
    """Return what is asked for now.

    stored: the run to continue, if there is one. resume: options that are not given are those of the stored run.
    data, options, recipe: values that were given, by the names of their fields.
    """
    before = stored.request if stored is not None else None
    if resume and before is not None:
        both = {**_with_precision(before.recipe), **_with_precision(recipe)}
        request = Request(replace(before.data, **data), replace(before.options, **options), both)
    elif "path" not in data:
        raise UserError(
            "--data is missing: the archive to train on, made by dataset_tool.py; a run that is there goes on with "
            "--resume=FOLDER"
        )
    else:
        request = Request(DataConfig(**data), RunOptions(**options), _with_precision(recipe))
    began = before or replace(request, options=replace(request.options, gpus=processes))
    # Defaults follow from how the run began, so that it is the same run on another number of processes.
    kept = {name: value for name, value in request.recipe.items() if name != "batch_gpu"}
    kept |= {name: value for name, value in began.recipe.items() if name == "batch_gpu"}
    return Request(request.data, replace(request.options, gpus=began.options.gpus), kept)


def _with_precision(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return given values of a recipe with --fp32 as --precision. Raises UserError if the two contradict each other."""
    kept = dict(recipe)
    if (fp32 := kept.pop("fp32", None)) is None:
        return kept
    precision = kept.setdefault("precision", FP32 if fp32 else FP16)
    if fp32 != (precision == FP32):
        raise UserError(f"--fp32={int(fp32)} and --precision={precision} contradict each other: give one of them")
    return kept


def configure(request: Request, schema: Schema, resolution: int, c_dim: int) -> TrainingConfig:
    """Return the configuration that a run with this request begins with. Raises UserError for values that don't fit."""
    options = request.options
    found = to_json(find_recipe(options.cfg, resolution, options.gpus))
    try:
        recipe = from_json(Recipe, {**found, **request.recipe}, "recipe")
    except UserError as error:  # options that don't go together are named as they were given
        raise UserError(str(error).removeprefix("recipe: ")) from None
    return resolve(
        recipe,
        request.data,
        schema,
        resolution,
        c_dim,
        seed=options.seed,
        snap=options.snap,
        gpus=options.gpus,
        tf32=options.tf32,
        transfers=options.transfer is not None,
    )


# --- how a run goes on ------------------------------------------------------------------------------------------------


def refuse_other_data(stored: StoredRun, path: str, sha256: str) -> None:
    """Raise UserError if the archive is not the one that the run learns from."""
    if sha256 != stored.data_sha256:
        raise UserError(
            f"{path} (SHA-256 {sha256[:12]}…) is not the archive that this run learns from, "
            f"{stored.request.data.path} (SHA-256 {stored.data_sha256[:12]}…), nor a copy of it"
        )


def refuse_changes(where: str, stored: TrainingConfig, asked: TrainingConfig) -> None:
    """Raise UserError with a table of all values that differ, but must not while a run goes on. where: of `stored`."""
    before, now = _facts(stored), _facts(asked)
    changed = [name for name in before | now if before.get(name) != now.get(name) and name not in _MAY_CHANGE]
    if changed:
        rows = [(name, *_told_apart(before.get(name), now.get(name))) for name in changed]
        raise UserError(
            f"{where} holds a run with other options, which can't change while it goes on; --resume takes its own:\n\n"
            f"{format_table(('field', 'run', 'now'), rows)}"
        )


def go_on(
    folder: str, stored: TrainingConfig, asked: TrainingConfig, batch_gpu: int | None, processes: int
) -> tuple[TrainingConfig, list[str]]:
    """Return the configuration with which a run goes on, and remarks on it.

    asked: the configuration that a new run would begin with. batch_gpu: given by hand; None: as the run had it, if its
    parts divide over the processes. Raises UserError with a table if they differ in what can't change.
    """
    refuse_changes(folder, stored, asked)
    part, remarks = _part(stored, batch_gpu, processes)
    return replace(asked, batch_gpu=part), remarks


def _facts(config: Any) -> dict[str, Any]:
    """Return the values of a configuration by the names of their options, or of their fields where there are none."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "augment":
            found["--aug"] = NOAUG if value is None else FIXED if value.target is None else ADA
        if dataclasses.is_dataclass(value):
            found |= _facts(value)
        elif field.name in _PRECISION:
            found["--precision"] = precision_of(config)
        elif field.name == "augment":
            continue
        else:
            found[name_of(field)] = value
    return found


def _told_apart(before: Any, now: Any) -> tuple[str, str]:
    """Format two values that differ such that the texts differ too."""
    texts = tuple("none" if value is None else show(value) for value in (before, now))
    return texts if texts[0] != texts[1] else (repr(before), repr(now))  # type: ignore[return-value]


def _part(config: TrainingConfig, batch_gpu: int | None, processes: int) -> tuple[int, list[str]]:
    """Return the images of a part when a run goes on, and remarks if there are more or fewer than before.

    The group size of the minibatch standard deviation stays. So only path length regularization notices.
    """
    batch, group = config.batch, min(config.discriminator.mbstd_group_size, config.batch_gpu)
    if batch_gpu is None:
        part = largest_part(batch, config.batch_gpu, group, processes)
        if part is None or part < group:
            whole = batch // group
            counts = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
            raise UserError(
                f"--batch {batch} over {processes} GPUs does not divide into groups of {group} on each, which this "
                f"run has: use --gpus with one of {counts}"
            )
    else:
        part, found = divide(batch, batch_gpu, group, processes)
        if found < group:
            raise UserError(f"--batch-gpu {batch_gpu} does not divide into groups of {group}, which this run has")
    if part == config.batch_gpu:
        return part, []
    effect = (
        "path lengths are now compared with the mean of other parts: another run, statistically as good"
        if config.loss.pl_weight
        else "nothing changes but rounding"
    )
    return part, [f"batch-gpu {part} instead of {config.batch_gpu}: {effect}"]
