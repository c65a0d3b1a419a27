"""Tables of an experiment: against pandas on its results.csv, and what every table says of its numbers."""

import dataclasses
import io

import numpy as np
import pandas
import pytest

from segmentation.arms import parse_arms
from segmentation.results import Row, by_patient, to_csv
from segmentation.scores import targets_of
from segmentation.statistics import NO_DIFFERENCE, NOT_TESTED, compare_all, family
from segmentation.study import Convergence, Study
from segmentation.tables import (
    FLAG,
    IN_PART,
    NO_CONVERGENCE,
    NONE,
    ONE_GAN,
    ONE_REPLICATE,
    about_gans,
    claims_table,
    common_notes,
    describe_study,
    dice_table,
    distance_table,
    false_alarm_table,
    format_detectable,
    format_interval,
    format_p,
    miss_table,
    present_table,
    tables_of,
    verdict_of,
)
from slices.schema import BRATS, Schema

ABSENT = ("p5", "p6")  # patients without ET
EXAMINATIONS = [(f"p{i}", f"p{i}-{visit}") for i in range(7) for visit in range(2 if i == 0 else 1)]  # p0 came twice


def make_row(random: np.random.RandomState, name, arm, replicate, patient, examination, target, level) -> Row:
    """A row as an evaluation would give it: Dice and HD95 follow from what is empty."""
    absent = target.name == "ET" and patient in ABSENT
    found = random.rand() < (0.3 if absent else 0.8)
    both, one = absent and not found, absent or not found
    dice = 1.0 if both else 0.0 if one else float(np.clip(random.normal(level, 0.1), 0, 1))
    return Row(
        **{"experiment": name, "arm": arm, "replicate": replicate, "patient": patient, "examination": examination},
        **{"kind": target.kind, "target": target.name, "dice": dice, "masked_dice": dice},
        hd95_mm=0.0 if both else 99.5 if one else float(random.gamma(2, 3)),
        **{"truth_voxels": 0 if absent else 50, "predicted_voxels": 60 if found else 0, "outside_voxels": 0},
        **{"truth_empty": absent, "prediction_empty": not found, "unet_seed": replicate, "gan": ""},
        **dict.fromkeys(("unet_sha256", "real_sha256", "fake_sha256", "test_sha256"), ""),
    )


def make_study(arms="table1", replicates=3, gans=3, flagged=(), schema: Schema = BRATS, name=None) -> Study:
    random, name = np.random.RandomState(5), name or (arms if arms in ("table1", "table2") else "arms")
    arms, targets = parse_arms(arms), targets_of(schema)
    rows = tuple(
        make_row(random, name, arm.name, replicate, patient, examination, target, 0.75 + 0.02 * replicate)
        for replicate in range(1, replicates + 1)
        for arm in arms
        for patient, examination in EXAMINATIONS
        for target in targets
    )
    headline = [target for target in targets if target.kind == targets[0].kind]
    claims = family(name, [arm.name for arm in arms], 0.03)
    return Study(
        **{"name": name, "title": "", "schema": schema, "arms": arms, "replicates": replicates, "margin": 0.03},
        rows=rows,
        comparisons=compare_all(claims, headline, lambda arm, target: by_patient(rows, arm, target)),
        convergence=tuple(Convergence(arm.name, (1, 2, 4), {}, arm.name in flagged) for arm in arms),
        **{"gans": gans, "notes": ("phantoms",), "unets": {}, "content": {}, "agreement": (), "options": {}},
        **{"real": None, "fakes": (), "test": None, "val": None, "commands": (), "made": {}},
    )


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def frame(study) -> pandas.DataFrame:
    return pandas.read_csv(io.BytesIO(to_csv(study.rows)))


def cells(study, table):
    """Cells by (name of the arm, kind and name of the target)."""
    assert [row[0] for row in table.rows] == [arm.title for arm in study.arms]
    assert table.header[1:] == tuple(target.title for target in study.targets)
    return {
        (arm.name, target.kind, target.name): cell
        for arm, row in zip(study.arms, table.rows, strict=True)
        for target, cell in zip(study.targets, row[1:], strict=True)
    }


# --- cells are what results.csv says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make, present", [(dice_table, False), (present_table, True)])
def test_dice_is_the_mean_over_patients_of_all_replicates(study, frame, make, present):
    """Examinations of a patient first, then patients, then replicates, whose SD stands behind ±."""
    if present:
        frame = frame[frame.truth_empty == 0]
    of_patients = frame.groupby(["arm", "kind", "target", "replicate", "patient"]).dice.mean()
    of_replicates = of_patients.groupby(["arm", "kind", "target", "replicate"]).mean()
    both = of_replicates.groupby(["arm", "kind", "target"]).agg(["mean", "std"])
    table = make(study)
    assert "± SD between replicates" in table.header[0]
    assert cells(study, table) == {key: f"{row['mean']:.3f} ± {row['std']:.3f}" for key, row in both.iterrows()}


