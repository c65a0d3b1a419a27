"""Results of an experiment's finished jobs, collected into one Study."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib import config as configs
from dnnlib.code_hash import ROOT
from dnnlib.errors import UserError
from dnnlib.files import read_json, sha256
from dnnlib.text import count, tool_version
from segmentation.archive_content import ArchiveContent, content_of
from segmentation.archive_facts import collect_facts
from segmentation.arms import Arm
from segmentation.evaluate import load_evaluation
from segmentation.experiment import DOUBLE, HALF, Archives, Plan, Trial, agreement_results, replicates_of
from segmentation.fit import TrainRecord
from segmentation.report import about_data, about_names, about_pixels
from segmentation.results import Row, by_patient
from segmentation.scores import Evaluation, headline_of, pooled_dice, targets_of
from segmentation.statistics import Comparison, compare_all, family
from segmentation.study import GAIN, Agreement, Archive, Convergence, Study, TrainedUNet
from slices.archive.reader import ArchiveReader


def collect(plan: Plan, archives: Archives, outdir: Path, commands: Sequence[str]) -> Study:
    """Collect the results of a plan whose jobs are all done. archives: paths. commands: that were run, for the page.

    Raises UserError if an archive or a U-Net is no longer the one that the results are of.
    """
    used = _Used(_archive(archives.real), tuple(map(_archive, archives.fakes)), _archive(archives.test))
    unets = {(t.arm.name, t.replicate): _trained(t, used, outdir) for t in replicates_of(plan)}
    first = next(iter(unets.values())).evaluation
    rows = tuple(row for trial in replicates_of(plan) for row in _rows(trial, unets, used))
    content = _content(plan, used)
    return Study(
        name=plan.name,
        title=plan.title,
        schema=first.model.info.schema,
        arms=plan.arms,
        replicates=plan.replicates,
        options=_options(first),
        margin=plan.margin,
        real=used.real,
        fakes=used.fakes,
        test=used.test,
        val=None if archives.val is None else _archive(archives.val),
        rows=rows,
        comparisons=_comparisons(plan, rows, first),
        unets=unets,
        convergence=tuple(_convergence(plan, arm, unets, used, outdir) for arm in plan.arms if plan.convergence),
        content=content,
        agreement=tuple(_agreements(plan, unets, used, outdir)),
        gans=_count_gans(used.fakes) if plan.uses_fakes else 0,
        notes=tuple(_notes(unets, content)),
        commands=tuple(commands),
        made=describe_machine([one.record for one in unets.values()]),
    )


@dataclass(frozen=True)
class _Used:
    """The archives of an experiment as they are now."""

    real: Archive
    fakes: tuple[Archive, ...]  # as in Archives
    test: Archive

    def fake(self, trial: Trial) -> Archive | None:
        """The fakes that a U-Net learns from."""
        if not trial.arm.uses_fakes:
            return None
        return self.fakes[0] if len(self.fakes) == 1 else self.fakes[trial.replicate - 1]

    def learned(self, trial: Trial) -> list[Archive]:
        """The archives that a U-Net learns from, in the order of `UNetInfo.archives`."""
        return [one for one in (self.real if trial.arm.uses_real else None, self.fake(trial)) if one is not None]


def _options(evaluation: Evaluation) -> dict[str, Any]:
    """Options that every training had, those that nobody gave too: all but seed and augmentation, which differ."""
    told = configs.to_json(evaluation.model.info.training)
    return {name: value for name, value in told.items() if name not in ("seed", "augment") and value is not None}


# --- U-Nets and rows --------------------------------------------------------------------------------------------------


def _archive(path: str) -> Archive:
    reader = ArchiveReader(path)
    snapshots = sorted({record.snapshot for record in reader.info.slices if record.snapshot is not None})
    return Archive(Path(path), collect_facts(reader), tuple(snapshots))


def _trained(trial: Trial, used: _Used, outdir: Path) -> TrainedUNet:
    record = outdir / trial.record
    return TrainedUNet(
        model=outdir / trial.model,
        record=configs.from_json(TrainRecord, read_json(record), str(record)),
        evaluation=_evaluation(trial, used, outdir),
    )


def _evaluation(
    trial: Trial, used: _Used, outdir: Path, results: str | None = None, tested: Archive | None = None
) -> Evaluation:
    """Load the test of a U-Net. results, tested: its results and their archive, if not those on the test patients.

    Raises UserError if the U-Net or an archive has changed meanwhile: the rows would name a file that they are not of.
    """
    path, tested = outdir / (results or trial.results), tested or used.test
    found = load_evaluation(path)
    info = found.model.info
    pairs = [
        (outdir / trial.model, sha256(outdir / trial.model), found.model.sha256),
        (tested.path, tested.facts.sha256, found.data.sha256),
        *((a.path, a.facts.sha256, b.sha256) for a, b in zip(used.learned(trial), info.archives, strict=True)),
    ]
    for file, now, then in pairs:
        if now != then:
            raise UserError(
                f"{file} is not the file that {path} is of, so it has changed since the jobs began: call the same "
                "command again, which makes anew what depends on it"
            )
    return found


def _rows(trial: Trial, unets: dict[tuple[str, int], TrainedUNet], used: _Used) -> Iterator[Row]:
    """The rows of one U-Net: every examination with every target."""
    unet, fake = unets[trial.arm.name, trial.replicate], used.fake(trial)
    for examination in unet.evaluation.examinations:
        for target in targets_of(unet.evaluation.model.info.schema):
            found = examination.result(target)
            yield Row(
                experiment=trial.plan.name,
                arm=trial.arm.name,
                replicate=trial.replicate,
                patient=examination.patient,
                examination=examination.volume or examination.patient,
                kind=target.kind,
                target=target.name,
                dice=found.dice,
                masked_dice=found.masked_dice,
                hd95_mm=found.hd95,
                truth_voxels=found.truth,
                predicted_voxels=found.predicted,
                outside_voxels=found.removed,
                truth_empty=not found.is_present,
                prediction_empty=found.predicted == 0,
                unet_seed=unet.evaluation.model.info.training.seed,
                gan="+".join(fake.snapshots) if fake else "",
                unet_sha256=unet.evaluation.model.sha256,
                real_sha256=used.real.facts.sha256 if trial.arm.uses_real else "",
                fake_sha256=fake.facts.sha256 if fake else "",
                test_sha256=used.test.facts.sha256,
            )


def _count_gans(fakes: Sequence[Archive]) -> int:
    """How many GANs made the fakes. Archives that don't name their snapshots count as of one GAN each."""
    return len({fake.snapshots or fake.facts.sha256 for fake in fakes})


