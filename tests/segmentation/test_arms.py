"""The notation of arms."""

import itertools
import random
import re
import subprocess
import sys

import pytest

from dnnlib.errors import UserError
from segmentation.arms import AUGMENTATIONS, Arm, baseline, format_arms, parse_arm, parse_arms

ALL = [
    Arm(real, fakes, flips, augment)
    for real, fakes, flips, augment in itertools.product((True, False), (0, 1, 2, 3, 10, 99), range(4), AUGMENTATIONS)
    if real or fakes or flips
]


@pytest.mark.parametrize(
    "text, arm, name, title, slug",
    [
        ("R", Arm(True), "R", "100 % R", "R"),
        ("F", Arm(False, 1), "F", "100 % F", "F"),
        ("3F+R", Arm(True, 3), "3F+R", "300 % F + 100 % R", "3F-R"),
        ("3A+R", Arm(True, 0, 3), "3A+R", "300 % A + 100 % R", "3A-R"),
        ("A", Arm(False, 0, 1), "A", "100 % A", "A"),
        ("3F+R*full", Arm(True, 3, 0, "full"), "3F+R*full", "300 % F + 100 % R, augmented", "3F-R-full"),
        ("R*flip", Arm(True, augment="flip"), "R*flip", "100 % R, flipped", "R-flip"),
        (" r +2 a + 01f * NONE ", Arm(True, 1, 2), "F+2A+R", "100 % F + 200 % A + 100 % R", "F-2A-R"),
    ],
)
def test_an_arm_has_a_name_a_title_and_a_slug(text, arm, name, title, slug):
    assert parse_arm(text) == arm and str(arm) == arm.name == arm.notation == name
    assert (arm.title, arm.slug) == (title, slug)
    assert parse_arms(text) == (arm,)


def test_notation_and_arms_are_each_others_inverse():
    draw = random.Random(0)
    for arm in ALL:
        assert parse_arm(arm.notation) == arm
        terms, star, augment = arm.notation.partition("*")
        mixed = " + ".join(draw.sample(terms.split("+"), terms.count("+") + 1)) + star + augment
        assert parse_arm(draw.choice([mixed, mixed.lower()])) == arm, "whatever order, case and spaces"
    for _ in range(200):
        arms = parse_arms(";".join(draw.choice(ALL[:9]).notation for _ in range(draw.randint(1, 25))))
        assert parse_arms(format_arms(arms)) == arms
        assert len({arm.name for arm in arms}) == len({arm.slug for arm in arms}) == len(arms)
        assert all(re.fullmatch(r"[0-9A-Za-z-]+", arm.slug) for arm in arms)
    assert len({arm.slug for arm in ALL}) == len({arm.title for arm in ALL}) == len(ALL)


def test_the_papers_tables():
    assert [arm.notation for arm in parse_arms("table1")] == ["R", "F", "F+R"]
    assert [arm.title for arm in parse_arms(" Table2 ")] == [
        "100 % R", "100 % F", "100 % F + 100 % R", "300 % F + 100 % R", "300 % A + 100 % R"
    ]  # fmt: skip


def test_equal_arms_are_numbered_and_have_other_seeds():
    arms = parse_arms("R; R*flip; F+R; R; r; R+F")
    assert [arm.name for arm in arms] == ["R", "R*flip", "F+R", "R (2)", "R (3)", "F+R (2)"]
    assert [arm.slug for arm in arms] == ["R", "R-flip", "F-R", "R-2nd", "R-3rd", "F-R-2nd"]
    assert arms[3].title == "100 % R (2)" and arms[3].notation == "R"
    assert Arm(True, occurrence=10).slug == "R-11th" and Arm(True, occurrence=20).slug == "R-21st"
    assert [arms[0].seed(5, r) for r in (1, 2, 100)] == [5, 6, 104]
    assert [arm.seed(0, 3) for arm in arms] == [2, 2, 2, 1002, 2002, 1002]


def test_an_arm_knows_what_it_needs():
    assert [(arm.uses_real, arm.uses_fakes) for arm in parse_arms("R; F; A; 3F+R")] == [
        (True, False), (False, True), (True, False), (True, True)
    ]  # fmt: skip
    assert [arm.num_slices(10) for arm in parse_arms("R; F; 2A; 3F+R; 3A+R*full")] == [10, 10, 20, 40, 40]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "an arm is empty: expected R, F and A joined by +"),
        ("R; ;F", "an arm is empty"),
        ("R;", "an arm is empty"),
        ("*full", r"\*full is no arm"),
        ("X", "X is no arm"),
        ("F+", r"F\+ is no arm"),
        ("R F", "R F is no arm"),
        ("-1F", "-1F is no arm"),
        ("1.5F", r"1\.5F is no arm"),
        ("²F", "is no arm"),
        ("0F", "0F: expected 1 to 99 before F"),
        ("300F+R", r"300F\+R: expected 1 to 99 before F \(times as many fakes as real slices, no percentage\)"),
        ("9" * 10**5 + "F", "expected 1 to 99 before F"),
        ("4A", r"4A: expected 1 to 3 before A \(flips: left-right, up-down, both\)"),
        ("2R", "2R: R has no number before it"),
        ("F+3R", "R has no number before it"),
        ("R+R", r"R\+R has R twice"),
        ("F+2f", "has F twice"),
        ("F*foo", r"F\*foo: expected one of none, flip, full after \*"),
        ("R*", r"expected one of none, flip, full after \*"),
        ("R*full*flip", "expected one of none, flip, full"),
        ("R*full+F", "expected one of none, flip, full"),
        ("table1; R", "table1 is no arm but a table: .* Its arms are R; F; F\\+R"),
        ("table3", "table3 is no arm"),
    ],
)
def test_other_notation_is_refused(text, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_arms(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_one_arm_is_no_list_of_arms():
    for text in ("R; F", "table1"):
        with pytest.raises(UserError, match="is no arm"):
            parse_arm(text)


@pytest.mark.parametrize("fields", [{}, {"fakes": 100}, {"flips": 4}, {"fakes": 1, "augment": "x"}])
def test_impossible_arms_are_a_callers_mistake(fields):
    with pytest.raises(ValueError):
        Arm(False, **fields)


def test_the_notation_needs_neither_torch_nor_numpy():
    code = "import sys, segmentation.arms; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "text, expected",
    [("F; R*full; R; R", "R"), ("F; R*full; 3A+R", "R*full"), ("F; 3A+R; F+R", None)],
)
def test_the_baseline_is_plain_r_if_it_is_there(text, expected):
    found = baseline(parse_arms(text))
    assert (found and found.name) == expected
