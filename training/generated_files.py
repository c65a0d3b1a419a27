"""Generated slices written to files: pictures to look at, or an archive to train on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import atomic_path, make_folder, refuse_existing
from dnnlib.text import count
from slices import render
from slices.archive.history import describe_making
from slices.archive.writer import ArchiveWriter
from training.sampling import Sample
from training.snapshot import LoadedGenerator

LONGEST_CLASS = 100  # characters of a class label in a patient's name
ON_SHEET = 60  # slices on a contact sheet; more would be illegible


@dataclass(frozen=True)
class Generated:
    """Slices of one network, one for each seed."""

    network: LoadedGenerator
    label: int | None  # class label of all slices; None: the network has no classes
    seeds: Sequence[int]
    samples: Iterable[Sample]  # in the order of the seeds; an iterator, so that slices are computed while written

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


def write_pictures(generated: Generated, outdir: Path, force: bool) -> str:
    """Write seedNNNN.png for each seed, and contact_sheet.png with the first ON_SHEET slices. Returns a summary.

    Raises UserError if one of the files exists and `force` is not set. Nothing has been computed then.
    """
    sheet = outdir / "contact_sheet.png"
    panels = {seed: outdir / f"seed{seed:04d}.png" for seed in generated.seeds}
    for path in [*panels.values(), sheet]:
        refuse_existing(path, force)
    make_folder(outdir)
    schema = generated.network.info.schema
    of_class = "" if generated.class_name is None else f", {generated.class_name}"
    first: list[np.ndarray] = []
    for sample in tqdm(generated.samples, total=len(panels), unit="slice"):
        panel = render.panel(sample.stored, schema, title=f"seed {sample.seed}{of_class}")
        render.save(panel, panels[sample.seed], force)
        if len(first) < ON_SHEET:
            first.append(sample.stored)
    render.save(render.sheet(np.stack(first), schema), sheet, force)
    shown = "all" if len(first) == len(panels) else f"the first {len(first)}"
    return f"{count(len(panels), 'panel')}{generated.describe_class()} in {outdir}, {shown} together in {sheet}"


def write_archive(generated: Generated, dest: Path, options: dict[str, Any], force: bool) -> str:
    """Write an archive, which other programs read like an archive of real slices. Returns a summary.

    Every slice becomes one patient, named after snapshot, class label and seed.
    options: the user's options for generation, which the archive stores.
    """
    refuse_existing(dest, force)
    network, info = generated.network, generated.network.info
    if info.patients is None:
        raise UserError(
            f"{network.path} does not say which patients it was trained on, so the leak guard could not check an "
            "archive of its slices: make pictures only (--outdir)"
        )
    snapshot = {"name": network.path.name, "sha256": network.sha256, "kimg": info.kimg}
    made = describe_making("generate.py", options, snapshot=snapshot)
    # "seen": the patients behind the generator count as known to every network that learns from its slices.
    known: dict[str, Any] = {"label_names": info.label_names, "seen": info.patients, "pixel": info.pixel}
    name = f"generated-{network.sha256[:8]}"
    if generated.class_name is not None:
        name += f"-{generated.class_name[:LONGEST_CLASS]}"
    make_folder(dest.parent)
    resolution = network.generator.config.resolution
    with atomic_path(dest, force) as place, ArchiveWriter(place, info.schema, resolution, made, **known) as archive:
        for sample in tqdm(generated.samples, total=len(generated.seeds), unit="slice"):
            patient = f"{name}-seed{sample.seed}"
            archive.add(
                sample.stored, patient=patient, label=generated.label, seed=sample.seed, snapshot=network.sha256
            )
    return f"{count(len(generated.seeds), 'generated slice')}{generated.describe_class()} in {dest}"
