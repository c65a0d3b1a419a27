"""Plan of an experiment: its arms and replicates as a graph of jobs that train and test one U-Net each.

This file imports neither torch nor numpy, so that --help answers at once. experiment_checks.py opens the archives
before any training; collect.py collects the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.cli import arguments
from dnnlib.code_hash import ROOT
from dnnlib.jobs import OUT, Job, Programs, result_of
from segmentation.arms import NONE, Arm, baseline

# A U-Net is trained and tested again if the sources of these files, or those that they import, have changed.
PROGRAMS = Programs(
    ROOT,
    {"segmentation train": ("segmentation/fit.py",), "segmentation evaluate": ("segmentation/evaluate.py",)},
)
# Options of a U-Net's training; docs/experiment.md says how they were chosen.
RECIPES: dict[str, dict[str, Any]] = {
    "small": {"steps": 2000, "batch": 8, "width": 8, "lr": 0.005},  # for 64×64 pixels on a laptop
    "full": {"steps": 20000, "batch": 32, "width": 32, "lr": 0.001},  # for 256×256 pixels on a GPU
}
TABLE1 = "Table 1: U-Nets trained on real slices, fakes, or both"
TABLE2 = "Table 2: U-Nets trained on few real slices"
MARGIN = 0.03  # of non-inferiority, in Dice
WRITTEN = ("results.csv", "results.json", "report.html", "report.md", "figures")  # when all jobs are done
HALF, DOUBLE = "half", "double"  # names of the trainings that show whether an arm has converged
REPLICATE = "{r}"  # stands for the replicate's number in --fake
MOST_REPLICATES = 100


@dataclass(frozen=True)
class Plan:
    """What an experiment trains and tests."""

    name: str  # table1, table2 or arms
    title: str
    arms: tuple[Arm, ...]
    replicates: int
    options: Mapping[str, Any]  # of every training, as option -> value; without seed
    seed: int  # of the first U-Net of each arm
    margin: float  # of non-inferiority, in Dice
    convergence: bool  # train each arm for ½ and 2 times the steps as well
    folder: str = ""  # of its files, below the graph's output folder; empty: that folder itself

    @property
    def uses_fakes(self) -> bool:
        return any(arm.fakes for arm in self.arms)

    @property
    def most_fakes(self) -> int:
        """How many times as many fakes as real slices the arms need."""
        return max(arm.fakes for arm in self.arms)

    @property
    def baseline(self) -> Arm | None:
        """The arm of real slices alone, or None."""
        return baseline(self.arms)


@dataclass(frozen=True)
class Archives:
    """What an experiment reads: paths of archives, or results of jobs that make them."""

    real: str
    fakes: tuple[str, ...]  # one for all replicates, one for each, or none
    test: str
    val: str | None = None

    def fake(self, replicate: int) -> str:
        """The fakes of a replicate, counted from 1."""
        return self.fakes[0] if len(self.fakes) == 1 else self.fakes[replicate - 1]


def fakes_of(pattern: str | None, replicates: int) -> tuple[str, ...]:
    """The archives that --fake stands for: one for each replicate if it holds {r}."""
    if pattern is None:
        return ()
    if REPLICATE not in pattern:
        return (pattern,)
    return tuple(pattern.replace(REPLICATE, str(r)) for r in range(1, replicates + 1))


@dataclass(frozen=True)
class Trial:
    """One U-Net of an experiment: trained in one job, tested in another."""

    plan: Plan
    arm: Arm
    replicate: int
    budget: str = ""  # HALF, DOUBLE, or empty for the experiment's own number of steps

    @property
    def steps(self) -> int:
        steps = self.plan.options["steps"]
        return {HALF: max(1, steps // 2), DOUBLE: 2 * steps}.get(self.budget, steps)

    @property
    def words(self) -> str:
        """For the user."""
        length = f", {self.budget} the steps" if self.budget else ""
        return f"{self.arm.name}, replicate {self.replicate}{length}"

    @property
    def train_job(self) -> str:
        return self._job("unet")

    @property
    def test_job(self) -> str:
        return self._job("test")

    @property
    def model(self) -> str:
        """The U-Net's file, below the output folder."""
        return f"{self._folder('unets')}/unet.safetensors"

    @property
    def record(self) -> str:
        return f"{self._folder('unets')}/training.json"

    @property
    def results(self) -> str:
        return f"{self._folder('tests')}/results.json"

    def jobs(self, archives: Archives) -> Iterator[Job]:
        """The job that trains the U-Net, and the one that tests it."""
        chosen = {
            "arm": self.arm.notation,
            "real": archives.real,
            "fake": archives.fake(self.replicate) if self.arm.fakes else None,
            "exclude": archives.test,
            "val": archives.val,
            **self.plan.options,
            "steps": self.steps,
            "seed": self.arm.seed(self.plan.seed, self.replicate),
            "outdir": f"{OUT}/{self._folder('unets')}",
        }
        read = [chosen["real"], chosen["fake"], chosen["exclude"], chosen["val"]]
        yield Job(
            self.train_job,
            purpose=f"train a U-Net on {self.words}",
            command=["-m", "segmentation", "train", *arguments(chosen)],
            inputs=[archive for archive in read if archive is not None],
            outputs=[self.model, self.record],
            kind="U-Net" if self.arm.augment == NONE else f"U-Net, {self.arm.augment}",
            work=self.steps,
        )
        tested = {"model": result_of(self.train_job), "data": archives.test, "outdir": f"{OUT}/{self._folder('tests')}"}
        yield Job(
            self.test_job,
            purpose=f"test that U-Net ({self.words})",
            command=["-m", "segmentation", "evaluate", *arguments(tested)],
            inputs=[tested["model"], archives.test],
            outputs=[self.results, f"{self._folder('tests')}/patients.png"],
            kind="test",
            work=1,
        )

    def _job(self, what: str) -> str:
        """Name of a job."""
        return "-".join([*filter(None, [self.plan.folder]), what, self.arm.slug, self.budget or str(self.replicate)])

    def _folder(self, what: str) -> str:
        parts = [*filter(None, [self.plan.folder]), what, self.arm.slug, self.budget or str(self.replicate)]
        return "/".join(parts)