def test_patients_with_the_target_are_counted(study):
    (note,) = [note for note in present_table(study).notes if note.startswith("patients who have it")]
    assert note.startswith("patients who have it, of 7: 7 WT (region), 7 TC (region), 5 ET (region), 7 NCR")


def test_false_alarms_and_misses(study, frame):
    groups = frame.groupby(["arm", "kind", "target"])
    for make, truth in ((false_alarm_table, 1), (miss_table, 0)):
        found = cells(study, make(study))
        for key, group in groups:
            among = group[group.truth_empty == truth]
            wrong = (among.prediction_empty != truth).sum()
            expected = f"{wrong} of {len(among)} ({wrong / len(among):.0%})" if len(among) else NONE
            assert found[key] == expected, key
    assert cells(study, false_alarm_table(study))["F", "region", "WT"] == NONE
    assert cells(study, false_alarm_table(study))["F", "region", "ET"] != NONE


def test_hd95_is_a_median_that_holds_the_misses(study, frame):
    quartiles = frame[frame.truth_empty == 0].groupby(["arm", "kind", "target"]).hd95_mm.quantile([0.25, 0.5, 0.75])
    table = distance_table(study)
    for key, cell in cells(study, table).items():
        low, median, high = quartiles[key]
        assert cell == f"{median:.1f} [{low:.1f}, {high:.1f}]"
    told = " ".join(table.notes)
    assert "directed 95th percentiles" in told and "BraTS pools both" in told and "unknown" not in told


def test_hd95_that_is_not_known(study):
    unknown = dataclasses.replace(
        study, rows=tuple(dataclasses.replace(row, hd95_mm=None) if row.patient == "p1" else row for row in study.rows)
    )
    assert any(note.startswith("unknown, and left out, for 9 of 72:") for note in distance_table(unknown).notes)
    none = dataclasses.replace(study, rows=tuple(dataclasses.replace(row, hd95_mm=None) for row in study.rows))
    assert set(cells(none, distance_table(none)).values()) == {NONE}


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claims_have_all_their_numbers(study):
    table = claims_table(study)
    assert table.header == (
        *("claim", "target", "difference", "95 % interval", "p", "p (Holm)", "verdict", "detectable"),
        *("effect", "improved", "ratio", "these networks only"),
    )
    assert [row[:2] for row in table.rows] == [
        *((("F is not inferior to R by more than 0.03 Dice"), region) for region in ("WT", "TC", "ET")),
        *(("F+R is better than R", region) for region in ("WT", "TC", "ET")),
    ]
    one, row = study.comparisons[0], dict(zip(table.header, table.rows[0], strict=True))
    assert float(row["difference"].replace("−", "-")) == pytest.approx(one.difference, abs=5e-4)
    low, high = row["95 % interval"].replace("−", "-").split(" to ")
    assert (float(low), float(high)) == pytest.approx(one.interval, abs=5e-4)
    assert (row["p"], row["p (Holm)"], row["verdict"]) == (f"{one.p:.3f}", f"{one.p_holm:.3f}", one.verdict)
    assert row["improved"] == f"{one.improved} of 7" + (f", {one.tied} equal" if one.tied else "")
    assert row["ratio"].startswith(f"{one.ratio:.3f} [{one.ratio_interval[0]:.3f}, ")
    told = " ".join(table.notes)
    assert "the 6 comparisons of this table" in told and "non-inferiority: p is of" in told
    assert "these trainings for the only" in told


def test_one_replicate_prints_no_p_and_no_interval():
    study = make_study(replicates=1)
    table = claims_table(study)
    assert table.header == ("claim", "target", "difference", "verdict", "ratio")
    assert {row[3] for row in table.rows} == {NOT_TESTED}
    for name, table in tables_of(study).items():
        assert ONE_REPLICATE in table.notes and "±" not in table.text(), name


def test_the_same_arm_twice():
    study = make_study("R; R")
    table = claims_table(study)
    assert {row[0] for row in table.rows} == {"R (2) differs from R"}
    assert "non-inferiority" not in " ".join(table.notes)
    assert {row[table.header.index("verdict")] for row in table.rows} == {NO_DIFFERENCE}
    assert f"R (2) differs from R: WT {NO_DIFFERENCE}, TC {NO_DIFFERENCE}" in describe_study(study)


def test_arms_that_never_differ_are_not_tested(study):
    same = tuple(dataclasses.replace(row, dice=0.5) for row in study.rows)
    claims = [comparison.claim for comparison in study.comparisons[::3]]
    comparisons = compare_all(claims, study.headline, lambda arm, target: by_patient(same, arm, target))
    table = claims_table(dataclasses.replace(study, rows=same, comparisons=comparisons))
    assert any(note.startswith(NOT_TESTED) for note in table.notes)
    assert {row[table.header.index("verdict")] for row in table.rows} == {NOT_TESTED}


def test_an_experiment_of_one_arm_has_no_claims():
    assert claims_table(make_study("R")).rows == () and "R is" not in describe_study(make_study("R"))


