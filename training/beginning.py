"""From options to a run: everything is decided and checked first. Then the run folder is made, or the old one held."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dnnlib.config import from_json, to_json
from dnnlib.errors import UserError
from dnnlib.files import make_folder, sha256, write_json
from dnnlib.publish import recover_all
from dnnlib.runs import Log, held_run_folder, make_run_folder
from dnnlib.text import count
from slices.dataset import SliceDataset
from slices.leaks import doubts, refuse_leaks
from torch_utils.distributed import World, default_device
from torch_utils.precision import has_bfloat16
from training.ada import LEAKS, leak_warning
from training.augment.pipes import parse_pipe
from training.config import DEFAULT_PIPE, AugmentConfig, TrainingConfig, precision_of
from training.options import DataConfig, FolderOptions, RunOptions
from training.recipes import BF16, FP16, NOAUG, notes
from training.resuming import (
    OPTIONS_FILE,
    Request,
    StoredRun,
    combine,
    configure,
    go_on,
    read_run,
    refuse_changes,
    refuse_other_data,
    run_to_begin_or_continue,
    run_to_resume,
)
from training.run import Run
from training.snapshot import has_snapshot
from training.source import Source, read_source
from training.state_file import LoadedState, cut_back, find_states, load_state, newest_state
from training.transfer_plan import describe_freezing, effective, plan_transfer


@dataclass(frozen=True)
class Given:
    """What the command line gave: field -> value, without the options that were left out."""

    data: Mapping[str, Any]  # of DataConfig
    options: Mapping[str, Any]  # of RunOptions
    recipe: Mapping[str, Any]  # of Recipe


@dataclass(frozen=True)
class Plan:
    """What a call of train.py is going to do. Nothing is made yet."""

    before: StoredRun | None  # the run to continue; None: a new one begins
    now: StoredRun  # what its folder is going to store
    dataset: SliceDataset
    source: Source | None  # weights to begin with; None: random ones, or those of the run's state
    remarks: list[str]


class Begun(NamedTuple):
    """A run that can be trained."""

    run: Run
    dataset: SliceDataset
    log: Log  # silent in all processes but the first
    options: RunOptions


# --- decide -----------------------------------------------------------------------------------------------------------


def make_plan(folders: FolderOptions, given: Given, processes: int) -> Plan:
    """Decide what to do, and raise UserError if it can't be done. Writes nothing."""
    if (gpus := given.options.get("gpus", processes)) != processes:
        raise UserError(f"--gpus {gpus}, but torchrun has started {processes} processes: leave out --gpus")
    before = run_to_resume(folders.resume) if folders.resume is not None else None
    if folders.run_dir is not None:
        before = run_to_begin_or_continue(folders.run_dir)
    request = combine(before, folders.resume is not None, given.data, given.options, given.recipe, processes)
    folder = folders.resume or folders.run_dir or ""
    if before is not None:
        _refuse_to_begin_over_snapshots(Path(folder))
        if not Path(request.data.path).exists() and "path" not in given.data:
            raise UserError(
                f"{request.data.path}: this run's archive is not there any more; --data gives its new place"
            )
    dataset = open_dataset(request.data, request.options.seed)
    exclude = given.options.get("exclude", ())
    refuse_leaks([dataset.archive], exclude)
    data_sha256 = sha256(dataset.archive.path)
    if before is not None:
        refuse_other_data(before, request.data.path, data_sha256)
    config = configure(request, dataset.schema, dataset.resolution, dataset.c_dim)
    has_state = before is not None and bool(find_states(Path(folder)))
    transfer = plan_transfer(request, config, dataset, before, has_state, exclude, folders.force)
    config = replace(config, transfer=transfer.record)
    if before is None:
        remarks: list[str] = []
    else:
        config, remarks = go_on(folder, before.config, config, given.recipe.get("batch_gpu"), processes)
    if not has_state:  # the log begins here
        remarks = [*notes(request.options.cfg, dataset.resolution, request.recipe, request.options.gpus), *remarks]
    remarks += describe_data(request.data, dataset, exclude)
    remarks += remarks_on_precision(config, request.recipe.get("precision"), default_device())
    if config.augment is not None:
        remarks += describe_augmentation(config.augment, request.recipe.get("augpipe"), dataset.schema.num_contrasts)
    remarks += [*transfer.remarks, *([] if has_state else describe_freezing(config, transfer.matched))]
    return Plan(before, StoredRun.of(config, request, data_sha256, transfer.known), dataset, transfer.source, remarks)


