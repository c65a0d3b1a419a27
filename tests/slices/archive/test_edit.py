"""merge, subset and split: slices stay as they were, and archives that don't fit are refused."""

import json

import numpy as np
import pytest

from dataset_tool import main
from dnnlib.files import sha256
from helpers.commands import call, refused
from slices.archive.format import Volume
from slices.archive.history import CONVERT, Cutting, cutting_of
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.archive.zips import ZipWriter
from slices.schema import BRATS, LesionClass, Region, Schema
from slices.split import draw_split

RESOLUTION = 16
AFFINE = tuple(map(tuple, np.diag((-1.0, -1, 1, 1)).tolist()))


def write(path, wheres, schema=BRATS, resolution=RESOLUTION, high=1000.0, seed=0, made=None, **arguments):
    """Write an archive of random slices with these records. high: upper end of their volumes' windows."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(exist_ok=True)
    with ArchiveWriter(path, schema, resolution, made or {"command": "test"}, **arguments) as writer:
        for where in wheres:
            contrasts = rng.integers(0, 256, (schema.num_contrasts, resolution, resolution), dtype=np.uint8)
            classes = rng.integers(0, max(1, schema.num_maps), (resolution, resolution))
            writer.add(schema.join(contrasts, classes), **where)
            if volume := where.get("volume"):
                windows = dict.fromkeys(schema.contrasts, (0.0, high))
                writer.volumes[volume] = Volume(where["patient"], (16, 16, 20), AFFINE, 1.0, windows)
    return path


def cut(patients, indices=range(3), **also):
    """Records of slices of real patients, one volume each."""
    return [dict(patient=p, volume=f"{p}_1", index=i, **also) for p in patients for i in indices]


def generated(seeds, snapshot="beef"):
    return [dict(patient=f"generated-{snapshot}-{seed}", seed=seed, snapshot=snapshot) for seed in seeds]


def facts(reader):
    """Everything that is known of each slice, except its name in the archive."""
    return [
        (reader.read_checked(i).tobytes(), reader.label(i), {**vars(record), "file": None})
        for i, record in enumerate(reader.info.slices)
    ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- merge ----------------------------------------------------------------------------------------------------------


def test_merged_slices_stay_what_they_were(tmp_path):
    a = write(tmp_path / "a.zip", cut("QP", part="train"), seed=1)
    b = write(tmp_path / "b.zip", generated(range(5)), seed=2, seen=["P", "Q"])
    c = write(tmp_path / "c.zip", cut("P", range(7, 9), part="train") + cut("T", part="test"), seed=3, seen=["T"])
    before = [path.read_bytes() for path in (a, b, c)]
    output = call("merge", a, b, c, "--dest", tmp_path / "new" / "all.zip")
    assert f"written: {tmp_path / 'new' / 'all.zip'}, 16 slices of 8 patients" in output
    merged, readers = ArchiveReader(tmp_path / "new" / "all.zip"), [ArchiveReader(path) for path in (a, b, c)]
    assert facts(merged) == [fact for reader in readers for fact in facts(reader)]
    packed = [reader.packed(i) for reader in readers for i in range(len(reader))]
    assert [merged.packed(i) for i in range(16)] == packed
    assert merged.info.volumes == readers[0].info.volumes | readers[2].info.volumes
    assert merged.info.seen == ("P", "Q", "T") and merged.info.labels is None
    made = merged.info.made
    assert made["command"] == "dataset_tool.py merge" and made["version"] and made["options"] == {}
    assert made["sources"] == [{"name": path.name, "sha256": sha256(path)} for path in (a, b, c)]
    assert [path.read_bytes() for path in (a, b, c)] == before
    call("merge", a, b, c, "--dest", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == merged.path.read_bytes()


def test_the_pixel_size_of_fakes_is_kept_and_unknown_beside_an_unknown_one(tmp_path):
    real = write(tmp_path / "real.zip", cut("Q"))
    fine = write(tmp_path / "fine.zip", generated(range(3)), pixel=(0.9, 1.0))
    coarse = write(tmp_path / "coarse.zip", generated(range(3, 5)), pixel=(2.0, 2.5))
    unknown = write(tmp_path / "unknown.zip", generated(range(5, 7)))
    for i, (archives, expected) in enumerate(
        [((real, fine, coarse), (0.9, 2.5)), ((fine, unknown), None), ((real, unknown), None)]
    ):
        call("merge", *archives, "--dest", tmp_path / f"m{i}.zip")
        assert ArchiveReader(tmp_path / f"m{i}.zip").info.pixel == expected
    call("subset", fine, "--slices", 2, "--dest", tmp_path / "s.zip")
    assert ArchiveReader(tmp_path / "s.zip").info.pixel == (0.9, 1.0)


def test_class_labels_are_kept(tmp_path):
    both = ("HGG", "LGG")
    a = write(tmp_path / "a.zip", cut("A", label=0) + cut("B", label=1), label_names=both)
    b = write(tmp_path / "b.zip", cut("C", label=1), label_names=both)
    call("merge", a, b, "--dest", tmp_path / "c.zip")
    reader = ArchiveReader(tmp_path / "c.zip")
    assert reader.info.label_names == both and [reader.label(i) for i in range(9)] == [0] * 3 + [1] * 6
    call("subset", tmp_path / "c.zip", "--dest", tmp_path / "d.zip", "--slices", 8)
    assert ArchiveReader(tmp_path / "d.zip").info.label_names == both


def test_an_input_may_be_replaced(tmp_path):
    a, b = write(tmp_path / "a.zip", cut("A")), write(tmp_path / "b.zip", cut("B"))
    before = a.read_bytes()
    refused(call("merge", a, b, "--dest", a, expected=2), a, "exists already", "--force")
    assert a.read_bytes() == before
    call("merge", a, b, "--dest", tmp_path / "c.zip")
    call("merge", a, b, "--dest", a, "--force")
    assert a.read_bytes() == (tmp_path / "c.zip").read_bytes() and names(tmp_path) == ["a.zip", "b.zip", "c.zip"]
    call("subset", a, "--dest", a, "--patients", 1, "--force")
    assert len(ArchiveReader(a)) == 3


def _with(**changes):
    return Schema(**{**dict(contrasts=BRATS.contrasts, classes=BRATS.classes, regions=BRATS.regions), **changes})


OTHER_VALUE = _with(classes=(*BRATS.classes[:2], LesionClass("ET", "enhancing tumor", 3)))
MORE_VALUES = _with(classes=(*BRATS.classes[:2], LesionClass("ET", "enhancing tumor", 4, (5,))))
OTHER_TITLE = _with(classes=(*BRATS.classes[:2], LesionClass("ET", "ring", 4)))


@pytest.mark.parametrize(
    "wheres, arguments, words",
    [
        (cut("B"), dict(schema=_with(contrasts=("t1", "t2"))), ["the contrasts: t1, t1ce, t2, flair in", "t1, t2 in"]),
        (cut("B"), dict(schema=Schema(BRATS.contrasts)), ["the classes: NCR, ED, ET in the first, none in the other"]),
        (cut("B"), dict(schema=OTHER_VALUE), ["the label value of ET: 4 in the first, 3 in the other"]),
        (cut("B"), dict(schema=MORE_VALUES), ["the label value of ET: 4 in the first, 4, 5 in the other"]),
        (cut("B"), dict(schema=_with(ignored=(7, 9))), ["that are ignored: none in the first, 7, 9 in the other"]),
        (
            cut("B"),
            dict(schema=_with(regions=(Region("WT", ("ED",)),))),
            ["the regions: WT = NCR + ED + ET", "= ED in"],
        ),
        (cut("B"), dict(resolution=32), ["the resolution: 16 in the first, 32 in the other"]),
        (cut("B", label=0), dict(), ["class labels: none in the first, some in the other"]),
        (cut("A", [3, 1]), dict(), ["slice 1 of the volume A_1 of the patient A is in", "a.zip and in", "twice"]),
        (cut("A", [3]), dict(high=999.0), ["the volume A_1 is not the same", "windows", "one conversion"]),
        (cut("A", [3], part="test"), dict(), ["A: patients of train and of test", "one part of a split"]),
        (generated([6, 5]), dict(), ["seed 5 of the snapshot beef", "twice"]),
    ],
)
def test_what_cannot_be_merged(tmp_path, wheres, arguments, words):
    a = write(tmp_path / "a.zip", cut("A", part="train") + generated([5]))
    b = write(tmp_path / "b.zip", wheres, **arguments)
    refused(call("merge", a, b, "--dest", tmp_path / "new" / "c.zip", expected=2), *words)
    assert names(tmp_path) == ["a.zip", "b.zip"]


def test_titles_of_classes_are_those_of_the_first(tmp_path):
    """Older archives spell titles of classes differently, and can still be merged with newer ones."""
    a, b = write(tmp_path / "a.zip", cut("A")), write(tmp_path / "b.zip", cut("B"), schema=OTHER_TITLE)
    remark = 'the title of ET: "enhancing tumor" kept, "ring" lost'
    assert f"{remark}: b.zip" in call("merge", a, b, "--dest", tmp_path / "c.zip")
    merged = ArchiveReader(tmp_path / "c.zip")
    assert merged.schema == BRATS and merged.info.made["remarks"] == {remark: ["b.zip"]}


def test_class_labels_are_one_if_their_names_are(tmp_path):
    """Three archives number their classes differently, one of them has another class, and a fourth has no names."""
    a = write(tmp_path / "a.zip", cut("A", label=1), label_names=("HGG", "LGG"))
    b = write(tmp_path / "b.zip", cut("B", label=0) + cut("C", label=1), label_names=("LGG", "MET"))
    c = write(tmp_path / "c.zip", cut("D", label=2), label_names=("HGG", "LGG", "MET"))
    output = call("merge", a, b, c, "--dest", tmp_path / "d.zip")
    merged = ArchiveReader(tmp_path / "d.zip")
    assert merged.info.label_names == ("HGG", "LGG", "MET")
    assert [merged.label_name(i) for i in range(0, 12, 3)] == ["LGG", "LGG", "MET", "MET"]
    renumbered = "class labels renumbered by name: LGG from 0 to 1, MET from 1 to 2"
    assert f"{renumbered}: b.zip" in output and merged.info.made["remarks"] == {renumbered: ["b.zip"]}
    assert "class labels: HGG 0 slices, LGG 6 slices, MET 6 slices" in call("inspect", tmp_path / "d.zip")
    numbers = write(tmp_path / "e.zip", cut("E", label=1))
    output = call("merge", a, numbers, "--dest", tmp_path / "f.zip", expected=2)
    refused(output, a, numbers, "names of class labels: some in the first, none in the other")


def test_two_classes_of_one_name_are_refused(tmp_path):
    a = write(tmp_path / "a.zip", cut("A", label=1), label_names=("HGG", "HGG"))
    refused(call("inspect", a, expected=2), a, "a class of one name twice")


def test_fakes_of_one_seed_and_two_classes_are_two(tmp_path):
    """Fakes are equal if snapshot, seed and name of the class are. One without class equals none with a class."""
    both = ("HGG", "LGG")
    a = write(tmp_path / "a.zip", [dict(w, label=0) for w in generated(range(3))], label_names=both)
    b = write(tmp_path / "b.zip", [dict(w, label=1) for w in generated(range(3))], label_names=both)
    again = write(tmp_path / "c.zip", [dict(w, label=0) for w in generated([2])], label_names=both[::-1])
    call("merge", a, b, "--dest", tmp_path / "d.zip")
    refused(
        call("merge", b, again, "--dest", tmp_path / "e.zip", expected=2),
        b,
        again,
        "seed 2 of class LGG of the snapshot beef",
        "twice",
    )
    call("merge", a, again, "--dest", tmp_path / "e.zip")


def test_other_pixel_sizes_are_said(tmp_path):
    a = write(tmp_path / "a.zip", cut("A"))
    b = write(tmp_path / "b.zip", generated([1]), pixel=(1.0, 1.005))
    c = write(tmp_path / "c.zip", generated([2]), pixel=(1.5, 2.0))
    assert "pixels" not in call("merge", a, b, "--dest", tmp_path / "d.zip")
    assert "remarks" not in ArchiveReader(tmp_path / "d.zip").info.made
    output = call("merge", a, b, c, "--dest", tmp_path / "e.zip")
    assert "pixels of 1 mm, of other sizes elsewhere: a.zip" in output, output
    assert "pixels of 1.5 to 2 mm, of other sizes elsewhere: c.zip" in output


def test_slices_that_look_alike_but_are_not_one(tmp_path):
    a = write(tmp_path / "a.zip", [dict(patient="A"), *cut("A", [1]), *generated([1])])
    b = write(tmp_path / "b.zip", [dict(patient="A"), *cut("B", [1]), *generated([1], "cafe")])
    call("merge", a, b, "--dest", tmp_path / "c.zip")
    assert len(ArchiveReader(tmp_path / "c.zip")) == 6


def test_merging_one_archive_or_one_twice(tmp_path):
    a = write(tmp_path / "a.zip", cut("A"))
    refused(call("merge", a, "--dest", tmp_path / "c.zip", expected=2), a, "two or more archives")
    refused(call("merge", a, a, "--dest", tmp_path / "c.zip", expected=2), "slice 0 of the volume A_1", "twice")
    refused(call("merge", a, a, "--dest", tmp_path / "c", expected=2), "expected a name that ends in .zip")
    assert names(tmp_path) == ["a.zip"]


def test_a_damaged_source_leaves_nothing(tmp_path):
    a, b = write(tmp_path / "a.zip", cut("A")), write(tmp_path / "b.zip", cut("B"))
    content = bytearray(b.read_bytes())
    content[content.index(b"slices/00000/00000002.npy")] ^= 1  # the name in the header before the content
    b.write_bytes(content)
    refused(call("merge", a, b, "--dest", tmp_path / "new" / "c.zip", expected=2), b, "00000002.npy is damaged")
    assert names(tmp_path) == ["a.zip", "b.zip"]


# --- subset ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    """Twelve patients with 1 to 6 slices, not in the order of their names."""
    wheres = [w for n in range(12) for w in cut([f"P{n * 7 % 12:02d}"], range(n % 6 + 1), part="train")]
    return write(tmp_path / "in" / "many.zip", wheres, seen=["X"])


def chosen(path):
    """The places in volumes that the slices of an archive were cut from."""
    return [(r.volume, r.index) for r in ArchiveReader(path).info.slices]


def test_a_subset_of_slices(many, tmp_path):
    whole, all_facts = chosen(many), facts(ArchiveReader(many))
    for count, seed, name in ((5, 0, "a"), (5, 0, "b"), (20, 0, "c"), (20, 1, "d"), (len(whole), 0, "e")):
        output = call("subset", many, "--dest", tmp_path / f"{name}.zip", "--slices", count, "--seed", seed)
        reader = ArchiveReader(tmp_path / f"{name}.zip")
        assert f"{name}.zip, {count} slices of {len(reader.info.patients)} patient" in output
        assert len(reader) == count and [w for w in whole if w in chosen(reader.path)] == chosen(reader.path)
        assert set(reader.info.volumes) == {r.volume for r in reader.info.slices}
        assert all(fact in all_facts for fact in facts(reader)) and reader.info.seen == ("X",)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert set(chosen(tmp_path / "a.zip")) < set(chosen(tmp_path / "c.zip")) != set(chosen(tmp_path / "d.zip"))
    assert chosen(tmp_path / "e.zip") == whole
    made = ArchiveReader(tmp_path / "d.zip").info.made
    assert made["command"] == "dataset_tool.py subset" and made["options"] == {"slices": 20, "seed": 1}
    assert made["sources"] == [{"name": "many.zip", "sha256": sha256(many)}]


def test_a_subset_of_patients_has_all_their_slices(many, tmp_path):
    taken = {}
    for count, seed in ((4, 0), (8, 0), (8, 1)):
        call("subset", many, "--dest", tmp_path / "x.zip", "--patients", count, "--seed", seed, "--force")
        reader = ArchiveReader(tmp_path / "x.zip")
        patients = set(reader.info.patients)
        assert len(patients) == count
        assert chosen(reader.path) == [w for w in chosen(many) if w[0].removesuffix("_1") in patients]
        assert reader.info.made["options"] == {"patients": count, "seed": seed}
        taken[count, seed] = patients
    assert taken[4, 0] < taken[8, 0] != taken[8, 1]


def test_more_than_there_are(many, tmp_path):
    total = len(ArchiveReader(many))
    for option, count in (("--slices", total), ("--patients", 12)):
        output = call("subset", many, "--dest", tmp_path / "x.zip", option, count + 1, expected=2)
        refused(output, f"{option} {count + 1}", many, f"has {count}")
    refused(call("subset", many, "--dest", tmp_path / "x.zip", expected=2), "either --slices or --patients")
    both = ("--slices", 1, "--patients", 1)
    refused(call("subset", many, "--dest", tmp_path / "x.zip", *both, expected=2), "either --slices or --patients")
    for option, value, words in (
        ("--slices", 0, "from 1 up"),
        ("--patients", 0, "from 1 up"),
        ("--seed", -1, "from 0 to 4294967295"),
    ):
        output = call("subset", many, "--dest", tmp_path / "x.zip", "--slices", 1, option, value, expected=2)
        refused(output, f"{option} {value}: expected a whole number {words}")
    assert names(tmp_path) == ["in"]


# --- split ----------------------------------------------------------------------------------------------------------


def test_split_divides_patients(many, tmp_path):
    output = call("split", many, "--dest", tmp_path / "out", "--test-fraction", 0.25, "--seed", 3)
    assert names(tmp_path / "out") == ["split.json", "test.zip", "train.zip"]
    drawn = draw_split(ArchiveReader(many).info.patients, 0.25, 3)
    assert json.loads((tmp_path / "out" / "split.json").read_text()) == {
        "train": list(drawn.train),
        "test": list(drawn.test),
    }
    source = facts(ArchiveReader(many))
    for side, patients in (("train", drawn.train), ("test", drawn.test)):
        reader = ArchiveReader(tmp_path / "out" / f"{side}.zip")
        expected = [(s, l, {**known, "part": side}) for s, l, known in source if known["patient"] in patients]
        assert facts(reader) == expected and len(reader) > 0
        assert f"{side}.zip, {len(reader)} slices of {len(patients)} patients" in output
        made = reader.info.made
        assert made["options"] == {"test_fraction": 0.25, "seed": 3} and made["split"]["part"] == side
        assert made["split"]["test"] == list(drawn.test) and made["sources"][0]["name"] == "many.zip"
        assert reader.info.seen == ("X",)
    assert "split: this is test of 9 train, 3 test patients" in call("inspect", tmp_path / "out" / "test.zip")
    call("split", many, "--dest", tmp_path / "again", "--test-fraction", 0.25, "--seed", 3)
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_test_slices_stay_test_slices(many, tmp_path):
    call("split", many, "--dest", tmp_path / "out")
    train, test = tmp_path / "out" / "train.zip", tmp_path / "out" / "test.zip"
    count = len(ArchiveReader(test))
    refused(
        call("split", test, "--dest", tmp_path / "x", expected=2), test, f"{count} of its {count} slices", "already"
    )
    call("merge", train, test, "--dest", tmp_path / "back.zip")
    refused(call("split", tmp_path / "back.zip", "--dest", tmp_path / "x", expected=2), "must remain test slices")
    call("split", train, "--dest", tmp_path / "x")  # a train part may be divided again


def test_what_cannot_be_split(tmp_path):
    mixed = write(tmp_path / "mixed.zip", cut("AB") + generated([1]))
    refused(call("split", mixed, "--dest", tmp_path / "x", expected=2), mixed, "1 of its 7 slices are generated")
    one = write(tmp_path / "one.zip", cut("A"))
    refused(call("split", one, "--dest", tmp_path / "x", expected=2), one, "one patient (A) can't be split")
    two = write(tmp_path / "two.zip", cut("AB"))
    refused(call("split", two, "--dest", tmp_path / "x.zip", expected=2), "x.zip: expected a folder")
    output = call("split", two, "--dest", tmp_path / "x", "--test-fraction", 1.5, expected=2)
    refused(output, "--test-fraction 1.5", "between 0 and 1")
    assert names(tmp_path) == ["mixed.zip", "one.zip", "two.zip"]


def test_a_split_may_replace_its_own_source(many, tmp_path):
    source = many.rename(many.with_name("train.zip"))
    call("split", source, "--dest", tmp_path / "out")
    refused(call("split", source, "--dest", source.parent, expected=2), source, "exists already")
    call("split", source, "--dest", source.parent, "--force")
    for name in names(tmp_path / "out"):
        assert (source.parent / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_both_archives_of_a_split_appear_or_none(many, tmp_path, monkeypatch):
    call("split", many, "--dest", tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    close, closed = ZipWriter.close, []

    def full_disk(writer):
        closed.append(writer)
        if len(closed) % 2 == 0:
            raise OSError(28, "No space left on device")
        close(writer)

    monkeypatch.setattr(ZipWriter, "close", full_disk)
    refused(call("split", many, "--dest", tmp_path / "out", "--seed", 5, "--force", expected=2), "No space left")
    refused(call("split", many, "--dest", tmp_path / "new", expected=2), "No space left")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")} == before
    assert not (tmp_path / "new").exists()


# --- the commands as such -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["export", "merge", "subset", "split"])
def test_help_describes_every_option(command):
    output = call(command, "--help")
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help and parameter.opts[0] in output, parameter.name


def test_archives_made_of_others_know_how_their_slices_were_cut(tmp_path):
    """By `convert` at first; sources that don't say it don't count."""

    asked = {"wide": {"resolution": 16}, "narrow": {"fov": 200, "head": "40"}}
    for name, options in asked.items():
        write(
            tmp_path / f"{name}.zip", cut([f"{name}{i}" for i in "ab"]), made={"command": CONVERT, "options": options}
        )
    write(tmp_path / "fake.zip", [dict(patient="f", seed=1)], made={"command": "generate.py", "options": {"fov": 3.0}})
    call("subset", tmp_path / "narrow.zip", "--slices=2", "--dest", tmp_path / "few.zip")
    call("split", tmp_path / "narrow.zip", "--test-fraction=0.5", "--dest", tmp_path / "parts")
    call("merge", tmp_path / "few.zip", tmp_path / "fake.zip", "--dest", tmp_path / "both.zip")
    call("merge", tmp_path / "wide.zip", tmp_path / "narrow.zip", "--dest", tmp_path / "differing.zip")
    known = {
        **dict.fromkeys(
            ("narrow.zip", "few.zip", "parts/train.zip", "parts/test.zip", "both.zip"), Cutting(200.0, "40")
        ),
        **{"wide.zip": Cutting(), "fake.zip": None, "differing.zip": None},
    }
    for name, cutting in known.items():
        assert cutting_of(ArchiveReader(tmp_path / name).info.made) == cutting, name
    for odd in ({"fov": -1.0}, {"fov": "200"}, {"fov": True}, {"fov": 0}, {"head": 40}, [200.0], "200"):
        assert cutting_of({"cutting": odd}) is None and cutting_of({"command": CONVERT, "options": odd}) is None