# --- what every table says --------------------------------------------------------------------------------------------


def test_every_table_says_what_its_numbers_cannot_tell(study):
    poor = make_study(gans=1, flagged=("F",))
    for caption, table in tables_of(poor).items():
        assert ONE_GAN in table.notes and ONE_REPLICATE not in table.notes, caption
        assert any(note.startswith(f"{FLAG} not converged: twice the steps") for note in table.notes), caption
        marked = {row[0] for row in table.rows if row[0].endswith(FLAG)}
        assert marked == {"F is not inferior to R by more than 0.03 Dice †" if caption == "Claims" else "100 % F †"}, (
            caption
        )
    for caption, table in tables_of(study).items():
        assert not {ONE_GAN, ONE_REPLICATE} & set(table.notes) and FLAG not in table.text(), caption
        assert NO_CONVERGENCE not in table.notes and IN_PART not in table.text(), caption
    two = dataclasses.replace(make_study(gans=2), convergence=())
    for caption, table in tables_of(two).items():
        assert {f"2 GANs for 3 replicates: {IN_PART}", NO_CONVERGENCE} <= set(table.notes), caption
    assert not about_gans(make_study(gans=0))


@pytest.mark.parametrize("verdict, decided", [("shown", 1), ("contradicted", 1), ("higher", 1), ("not shown", 0)])
def test_a_verdict_on_fakes_holds_for_their_gans_only(verdict, decided):
    for gans, scope in ((3, ""), (2, " for these GANs"), (1, " for this GAN")):
        study = make_study(gans=gans)
        comparison = dataclasses.replace(study.comparisons[0], verdict=verdict)
        assert verdict_of(study, comparison) == verdict + scope * decided
    real = make_study("R; R*full; 3A+R", gans=1, name="arms")
    comparison = dataclasses.replace(real.comparisons[0], verdict=verdict)
    assert verdict_of(real, comparison) == verdict, "no fakes"


def test_a_schema_without_regions():
    schema = dataclasses.replace(BRATS, regions=())
    study = make_study(schema=schema)
    assert dice_table(study).header[1:] == ("NCR (label)", "ED (label)", "ET (label)")
    assert [row[1] for row in claims_table(study).rows] == ["NCR", "ED", "ET"] * 2
    assert not any(note.startswith("regions:") for note in dice_table(study).notes)
    assert "regions: WT is NCR + ED + ET, TC is NCR + ET" in dice_table(make_study()).notes


def test_text_and_markdown_hold_the_same_cells(study):
    for table in tables_of(study).values():
        text, markdown = table.text(), table.markdown()
        for row in (table.header, *table.rows):
            assert "| " + " | ".join(row) + " |" in markdown
            assert any(line.split() == " ".join(row).split() for line in text.splitlines())
        assert all(note in text and f"- {note}" in markdown for note in table.notes)


def test_the_terminal_learns_what_was_compared(study):
    first, notes, *verdicts = describe_study(study).splitlines()
    assert first == "3 arms, 3 replicates, fakes of 3 GANs, 7 test patients" and notes == "phantoms"
    assert [verdict.split(":")[0] for verdict in verdicts] == [
        "F is not inferior to R by more than 0.03 Dice",
        "F+R is better than R",
    ]


@pytest.mark.parametrize(
    "p, text",
    [(None, NONE), (0.0004, "< 0.001"), (0.0123, "0.012"), (0.0497, "0.0497"), (0.0504, "0.0504"), (1.0, "1.000")],
)
def test_p_values(p, text):
    assert format_p(p) == text


@pytest.mark.parametrize("difference, text", [(None, NONE), (0.0456, "0.046"), (1.7, "> 1")])
def test_detectable_differences(difference, text):
    assert format_detectable(difference) == text


@pytest.mark.parametrize(
    "interval, text",
    [(None, "–"), ((-0.25, 0.125), "−0.250 to +0.125"), ((-1.5, 1.5), "< −1 to > +1"), ((-1, 1), "−1.000 to +1.000")],
)
def test_intervals_end_where_dice_does(interval, text):
    assert format_interval(interval) == text


def test_an_arm_that_finds_nothing_is_told():
    """Its mean Dice is that of the patients without the target, where an empty answer counts as right."""
    study = make_study()
    target = study.headline[0]
    rows = [
        dataclasses.replace(row, prediction_empty=True, predicted_voxels=0)
        if (row.arm, row.target, row.kind) == ("F", target.name, target.kind)
        else row
        for row in study.rows
    ]
    told = f"{target.name}: F never finds it."
    assert not any(told in note for note in common_notes(study))
    some_lack_it = [
        dataclasses.replace(row, truth_empty=True, truth_voxels=0)
        if (row.patient, row.target) == (study.rows[0].patient, target.name)
        else row
        for row in rows
    ]
    assert any(told in note for note in common_notes(dataclasses.replace(study, rows=tuple(some_lack_it))))
    assert not any(told in note for note in common_notes(dataclasses.replace(study, rows=tuple(rows)))), "all have it"