def open_dataset(data: DataConfig, seed: int) -> SliceDataset:
    """Open the slices to train on."""
    return SliceDataset(data.path, subset=data.subset, mirror=data.mirror, use_labels=data.cond, seed=seed)


def _refuse_to_begin_over_snapshots(folder: Path) -> None:
    """Raise UserError if a run has no state to continue from, but snapshots, which a run that begins would replace."""
    if not find_states(folder) and has_snapshot(folder):
        raise UserError(f"{folder} has snapshots, but no state to continue from: begin in another folder")


# --- begin ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def begun(world: World, folders: FolderOptions, given: Given) -> Iterator[Begun | None]:
    """Begin or continue a run. Yields None if it is finished.

    The first process decides, makes or holds the folder, and checks the archive. The others wait for it, and open what
    it names. The folder belongs to this run until the block ends.
    """
    with contextlib.ExitStack() as held:
        if not world.first:
            told = world.share(None)
            yield None if told is None else _follow(told)
            return
        plan = make_plan(folders, given, world.size)
        folder = _folder(plan, folders)
        held.enter_context(held_run_folder(folder))
        if folders.outdir is None and read_run(folder) != plan.before:
            raise UserError(f"{folder}: another process has trained there in the meantime: give the command again")
        recover_all(folder)
        saved = newest_state(folder) if plan.before is not None else None
        if plan.before is not None and saved is not None:
            found = from_json(TrainingConfig, saved.metadata["config"], str(saved.path))
            refuse_changes(str(saved.path), found, plan.before.config)
        if saved is not None and _is_finished(saved, plan.now.config, folder):
            world.share(None)
            kimg = saved.metadata["position"]["nimg"] / 1000
            print(f"{folder} is finished: it has trained for {kimg:g} kimg, and --kimg can make it longer")
            yield None
            return
        lost = cut_back(folder, saved.metadata["lengths"] if saved is not None else {})
        write_json(folder / OPTIONS_FILE, plan.now)
        log = Log(folder / "log.txt")
        held.callback(log.close)
        if plan.before is not None and saved is None:
            log("The run has no state yet: it begins anew")
        for remark in [*plan.remarks, *(saved.remarks if saved is not None else ()), *lost]:
            log(remark)
        source = plan.source and str(plan.source.path)
        # JSON spells out bytes of a path that are not UTF-8, so paths go as they are.
        world.share([str(folder), plan.now.config.data.path, to_json(plan.now), saved and saved.path.name, source])
        yield _begun(folder, plan.now, saved, plan.dataset, log, plan.source)


def _folder(plan: Plan, folders: FolderOptions) -> Path:
    """Return the run folder, which exists from now on."""
    if folders.outdir is not None:
        return make_run_folder(folders.outdir, describe_run(plan.now.request))
    return make_folder(folders.run_dir or folders.resume or "")


def _is_finished(saved: LoadedState, config: TrainingConfig, folder: Path) -> bool:
    """Return whether nothing is left to do: all images were shown, and the last snapshot is there."""
    nimg = saved.metadata["position"]["nimg"]
    return nimg >= config.kimg * 1000 and has_snapshot(folder, nimg / 1000)


def _follow(told: Sequence[Any]) -> Begun:
    """Open what the first process has told of the run."""
    folder, path, stored, state, source = told
    now = from_json(StoredRun, stored, OPTIONS_FILE)
    now = replace(now, config=replace(now.config, data=replace(now.config.data, path=path)))
    saved = None if state is None else load_state(Path(folder) / state)
    weights = None if source is None else read_source(Path(source))
    return _begun(Path(folder), now, saved, open_dataset(now.config.data, now.config.seed), Log(None), weights)


