"""Which slices a U-Net learns from, and what is refused before it does."""

from collections import Counter

import numpy as np
import pytest

from dnnlib.errors import UserError
from rings import RING, SIZE, TINY, draw_ring, refused, run, write_fakes, write_patients, write_rings
from segmentation.arms import parse_arm
from segmentation.config import TrainUNetConfig
from segmentation.data import PairDataset
from segmentation.draws import Draw
from segmentation.fit import MODEL
from segmentation.selection import (
    check_arm,
    classes_in,
    lesions_in,
    refuse_absent_classes,
    refuse_share,
    select_all,
    select_arm,
)
from segmentation.unet import load_unet
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS

NUM_REAL, NUM_FAKES = 3, 8


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    random = np.random.RandomState(3)
    slices = [(f"r{i}", draw_ring(random, lesion=i != 1)) for i in range(NUM_REAL)]
    return write_rings(tmp_path_factory.mktemp("selection") / "real.zip", slices, part="train")


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return write_fakes(tmp_path_factory.mktemp("selection") / "fake.zip")


def turned(n, *axes):
    """Real slice n, turned over along axes of [C, H, W]."""
    return "real", n, axes


R = [turned(n) for n in range(NUM_REAL)]
A = [[turned(n, *axes) for n in range(NUM_REAL)] for axes in [(2,), (1,), (1, 2)]]


@pytest.mark.parametrize(
    "notation, expected",
    [
        ("R", R),
        ("R*full", R),
        ("F", [("fake", n, ()) for n in range(3)]),
        ("2F", [("fake", n, ()) for n in range(6)]),
        ("2F+R", R + [("fake", n, ()) for n in range(6)]),
        ("A", A[0]),
        ("2A", A[0] + A[1]),
        ("3A+R", R + A[0] + A[1] + A[2]),
        ("F+A+R", R + A[0] + [("fake", n, ()) for n in range(3)]),
    ],
)
def test_an_arm_holds_these_slices(real, fake, notation, expected):
    archives = {"real": ArchiveReader(real), "fake": ArchiveReader(fake)}
    arm = parse_arm(notation)
    selected = select_arm(arm, [real, fake])
    data = PairDataset(selected)
    assert len(data) == len(expected) == arm.num_slices(NUM_REAL) == sum(len(one) for one in selected)
    for number, (name, n, axes) in enumerate(expected):
        contrasts, indices = RING.split(archives[name].read(n))
        pair = data[Draw(number, 0)]
        assert (pair.contrasts.numpy() == np.flip(contrasts, axes)).all()
        assert (pair.indices.numpy() == np.flip(indices, [axis - 1 for axis in axes])).all()
    assert len({pair.contrasts.numpy().tobytes() for pair in (data[Draw(n, 0)] for n in range(len(data)))}) == len(data)
    lesion = [bool(RING.split(archives[name].read(n))[1].any()) for name, n, _ in expected]
    assert data.has_lesion.tolist() == lesion
    assert lesions_in(selected, [classes_in(one.archive) for one in selected]).tolist() == lesion


