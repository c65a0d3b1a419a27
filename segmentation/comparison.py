"""Arms of an experiment side by side: U-Nets that learned from different slices, tested on one archive."""

from __future__ import annotations

from collections.abc import Mapping

from dnnlib.errors import UserError
from dnnlib.text import count
from segmentation.report import MASK, OUTSIDE_HEAD, Table, about_data, about_names, about_pixels
from segmentation.scores import Evaluation, targets_of


def arms_table(arms: Mapping[str, Evaluation]) -> Table:
    """Rows: arms, for example "100% R"; columns: Dice of regions and labels, mean ± SD over the patients.

    First the networks' own answers, then these with background outside the head. An arm that knew test patients, or
    pixels of another size, says so, and so do notes on what the arms differ in. Raises UserError if the arms were not
    evaluated on one and the same archive.
    """
    evaluations = list(arms.values())
    if len({e.data.sha256 for e in evaluations}) != 1:
        names = ", ".join(sorted({e.data.file for e in evaluations}))
        raise UserError(f"a table compares U-Nets on one test archive; these were evaluated on different ones: {names}")
    targets = targets_of(evaluations[0].model.info.schema)
    own = [(name + _remark(e), *(str(e.summary(t)) for t in targets), f"{e.removed:,}") for name, e in arms.items()]
    masked = [(f"{name}, masked", *(e.summary(t).masked for t in targets), "removed") for name, e in arms.items()]
    notes = [
        *about_data(evaluations[0]),
        *_empty_truths(evaluations[0]),
        *(f"{name}: {note}" for name, e in arms.items() for note in (*about_names(e), *about_pixels(e))),
        MASK,
        *_differences(arms),
        f"seed of each U-Net: {', '.join(f'{name} {e.model.info.training.seed}' for name, e in arms.items())}. "
        "One training of each arm is no measure of chance",
    ]
    return Table(("trained on", *(t.title for t in targets), OUTSIDE_HEAD), (*own, *masked), tuple(notes))


def _remark(evaluation: Evaluation) -> str:
    known = len(evaluation.overlap)
    return f" (knew {known} of {count(len(evaluation.patients), 'test patient')})" if known else ""


def _empty_truths(evaluation: Evaluation) -> list[str]:
    """What some examinations don't have: there a Dice is 1 or 0, and finding nothing scores 1."""
    summaries = [(t.title, evaluation.summary(t).empty_truth) for t in targets_of(evaluation.model.info.schema)]
    some = ", ".join(f"{title} {empty}" for title, empty in summaries if empty)
    text = (
        f"examinations, of {len(evaluation.examinations)}, without any in the truth: {some}; there the Dice is 1 or 0"
    )
    return [text] if some else []


def _differences(arms: Mapping[str, Evaluation]) -> list[str]:
    """What the arms' trainings were told, or drew, and differ in; nothing of it belongs to what is compared."""
    infos = {name: e.model.info for name, e in arms.items()}
    facts = {
        f"--{name.replace('_', '-')}": {arm: getattr(info.training, name) for arm, info in infos.items()}
        for name in ("steps", "batch", "lr", "width", "empty", "lesion_free")
    }
    free = {arm: info.drawn.lesion_free / (info.training.steps * info.training.batch) for arm, info in infos.items()}
    if max(free.values()) - min(free.values()) > 0.005:
        facts["share of slices without lesion"] = {arm: f"{share:.1%}" for arm, share in free.items()}
    return [
        f"the arms differ in {what}: " + ", ".join(f"{arm} {value}" for arm, value in values.items())
        for what, values in facts.items()
        if len(set(values.values())) > 1
    ]