def _begun(
    folder: Path, now: StoredRun, saved: LoadedState | None, dataset: SliceDataset, log: Log, source: Source | None
) -> Begun:
    options = now.request.options
    run = Run(
        config=now.config,
        folder=folder,
        data_sha256=now.data_sha256,
        saved=saved,
        source=source,
        known=effective(now.known, now.request),
        state_minutes=options.state_minutes,
        max_bad_steps=options.max_bad_steps,
        best=options.best,
    )
    return Begun(run, dataset, log, options)


# --- words ------------------------------------------------------------------------------------------------------------


def describe_run(request: Request) -> str:
    """Return the second half of a run folder's name, in the manner of StyleGAN2-ADA: train-mirror-auto-batch16-ada."""
    data, recipe = request.data, request.recipe
    batch, aug = recipe.get("batch"), recipe.get("aug", NOAUG)
    # A list times False is empty, so each line adds its word only under its condition.
    parts = [re.sub(r"[^A-Za-z0-9_.-]", "_", Path(data.path).stem)]
    parts += ["mirror"] * data.mirror + ["cond"] * data.cond
    parts += [f"subset{data.subset}"] * (data.subset is not None)
    parts += [request.options.cfg] + [f"batch{batch}"] * (batch is not None)
    parts += [aug] * (aug != NOAUG) + ["transfer"] * (request.options.transfer is not None)
    return "-".join(parts)


def describe_data(data: DataConfig, dataset: SliceDataset, exclude: Sequence[str]) -> list[str]:
    """Describe the result of the leak check, and the classes to learn."""
    told = [f"{data.path} shares no patient with {path}, as far as their names tell" for path in exclude]
    told += doubts([dataset.archive], exclude)
    return [*told, "Classes: " + describe_classes(dataset)] if data.cond else told


def remarks_on_precision(config: TrainingConfig, given: str | None, device: torch.device) -> list[str]:
    """Describe a precision given by hand that this device does not compute in.

    Raises UserError if the run needs bfloat16, and this device has none.
    """
    if given == FP16 and device.type != "cuda":
        return ["fp16 is for GPUs: on this device all is computed in float32; --precision=bf16 works here too"]
    if precision_of(config.generator) == BF16 and not has_bfloat16(device):
        raise UserError(
            f"--precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16, which needs compute capability "
            "8.0 or more; use --precision=fp16"
        )
    return []


def describe_augmentation(augment: AugmentConfig, augpipe: str | None, num_contrasts: int) -> list[str]:
    """Describe what the discriminator is going to see, what was left out of it, and what the generator may learn."""
    how = f"each with probability {augment.p:g}"
    if augment.target is not None:
        how = (
            f"each with a probability p that adapts until sign(D) at reals is {augment.target:g} on average; p takes "
            f"{augment.kimg:g} kimg from 0 to 1 at the earliest"
        )
    told = [f"Augments {', '.join(augment.pipe)}, {how}"]
    told += parse_pipe(DEFAULT_PIPE if augpipe is None else augpipe, num_contrasts).remarks
    return told + ([f"warning: {leak_warning(augment.p)}"] if augment.p >= LEAKS else [])


def count_classes(dataset: SliceDataset) -> dict[str, int]:
    """Count the slices to learn from: class label -> number of slices."""
    assert dataset.label_counts is not None
    # Class labels without names are called by their numbers.
    names = dataset.archive.info.label_names or map(str, range(dataset.c_dim))
    return dict(zip(names, dataset.label_counts, strict=True))


def most_frequent_class(dataset: SliceDataset) -> str:
    """Return the class label that most slices have."""
    counts = count_classes(dataset)
    return max(counts, key=lambda name: counts[name])


def describe_classes(dataset: SliceDataset) -> str:
    """Describe the number of slices per class label, and the class labels that can't be generated without slices."""
    counts = count_classes(dataset)
    missing = [name for name, n in counts.items() if not n]
    told = ", ".join(f"{name} ({count(n, 'slice')})" for name, n in counts.items() if n)
    return told + (f"; none of {', '.join(missing)}, so generate.py will refuse these" if missing else "")
