"""Options of `python -m segmentation experiment`. This file imports no torch, so that --help answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dnnlib.cli import Checked, option
from segmentation.arms import TABLES, parse_arms
from segmentation.config import UNetRecipe
from segmentation.experiment import MARGIN, MOST_REPLICATES, RECIPES, TABLE1, TABLE2, Archives, Plan, fakes_of

AUTO = "auto"
_SMALL = 64  # pixels; up to this resolution `auto` takes the small recipe


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Checked):
    """What `experiment` reads, trains and writes."""

    real: str = option("Archive of real slices to train on.", metavar="ZIP")
    fake: str | None = option(
        "Archive of fakes. With {r} in it, such as 'fake-{r}.zip', replicate r takes the r-th: let each be of a GAN "
        "of its own.",
        default=None,
        metavar="ZIP",
    )
    test: str = option("Archive of the patients to test on.", metavar="ZIP")
    val: str | None = option(
        "Archive of other patients, on which curves are drawn. Nothing is selected by it.", default=None, metavar="ZIP"
    )
    arms: str = option(
        f'Arms such as "R; F; 3F+R*full"; or table1 ({TABLES["table1"]}), table2 ({TABLES["table2"]}).',
        default="table1",
    )
    replicates: int = option(
        "U-Nets of each arm, with a seed each, and with fakes of a GAN each if --fake has {r}.",
        default=5,
        least=1,
        most=MOST_REPLICATES,
    )
    outdir: str = option("Folder for all results; the same command continues there.", metavar="DIR")
    seed: int = option("Seed of the first U-Net of each arm.", default=0, least=0, most=2**31)
    margin: float = option(
        "F is not inferior to R if its Dice is at most so much lower.", default=MARGIN, above=0, below=1, example=MARGIN
    )
    convergence: bool = option(
        "Also train each arm for half and for two times the steps, to show whether the steps were enough.", default=True
    )
    cfg: str = option(
        "Recipe of the U-Nets: small for 64×64 pixels, full for 256×256; auto chooses by the resolution.",
        default=AUTO,
        choices=(AUTO, *RECIPES),
    )

    @property
    def archives(self) -> Archives:
        return Archives(self.real, fakes_of(self.fake, self.replicates), self.test, self.val)


def plan_experiment(asked: ExperimentOptions, given: Mapping[str, Any], resolution: int) -> Plan:
    """Plan an experiment. given: options of the trainings that the user gave. resolution: pixels of the slices.

    Raises UserError for unknown notation of arms, and for options of the trainings that don't go together.
    """
    name = asked.arms.strip().lower()
    recipe = asked.cfg if asked.cfg != AUTO else "small" if resolution <= _SMALL else "full"
    options = RECIPES[recipe] | dict(given)
    UNetRecipe(**options)  # refuses values that don't go together
    return Plan(
        name=name if name in TABLES else "arms",
        title={"table1": TABLE1, "table2": TABLE2}.get(name, "Comparison of arms"),
        arms=parse_arms(asked.arms),
        replicates=asked.replicates,
        options=options,
        seed=asked.seed,
        margin=asked.margin,
        convergence=asked.convergence,
    )
