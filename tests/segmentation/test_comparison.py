"""Comparison of arms: tables, notes and files."""

import json
from dataclasses import replace

import pytest

from dnnlib.errors import UserError
from helpers.evaluations import TESTED, evaluation, examination
from segmentation.comparison import (
    Comparison,
    GanFacts,
    areas_table,
    arms_table,
    dice_table,
    to_markdown,
    to_text,
    write_comparison,
)
from segmentation.draws import Drawn
from slices.class_areas import ClassAreas
from slices.schema import BRATS

AREAS = ClassAreas(4, 1, 100, {"NCR": 0, "ED": 2, "ET": 1}, {"NCR": 0, "ED": 3, "ET": 1})


def test_tables_of_arms():
    real = evaluation(examination(0.8, patient="a", truth=0), examination(0.6, patient="b", removed=1000))
    half = replace(real.regions["WT"], mean=0.5, sd=0.25, masked_mean=0.75, masked_sd=0.125, removed=3)
    fake = replace(real, regions={**real.regions, "WT": half})
    table = arms_table({"100% R": real, "100% F": fake})
    targets = ("WT (region)", "TC (region)", "ET (region)", "NCR (label)", "ED (label)", "ET (label)")
    assert table.header == ("trained on", *targets, "voxels outside the head")
    assert [row[0] for row in table.rows] == ["100% R", "100% F", "100% R, masked", "100% F, masked"]
    assert [row[1] for row in table.rows] == ["0.700 ± 0.141", "0.500 ± 0.250", "0.700 ± 0.141", "0.750 ± 0.125"]
    assert [row[-1] for row in table.rows] == ["3,000", "3,000", "removed", "removed"]
    assert table.text().splitlines()[3].startswith("100% F")
    assert table.markdown().splitlines()[1] == f"| --- | {'---: | ' * 7}".rstrip()
    for words in (
        "2 examinations of 2 patients",
        "examinations (of 2) with nothing in the truth: WT (region) 1, ",
        "seed of each U-Net: 100% R 0, 100% F 0.",
    ):
        assert sum(words in note for note in table.notes) == 1 and words in table.markdown(), words
    assert not any("differ" in note for note in table.notes)


def test_an_arm_that_knew_test_patients_says_so():
    both = evaluation(examination(1, patient="a"), examination(1, patient="b"))
    assert arms_table({"R": replace(both, overlap=("a",))}).rows[0][0] == "R (knew 1 of 2 test patients)"


def test_arms_of_different_archives_are_refused():
    other = replace(TESTED, sha256="0" * 64, file="b.zip")
    with pytest.raises(UserError, match="b.zip, test.zip"):
        arms_table({"R": evaluation(examination(1)), "F": evaluation(examination(1), tested=other)})


def test_what_arms_differ_in_is_said():
    def arm(drawn=None, **options):
        one = evaluation(examination(1), **options)
        info = one.model.info
        return replace(one, model=replace(one.model, info=replace(info, drawn=drawn or info.drawn)))

    def differences(one, other):
        return [n for n in arms_table({"R": one, "F": other}).notes if "differ" in n]

    assert differences(arm(seed=1), arm(workers=0)) == []
    assert differences(arm(), arm(empty=0.0)) == ["the arms differ in --empty: R 0.05, F 0.0"]
    assert differences(arm(lesion_free=0.2), arm(steps=20)) == [
        "the arms differ in --steps: R 10, F 20",
        "the arms differ in --lesion-free: R 0.2, F None",
        "the arms differ in share of slices without lesion: R 20.0%, F 10.0%",
    ]
    assert differences(arm(), arm(Drawn(95, 0, 5))) == [
        "the arms differ in share of slices without lesion: R 20.0%, F 0.0%"
    ]


def test_a_class_that_real_slices_lack_has_no_ratio():
    fake = replace(AREAS, class_pixels={"NCR": 1, "ED": 1, "ET": 1})
    assert areas_table(AREAS, fake).rows == (
        ("NCR", "0.000%", "1.000%", "-"),
        ("ED", "2.000%", "1.000%", "0.50"),
        ("ET", "1.000%", "1.000%", "1.00"),
    )


@pytest.fixture
def comparison():
    """Two examinations of one patient, with two of three slices each. The U-Net trained on fakes has a lower Dice."""

    def arm(dice, masked, removed, seed):
        one = dict(volume="v", of=3, truth=0, masked_dice=masked, removed=removed)
        return evaluation(examination(dice, **one), examination(dice, **one), seed=seed)

    arms = {"100 % R": arm(0.5, 0.8, 1234, seed=5), "100 % F": arm(0.4, 0.4, 0, seed=6)}
    return Comparison(arms, {"100 % F": "100 % R"}, AREAS, replace(AREAS, num_lesion_free=0), GanFacts(22, 77))


def test_files_and_text_say_what_the_numbers_are(tmp_path, comparison):
    write_comparison(comparison, tmp_path)
    printed, markdown = to_text(comparison), (tmp_path / "results.md").read_text()
    content = json.loads((tmp_path / "results.json").read_text())
    for words in (
        "2 examinations of 1 patient, 4 slices; a patient counts once",
        "Dice of 4 of 6 slices: the archive lacks slices of 2 of 2 examinations",
        "examinations (of 2) with nothing in the truth: WT (region) 2, TC (region) 2,",
        "seed of each U-Net: 100 % R 5, 100 % F 6",
        "one GAN, with seed 77, of 22 kimg",
        "training slices without lesion: 25.0% of the real ones, 0.0% of the fakes",
        "WT: the Dice of 100 % F is 80% of that of 100 % R; masked, 50% of it",
        "masked: with background wherever every contrast is 0",
    ):
        assert words in printed and f"- {words}" in markdown.replace("mean ± SD over patients: ", "")
        assert sum(words in note for note in content["notes"]) == 1, words
    # of three classes together
    for row in (f"100 % R | {'0.500 | ' * 6}7,404", f"100 % F, masked | {'0.400 | ' * 6}removed"):
        assert f"| {row} |" in markdown
    assert "| ED | 2.000% | 2.000% | 1.00 |" in markdown
    assert list(content) == ["notes", "dice", "class_areas", "slices_without_lesion", "gan"]
    assert {arm: one["regions"]["WT"]["mean"] for arm, one in content["dice"].items()} == {
        "100 % R": 0.5,
        "100 % F": 0.4,
    }
    assert content["class_areas"]["real"] == {"NCR": 0, "ED": 0.02, "ET": 0.01}
    assert content["gan"] == {"kimg": 22, "seed": 77} and content["slices_without_lesion"] == {"real": 0.25, "fake": 0}
    assert (tmp_path / "dice.png").stat().st_size > 10_000


def test_any_number_of_arms_has_rows_and_only_named_pairs_are_compared(comparison):
    one = comparison.arms["100 % R"]
    for count in (1, 2, 7):
        arms = {f"arm {k}": one for k in range(count)}
        many = replace(comparison, arms=arms, relative_to={f"arm {count - 1}": "arm 0"})
        table = dice_table(many)
        assert len(table.rows) == 2 * count and "arm 0, masked" in to_markdown(many)
        assert [n for n in table.notes if "the Dice of" in n and "that of" in n] == [
            f"WT: the Dice of arm {count - 1} is 100% of that of arm 0; masked, 100% of it"
        ]
    nothing = evaluation(examination(0, schema=BRATS))
    none = replace(comparison, arms={"R": nothing, "F": nothing}, relative_to={"F": "R"})
    assert "WT: the Dice of F is not comparable with that of R; masked, not comparable with it" in to_text(none)