def test_every_slice_of_an_arm_is_drawn_equally_often(real, fake):
    for notation, total in [("3A+R", 12), ("2F+R", 9), ("2F+3A+R", 18)]:
        draws = PairDataset(select_arm(parse_arm(notation), [real, fake])).draws(TrainUNetConfig(60, batch=6, empty=0))
        times = Counter(draw.slice for batch in draws for draw in batch)
        assert times == {n: 360 // total for n in range(total)}


def test_a_unet_says_what_it_learned_from(tmp_path, real, fake):
    def train(arm, *options):
        code, output = run(
            "train", "--arm", arm, "--real", real, *options, "--outdir", tmp_path / "u", "--force", *TINY
        )
        assert code == 0, output
        return output, load_unet(tmp_path / "u" / MODEL).info

    output, info = train(" 2f + r *FULL", "--fake", fake)
    assert "arm 2F+R*full: U-Net of width 2 on real.zip (3 slices, 3 patients) + fake.zip (6 from 8 slices" in output
    assert (info.arm, info.training.augment) == ("2F+R*full", "full") and info.learned == (3, 6)
    assert [one.file for one in info.archives] == ["real.zip", "fake.zip"]
    assert info.patients == (*(f"generated-{n}" for n in range(6)), "r0", "r1", "r2") and info.seen == ("r0", "r1")
    _, info = train("F", "--fake", fake)
    assert info.patients == ("generated-0", "generated-1", "generated-2") and info.seen == ("r0", "r1")
    assert info.learned == (3,) and info.archives[0].file == "fake.zip"
    output, info = train("3A+R", "--fake", fake)  # an archive that the arm has no use for
    assert "on real.zip (12 from 3 slices, 3 patients)," in output and (info.learned, info.seen) == ((12,), ())
    assert (info.arm, info.training.augment) == ("3A+R", "none")
    code, output = run("train", "--data", real, "--augment", "flip", "--outdir", tmp_path / "d", *TINY)
    info = load_unet(tmp_path / "d" / MODEL).info
    assert (info.arm, info.training.augment, info.learned) == ("", "flip", (3,)), output


@pytest.mark.parametrize(
    "options, words",
    [
        ("", "no slices to learn from: give archives with --data, or an arm"),
        ("--data=R --arm=R --real=R", "--data and --arm are two ways"),
        ("--real=R", "--real and --fake belong to --arm"),
        ("--data=R --fake=F", "--real and --fake belong to --arm"),
        ("--arm=F --fake=F", "--arm F: give R with --real; fakes are counted by it too"),
        ("--arm=F+R --real=R", "--arm F+R: give its fakes with --fake"),
        ("--arm=X --real=R", "X is no arm"),
        ("--arm=table1 --real=R", "table1 is no arm but a table"),
        ("--arm=R*full --real=R --augment=full", "--augment full and --arm R*full"),
        ("--arm=R --real=R --augment=none", "leave out --augment"),
        ("--arm=R --real=F", "was given as --real, but 8 of its 8 slices are generated"),
        ("--arm=F --real=R --fake=R", "was given as --fake, but 3 of its 3 slices have no seed of a generator"),
        ("--arm=3F --real=R --fake=F", "fake.zip holds 8 slices, but 3F needs 9: 3 times the 3 of"),
        ("--arm=F --real=R --fake=F --exclude=R", "must share no patient with"),
        ("--arm=R --real=none.zip", "no such file"),
        ("--arm=R --real=R --lesion-free=0.2 --empty=0.9", "leave no slice with lesion"),
        ("--arm=F --real=R --fake=F --lesion-free=0.2", "all 3 slices have a lesion, but --lesion-free 0.2"),
    ],
)
def test_arms_that_cannot_be_trained_are_refused(tmp_path, real, fake, options, words):
    words_given = [
        {"--data=R": f"--data={real}", "--real=R": f"--real={real}", "--real=F": f"--real={fake}",
         "--fake=F": f"--fake={fake}", "--fake=R": f"--fake={real}", "--exclude=R": f"--exclude={real}"}.get(one, one)
        for one in options.split()
    ]  # fmt: skip
    assert words in refused("train", *words_given, "--outdir", tmp_path / "new", *TINY)
    assert not (tmp_path / "new").exists()


def test_archives_of_another_kind_are_refused(tmp_path, real, fake):
    random = np.random.RandomState(0)
    brats = write_rings(tmp_path / "brats.zip", [("p", draw_ring(random, BRATS))], BRATS)
    large = write_fakes(tmp_path / "large.zip", size=64)
    test = write_patients(tmp_path / "test.zip", ["t"], part="test")
    behind = write_fakes(tmp_path / "behind.zip", seen=("t",))

    def check(arm, first, second, *exclude):
        check_arm(parse_arm(arm), ArchiveReader(first), second and ArchiveReader(second), exclude)

    check("2F+R", real, fake, test)
    check("R", real, large)
    check("3A+R", real, None)
    for arguments, words in [
        (("F+R", brats, fake), "use archives of one schema"),
        (("F+R", real, large), "64×64"),
        (("R", test, None), "are of the test part"),
        (("F", real, behind, test), "a GAN that learned from t"),
        (("F", real, None), "F needs fakes: give their archive with --fake"),
    ]:
        with pytest.raises(UserError, match=words):
            check(*arguments)


def test_archives_that_mix_real_slices_and_fakes_are_neither(tmp_path, real, fake):
    readers = [ArchiveReader(real), ArchiveReader(fake)]
    with ArchiveWriter(tmp_path / "merged.zip", RING, SIZE, {}, seen=readers[1].info.seen) as writer:
        for reader in readers:
            for i, record in enumerate(reader.info.slices):
                writer.add_packed(reader.packed(i), patient=record.patient, seed=record.seed)
    merged = ArchiveReader(tmp_path / "merged.zip")
    with pytest.raises(UserError, match="8 of its 11 slices are generated"):
        check_arm(parse_arm("R"), merged, None)
    with pytest.raises(UserError, match="3 of its 11 slices have no seed"):
        check_arm(parse_arm("F"), readers[0], merged)
    # Fakes that were exported and converted again have no seeds.
    again = ArchiveReader(write_patients(tmp_path / "again.zip", ["g0", "g1", "g2"], seen=["r0"]))
    check_arm(parse_arm("F"), readers[0], again)
    with pytest.raises(UserError, match="holds generated slices, exported and converted again"):
        check_arm(parse_arm("R"), again, None)


def test_classes_that_no_slice_has_are_refused(tmp_path, real, fake, train_zip):
    contrasts, indices = RING.split(draw_ring(np.random.RandomState(0)))
    stored = RING.join(contrasts, np.where(indices == 2, 0, indices).astype(np.uint8))
    archive = ArchiveReader(write_rings(tmp_path / "coreless.zip", [("a", stored)] * 2))
    found = classes_in(archive)
    assert found.tolist() == [[True, False]] * 2
    with pytest.raises(UserError, match="coreless.zip: none of its 2 slices has the class rim, so nothing can be said"):
        refuse_absent_classes(archive, found)
    refuse_absent_classes(ArchiveReader(train_zip), classes_in(ArchiveReader(train_zip)))
    code, output = run("train", "--data", tmp_path / "coreless.zip", "--outdir", tmp_path / "new", *TINY)
    assert code == 0 and "warning: no slice has the class rim, so the U-Net can't learn it" in output


def test_a_share_is_checked_against_the_slices_of_the_arm(tmp_path, real):
    fakes = write_fakes(tmp_path / "fakes.zip", lesions=False)  # 0, 2, … have no lesion
    for notation, lesion in [("R", [1, 0, 1]), ("F", [0, 1, 0]), ("A+R", [1, 0, 1] * 2), ("F+R", [1, 0, 1, 0, 1, 0])]:
        selected = select_arm(parse_arm(notation), [real, fakes])
        has_lesion = lesions_in(selected, [classes_in(one.archive) for one in selected])
        assert has_lesion.tolist() == [bool(one) for one in lesion]
        refuse_share(0.3, has_lesion, selected)
    with pytest.raises(UserError, match="all 6 slices have a lesion"):
        refuse_share(0.3, np.ones(6, bool), selected)
    with pytest.raises(UserError, match="none of the 6 slices has a lesion"):
        refuse_share(0.0, np.zeros(6, bool), selected)


def test_all_slices_of_an_archive_are_one_selection(real, fake):
    selected = select_all([real, fake])
    assert [len(one) for one in selected] == [NUM_REAL, NUM_FAKES]
    assert [record.patient for record in selected[0].records] == ["r0", "r1", "r2"]
    with pytest.raises(UserError, match="at least one --data"):
        select_all([])
