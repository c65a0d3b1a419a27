"""With which weights a run begins, and which patients are behind them: decided from options and from the run so far."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import sha256
from dnnlib.text import count, name_some
from slices.archive.reader import ArchiveReader
from slices.dataset import SliceDataset
from slices.leaks import refuse_known, refuse_known_test_part, warn_of_alike
from training.config import TrainingConfig, Transferred
from training.resuming import KnownPatients, Request, StoredRun
from training.source import Source, find_source, read_source
from training.transfer import Match, NewNetworks, describe, match, refuse_too_little


@dataclass(frozen=True)
class TransferPlan:
    """What `--transfer` comes to. Everything is None without it."""

    record: Transferred | None = None  # for the configuration
    known: KnownPatients | None = None
    source: Source | None = None  # weights to begin with; None: random ones, or those of the run's state
    matched: Match | None = None  # what is copied; None: nothing, or it is not known any more
    remarks: tuple[str, ...] = ()


def plan_transfer(
    request: Request,
    config: TrainingConfig,
    dataset: SliceDataset,
    before: StoredRun | None,
    has_state: bool,
    exclude: Sequence[str],
    force: bool,
) -> TransferPlan:
    """Decide which weights a run begins with. A run that has a state goes on from there, and its source is not read.

    before: the run to continue; None: a new one. exclude: archives whose patients the source must not know. force:
    begin although less than half of the weights fit. Raises UserError.
    """
    asked, silent = request.options.transfer, request.options.no_patients
    if before is not None:
        _refuse_another_source(before, asked)
    if asked is None:
        if silent:
            raise UserError("--no-patients speaks of the file of --transfer, but there is none")
        if force:
            raise UserError("--force is for --transfer, but there is none; leave it out")
        return TransferPlan()
    if before is not None and has_state:
        plan = TransferPlan(before.config.transfer, before.known)
    else:
        plan = _read(asked, config, dataset, before, force)
    assert plan.known is not None
    if silent and not plan.known.more:
        told = f"{count(len(plan.known.names), 'patient')}: {name_some(plan.known.names)}"
        raise UserError(f"--no-patients, but {asked} names {told}; leave it out")
    refuse_known_test_part(f"--transfer {asked}", plan.known.names, dataset.archive)
    return TransferPlan(
        plan.record,
        plan.known,
        plan.source,
        plan.matched,
        (*plan.remarks, *_on_patients(asked, plan.known, silent, exclude)),
    )


def effective(known: KnownPatients | None, request: Request) -> KnownPatients | None:
    """Return the patients behind the weights, as the user completes them: with --no-patients there are no others."""
    return KnownPatients(known.names) if known is not None and request.options.no_patients else known


def _refuse_another_source(before: StoredRun, asked: str | None) -> None:
    """Raise UserError if a run that goes on is given another source than it began with."""
    record, stored = before.config.transfer, before.request.options.transfer
    if record is None and asked is not None:
        raise UserError(
            f"--transfer {asked}: this run began without, and goes on with its own weights: leave it out, or begin a "
            "run in another folder"
        )
    if record is not None and asked is None:
        raise UserError(f"this run began with --transfer={stored}: give that again, or continue with --resume")
    if record is None or asked is None or os.path.abspath(asked) == stored:
        return
    if (found := sha256(find_source(asked))) != record.sha256:
        raise UserError(
            f"--transfer {asked} (SHA-256 {found[:12]}…) is not what this run began with, {stored} (SHA-256 "
            f"{record.sha256[:12]}…), nor a copy of it: leave it out, or begin a run in another folder"
        )


def _read(
    asked: str, config: TrainingConfig, dataset: SliceDataset, before: StoredRun | None, force: bool
) -> TransferPlan:
    """Read the source, and compare it with the new networks. A run that begins anew must find the same file again."""
    record = None if before is None else before.config.transfer
    if record is not None and os.path.isdir(asked):  # there may be later snapshots now
        path = Path(asked, record.name)
    else:
        path = find_source(asked)
    if record is not None and not path.exists():
        raise UserError(
            f"{path}: this run begins with its weights, but it is not there any more; --transfer gives its new place"
        )
    source = read_source(path)
    if record is not None and source.sha256 != record.sha256:
        raise UserError(
            f"{path} (SHA-256 {source.sha256[:12]}…) has changed since this run began (SHA-256 {record.sha256[:12]}…): "
            "begin a run in another folder"
        )
    names = dataset.archive.info.label_names if config.data.cond else None
    new = NewNetworks(dataset.schema, config.generator, config.discriminator, names)
    matched = match(source, new)
    if record is None and not force:
        refuse_too_little(source, new, matched)
    return TransferPlan(
        record or Transferred(path.name, source.sha256, source.kimg, matched.share),
        KnownPatients(source.patients or (), source.more_patients),
        source,
        matched,
        tuple(describe(source, new, matched)),
    )


def _on_patients(asked: str, known: KnownPatients, silent: bool, exclude: Sequence[str]) -> Iterator[str]:
    """Remarks on the patients behind a source. Raises UserError if one of them is in an archive to exclude."""
    if known.names:
        yield f"{asked} learned from {count(len(known.names), 'patient')}: snapshots of this run name them too"
    for path in exclude:
        archive = ArchiveReader(path)
        refuse_known(f"--transfer {asked}", known.names, archive, "--exclude")
        yield from warn_of_alike(known.names, archive.info.known_patients)
    others, none = ("other patients", "no others") if known.names else ("patients", "none")
    if known.more and silent:
        yield f"{asked} does not say which {others} it learned from: from {none}, as --no-patients says"
    elif known.more:
        yield (
            f"warning: {asked} does not say which {others} it learned from, so snapshots of this run won't either, and "
            f"generate.py makes pictures of them, but no archives; if it has learned from {none}, say so with "
            "--no-patients=1"
        )
    elif exclude:
        yield f"{asked} knows no patient of {', '.join(exclude)}, as far as their names tell"


def describe_freezing(config: TrainingConfig, matched: Match | None) -> list[str]:
    """Describe which layers of the discriminator are frozen, and warn of those that stay random. Empty for none."""
    if not config.frozen:
        return []
    copied = {one.name.removeprefix("D.") for one in matched.of("copied")} if matched is not None else set()
    random = [layer for layer in config.frozen if f"{layer}.weight" not in copied]
    told = [f"Frozen in the discriminator: {', '.join(config.frozen)}"]
    if random:
        told.append(
            f"warning: {', '.join(random)} will keep random weights, and learn nothing; --freezed is for layers that "
            "--transfer copies"
        )
    return told
