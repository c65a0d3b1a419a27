"""Generated slices written to files: pictures to look at, or an archive to train on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import make_folder, refuse_existing
from dnnlib.text import count
from slices import render
from slices.archive.format import pack_slice, unpack_slice
from slices.archive.history import describe_making
from slices.archive.writer import ArchiveWriter
from torch_utils.distributed import World
from training.gathering import Member, gather, staged_together
from training.sampling import Sample
from training.snapshot import LoadedGenerator

LONGEST_CLASS = 100  # characters of a class label in a patient's name
ON_SHEET = 60  # slices on a contact sheet; more would be illegible


@dataclass(frozen=True)
class Generated:
    """Slices of one network, one for each seed."""

    network: LoadedGenerator
    label: int | None  # class label of all slices; None: the network has no classes
    seeds: Sequence[int]  # of all ranks
    own: Sequence[int]  # seeds of this rank, by `seeds_of_rank`
    samples: Iterable[Sample]  # of this rank, in the order of `own`; an iterator: they are computed while written
    world: World

    def with_progress(self) -> Iterator[Sample]:
        """Yield this rank's samples. The first rank shows how many of its own there are."""
        shared = f"rank 0 of {self.world.size}" if self.world.size > 1 else None
        yield from tqdm(self.samples, shared, len(self.own), unit="slice", disable=not self.world.first)

    @property
    def class_name(self) -> str | None:
        """Name of the class label."""
        return None if self.label is None else self.network.info.label_name(self.label)

    def describe_class(self) -> str:
        """Name the class label, and the number of slices it was learned from. Empty for a network without classes."""
        if self.label is None:
            return ""
        counts = self.network.info.label_counts
        learned = "an unknown number of slices" if counts is None else count(counts[self.label], "slice")
        return f" of class {self.class_name} (learned from {learned})"


def write_pictures(generated: Generated, sheet: Path, force: bool) -> str:
    """Write a contact sheet of the first ON_SHEET slices, and beside it seedNNNN.png for each seed. Returns a summary.

    All ranks call this; each writes its own panels, and the first one the sheet.
    Raises UserError if one of the files exists and `force` is not set. Nothing has been computed then.
    """
    world, schema, outdir = generated.world, generated.network.info.schema, sheet.parent
    panels = {seed: outdir / f"seed{seed:04d}.png" for seed in generated.seeds}
    if world.first:
        for path in [*panels.values(), sheet]:
            refuse_existing(path, force)
        make_folder(outdir)
    on_sheet = generated.seeds[:ON_SHEET]
    with staged_together(sheet, force, world) as place:
        members = gather(_save_panels(generated, panels, set(on_sheet), force), on_sheet, place, world)
        first = [unpack_slice(member.packed) for member in members]
        if world.first:
            render.sheet(np.stack(first), schema).save(place, format="PNG")
    shown = "all" if len(on_sheet) == len(panels) else f"the first {len(on_sheet)}"
    return f"{count(len(panels), 'panel')}{generated.describe_class()} in {outdir}, {shown} together in {sheet}"


def _save_panels(
    generated: Generated, panels: Mapping[int, Path], on_sheet: Collection[int], force: bool
) -> Iterator[Member]:
    """Save the panels of this rank's slices. Yields those slices whose seeds are on the contact sheet."""
    of_class = "" if generated.class_name is None else f", {generated.class_name}"
    for seed, stored in generated.with_progress():
        panel = render.panel(stored, generated.network.info.schema, title=f"seed {seed}{of_class}")
        render.save(panel, panels[seed], force)
        if seed in on_sheet:
            yield Member(seed, pack_slice(stored))


def write_archive(generated: Generated, dest: Path, options: dict[str, Any], force: bool) -> str:
    """Write an archive, which other programs read like an archive of real slices. Returns a summary.

    All ranks call this. Every slice becomes one patient, named after snapshot, class label and seed.
    options: the user's options for generation, which the archive stores.
    """
    network, info, world = generated.network, generated.network.info, generated.world
    if world.first:
        refuse_existing(dest, force)
    if info.all_patients is None:
        silent = "does not say which patients it was trained on"
        if info.more_patients:
            silent = "began with weights (train.py --transfer) that do not say which patients they were trained on"
        raise UserError(
            f"{network.path} {silent}, so the leak guard could not check an archive of its slices: make pictures only "
            "(--outdir)"
        )
    if world.first:
        make_folder(dest.parent)
    with staged_together(dest, force, world) as place:
        computed = (Member(seed, pack_slice(stored)) for seed, stored in generated.with_progress())
        members = gather(computed, generated.seeds, place, world)
        if world.first:
            with _archive_writer(generated, place, options) as archive:
                name = _patients_of(generated)
                for seed, packed in members:
                    archive.add_packed(
                        packed, patient=f"{name}-seed{seed}", label=generated.label, seed=seed, snapshot=network.sha256
                    )
    return f"{count(len(generated.seeds), 'generated slice')}{generated.describe_class()} in {dest}"


def _archive_writer(generated: Generated, path: Path, options: dict[str, Any]) -> ArchiveWriter:
    """Begin an archive that says where its slices come from."""
    network, info = generated.network, generated.network.info
    snapshot = {"name": network.path.name, "sha256": network.sha256, "kimg": info.kimg}
    made = describe_making("generate.py", options, snapshot=snapshot)
    # "seen": the patients behind the generator count as known to every network that learns from its slices.
    known: dict[str, Any] = {"label_names": info.label_names, "seen": info.all_patients, "pixel": info.pixel}
    return ArchiveWriter(path, info.schema, network.generator.config.resolution, made, **known)


def _patients_of(generated: Generated) -> str:
    """The beginning of the names of the slices' patients."""
    name = f"generated-{generated.network.sha256[:8]}"
    return name if generated.class_name is None else f"{name}-{generated.class_name[:LONGEST_CLASS]}"