def replicates_of(plan: Plan) -> Iterator[Trial]:
    """All U-Nets that the tables are made from, arm after arm within each replicate."""
    for replicate in range(1, plan.replicates + 1):
        for arm in plan.arms:
            yield Trial(plan, arm, replicate)


def convergence_of(plan: Plan) -> Iterator[Trial]:
    """The U-Nets trained for ½ and 2 times the steps."""
    if plan.convergence:
        for arm in plan.arms:
            yield Trial(plan, arm, 1, HALF)
            yield Trial(plan, arm, 1, DOUBLE)


def agreement_results(plan: Plan, number: int) -> str:
    """Results of the real-trained U-Net on the fakes of a number, below the output folder."""
    return "/".join([*filter(None, [plan.folder]), "agreement", str(number), "results.json"])


def experiment_jobs(plan: Plan, archives: Archives) -> list[Job]:
    """All jobs of an experiment."""
    trials = [*replicates_of(plan), *convergence_of(plan)]
    return [job for trial in trials for job in trial.jobs(archives)] + list(_agreement_jobs(plan, archives))


def _agreement_jobs(plan: Plan, archives: Archives) -> Iterator[Job]:
    """Test the first real-trained U-Net on each archive of fakes: do their labels fit their pictures?"""
    if plan.baseline is None:
        return
    model = result_of(Trial(plan, plan.baseline, 1).train_job)
    for number, fake in enumerate(archives.fakes, start=1):
        results = agreement_results(plan, number)
        folder = str(Path(results).parent)
        yield Job(
            "-".join([*filter(None, [plan.folder]), "agreement", str(number)]),
            purpose=f"test a U-Net of real slices on the labels of fakes {number}",
            command=[
                *("-m", "segmentation", "evaluate"),
                *arguments({"model": model, "data": fake, "outdir": f"{OUT}/{folder}"}),
            ],
            inputs=[model, fake],
            outputs=[results, f"{folder}/patients.png"],
            kind="agreement",
            work=1,
        )
