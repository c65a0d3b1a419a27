"""The leak guard: patients in training data, and patients that a network must not be tested on."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dnnlib.errors import UserError
from helpers.drawn import draw_slice, write_archive
from slices import leaks
from slices.archive import edit
from slices.archive.format import TEST, TRAIN
from slices.archive.options import MergeOptions, SplitOptions
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS

NAMES = [f"p{i:02d}" for i in range(12)]


def archive(path="a.zip", patients=(), seen=()):
    """A stand-in for an archive, with the fields that comparing patients needs."""
    info = SimpleNamespace(patients=list(patients), seen=tuple(seen), known_patients={*patients, *seen})
    return SimpleNamespace(path=Path(path), info=info)


def some(rng: random.Random) -> list[str]:
    return rng.sample(NAMES, rng.choice([0, 0, 1, 1, 2, 4]))


def test_an_archive_of_the_test_part_is_refused(tmp_path):
    test = ArchiveReader(write_archive(tmp_path / "test.zip", count=7, part=TEST))
    with pytest.raises(
        UserError, match="test.zip: 7 of its 7 slices .3 of its 3 patients. are of the test part.*train.zip"
    ):
        leaks.refuse_test_part(test)
    for part in (TRAIN, None):
        leaks.refuse_test_part(ArchiveReader(write_archive(tmp_path / "other.zip", count=3, part=part)))


def test_one_slice_of_the_test_part_is_enough(tmp_path):
    source = ArchiveReader(write_archive(tmp_path / "source.zip", count=4, per_patient=2))
    with ArchiveWriter(tmp_path / "mixed.zip", source.schema, source.resolution, {}) as writer:
        for i, record in enumerate(source.info.slices):
            writer.add_packed(source.packed(i), patient=record.patient, part=TEST if i == 3 else TRAIN)
    with pytest.raises(UserError, match="1 of its 4 slices .1 of its 2 patients. are"):
        leaks.refuse_leaks([source, ArchiveReader(tmp_path / "mixed.zip")], [])


@pytest.mark.parametrize(
    "data, excluded, message",
    [
        (dict(patients="ab"), dict(patients="bc"), "but holds slices of b; train on an archive without them"),
        (dict(patients="badec"), dict(patients="fedcba"), "slices of a, b, c and 2 more;"),
        (dict(patients="abc"), dict(patients="abc"), "slices of a, b, c;"),
        (dict(patients="x", seen="ab"), dict(patients="b"), "generated slices of a GAN that learned from b;"),
        (dict(patients="xa", seen="b"), dict(patients="ab"), "slices of a, and generated slices of .* from b;"),
        (dict(patients="a", seen="a"), dict(patients="a"), "but holds slices of a;"),
        (dict(patients="a"), dict(patients="x", seen="a"), "for fakes, the patients .* count.*but holds slices of a;"),
        (dict(patients="x", seen="a"), dict(patients="y", seen="a"), "generated slices of a GAN that learned from a;"),
        (dict(patients="x"), dict(patients="x"), "slices of x;"),
        (dict(patients="abc", seen="d"), dict(patients="e", seen="f"), None),
        (dict(patients="a"), dict(patients="A"), None),
    ],
)
def test_shared_patients_are_named(data, excluded, message):
    data, excluded = archive("data/some.zip", **data), archive("others.zip", **excluded)
    if message is None:
        leaks.refuse_shared(data, excluded)
        return
    with pytest.raises(UserError, match=message) as refused:
        leaks.refuse_shared(data, excluded)
    assert str(refused.value).startswith("data/some.zip must share no patient with others.zip")


def test_refused_if_and_only_if_a_patient_is_known_on_both_sides():
    rng, refusals = random.Random(0), 0
    for _ in range(2000):
        (a, a_seen), (b, b_seen) = ((some(rng), some(rng)) for _ in range(2))
        common = sorted({*a, *a_seen} & {*b, *b_seen})
        assert list(leaks.shared_patients([*a, *a_seen], [*b, *b_seen])) == common
        try:
            leaks.refuse_shared(archive(patients=a, seen=a_seen), archive(patients=b, seen=b_seen))
            refused = False
        except UserError:
            refused = True
        assert refused == bool(common)
        refusals += refused
    assert 400 < refusals < 1600, "both happen often"


def test_every_archive_is_compared_with_every_excluded_one(tmp_path):
    paths = [write_archive(tmp_path / f"{seed}.zip", count=3, seed=seed) for seed in range(4)]
    readers = [ArchiveReader(path) for path in paths]
    leaks.refuse_leaks(readers[:2], paths[2:])
    with pytest.raises(UserError, match="1.zip must share no patient with .*1.zip"):
        leaks.refuse_leaks(readers[:2], [paths[2], paths[1]])


def test_words_for_shared_patients_name_each_once():
    rng = random.Random(1)
    for _ in range(200):
        shared, own = tuple(sorted(rng.sample(NAMES, rng.randint(1, 6)))), some(rng)
        words = leaks.describe_shared(shared, own)
        direct = [p for p in shared if p in own]
        through = [p for p in shared if p not in own]
        for patients in (direct, through):
            assert all(words.count(p) == 1 for p in patients[:3])
            assert not any(p in words for p in patients[3:])
        assert ("a GAN that learned from" in words) == bool(through) and words.startswith("slices of") == bool(direct)


def test_what_a_network_knows_of_an_archive(tmp_path):
    info = ArchiveReader(write_archive(tmp_path / "a.zip", count=4, per_patient=2, seen=["r1"])).info
    assert info.known_patients == {"drawn0-0", "drawn0-1", "r1"}
    assert replace(info, seen=()).known_patients == set(info.patients)


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("TCGA_DU_7294", "TCGA-DU-7294", True),
        ("Sub-01", "sub1", True),
        ("s0010", "S 10", True),
        ("Müller.3", "mu\u0308LLER_003", True),
        ("p1-23", "p12-3", False),
        ("p10", "p1", False),
        ("p0-0", "p00", False),
        ("a", "a", False),
        ("東京", "東", False),
        ("__", "--", False),
    ],
)
def test_names_alike_raise_doubts(one, other, same):
    assert leaks.alike([one], [other, "x"]) == ([(one, other)] if same else [])


def test_doubts_are_told_of_data_and_of_what_their_generator_saw(tmp_path):
    data = ArchiveReader(write_archive(tmp_path / "data.zip", count=3, seen=["TCGA_DU_7294"]))
    test = write_archive(tmp_path / "test.zip", count=3, seed=1, seen=["tcga-du-07294"])
    leaks.refuse_leaks([data], [test])
    (line,) = leaks.doubts([data], [test])
    assert line.startswith("warning: ") and "TCGA_DU_7294 and tcga-du-07294" in line
    assert leaks.doubts([data], [write_archive(tmp_path / "other.zip", count=3, seed=2)]) == []


def test_doubts_are_told_where_archives_are_merged_and_split(tmp_path):
    def of(*patients: str) -> Path:
        path = tmp_path / f"{patients[0]}.zip"
        with ArchiveWriter(path, BRATS, 16, {}) as writer:
            for patient in patients:
                writer.add(draw_slice(random_state, 16), patient=patient)
        return path

    random_state = np.random.RandomState(0)
    (line,) = edit.merge([of("p1", "q"), of("P-01", "r")], MergeOptions(tmp_path / "both.zip")).doubts
    assert line.endswith("P-01 and p1")
    found = set()
    for seed in range(6):
        train, test = edit.split(
            tmp_path / "both.zip", SplitOptions(tmp_path / str(seed), test_fraction=0.5, seed=seed)
        )
        apart = len({"p1", "P-01"} & set(ArchiveReader(train.path).info.patients)) == 1
        assert train.doubts == () and len(test.doubts) == apart
        found.add(apart)
    assert found == {True, False}