# --- comparisons ------------------------------------------------------------------------------------------------------


def _comparisons(plan: Plan, rows: Sequence[Row], first: Evaluation) -> tuple[Comparison, ...]:
    """Every claim of the table for every region, or for every label if there are no regions, with Holm's correction."""
    claims = family(plan.name, [arm.name for arm in plan.arms], plan.margin)
    return compare_all(claims, headline_of(first.model.info.schema), lambda arm, target: by_patient(rows, arm, target))


# --- diagnostics ------------------------------------------------------------------------------------------------------


def _convergence(
    plan: Plan, arm: Arm, unets: dict[tuple[str, int], TrainedUNet], used: _Used, outdir: Path
) -> Convergence:
    """Dice of the first replicate after ½, 1 and 2 times the steps."""
    half, double = Trial(plan, arm, 1, HALF), Trial(plan, arm, 1, DOUBLE)
    less, more = (_evaluation(trial, used, outdir) for trial in (half, double))
    same, targets = unets[arm.name, 1].evaluation, targets_of(less.model.info.schema)
    dice = {t.title: (less.summary(t).mean, same.summary(t).mean, more.summary(t).mean) for t in targets}
    _, once, twice = dice[targets[0].title]
    return Convergence(arm.name, (half.steps, plan.options["steps"], double.steps), dice, twice - once > GAIN)


def _content(plan: Plan, used: _Used) -> dict[str, ArchiveContent]:
    """Areas and specks of the real slices, and of the fakes that the arms learn from."""
    found = {"real": content_of(ArchiveReader(used.real.path))}
    most = max(1, plan.most_fakes) * used.real.facts.slices
    for number, fake in enumerate(used.fakes, start=1):
        reader = ArchiveReader(fake.path)
        found[f"fakes {number}"] = content_of(reader, min(most, len(reader)))
    return found


def _agreements(
    plan: Plan, unets: dict[tuple[str, int], TrainedUNet], used: _Used, outdir: Path
) -> Iterator[Agreement]:
    """How well the first real-trained U-Net agrees with the labels of test patients, and with those of fakes."""
    if plan.baseline is None:
        return
    trial = Trial(plan, plan.baseline, 1)
    yield _agreement("test patients", unets[plan.baseline.name, 1].evaluation)
    for number, fake in enumerate(used.fakes, start=1):
        found = _evaluation(trial, used, outdir, agreement_results(plan, number), fake)
        yield _agreement(f"fakes {number}", found)


def _agreement(slices: str, evaluation: Evaluation) -> Agreement:
    targets = targets_of(evaluation.model.info.schema)
    return Agreement(slices, {target.title: pooled_dice(evaluation, target) for target in targets})


# --- words ------------------------------------------------------------------------------------------------------------


def _notes(unets: dict[tuple[str, int], TrainedUNet], content: dict[str, ArchiveContent]) -> Iterator[str]:
    """What a reader of the numbers must know about the data."""
    first = next(iter(unets.values())).evaluation
    yield from about_data(first)
    evaluations = [one.evaluation for one in unets.values()]
    yield from dict.fromkeys(note for one in evaluations for note in (*about_names(one), *about_pixels(one)))
    shares = ", ".join(f"{one.lesion_free:.1%} of the {name}" for name, one in content.items())
    yield f"training slices without lesion: {shares}"


def describe_machine(trainings: Sequence[TrainRecord]) -> dict[str, str]:
    """Versions, commit and hardware, for the page. Trainings may be older than this call, and of another machine."""
    import monai
    import numpy
    import scipy
    import statsmodels

    libraries = {"PyTorch": torch, "MONAI": monai, "NumPy": numpy, "SciPy": scipy, "statsmodels": statsmodels}
    return {
        "StyleGAN2-MR": tool_version(),
        "commit": _commit() or "unknown",
        "Python": platform.python_version(),
        **{name: module.__version__ for name, module in libraries.items()},
        "U-Nets were trained on": "; ".join(sorted({f"{one.device}, {one.libraries}" for one in trainings})),
        "this machine": f"{platform.system()} {platform.machine()}, {_processor()}",
    }


def _commit() -> str | None:
    """The commit of the checkout, marked if files differ from it. None without git."""
    try:
        # The options keep git from looking above the checkout, where another project may be.
        git = ("git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}")
        told = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    except OSError:
        return None
    return told.stdout.strip() or None


def _processor() -> str:
    """Name of the processor."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return f"{count(len(names), 'core')} of {names[0]}" if names else platform.processor() or "unknown processor"
