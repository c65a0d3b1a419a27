"""Export as NIfTI volumes and pictures: slices come back at their places in the source."""

import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from helpers.commands import call, refused
from helpers.drawn import ALL_AXES, NO_CLASSES, draw_head, turned, write_case
from slices.archive.format import Volume
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.geometry import area_weights
from slices.render import PALETTE
from slices.schema import BRATS, LesionClass, Schema


def draw(seed=0):
    """A head of 47×60×10 voxels along L, P, S. Its differences to 64 and 32 pixels are odd along L, even along P."""
    return {kind: volume[3:50] for kind, volume in draw_head(seed).items()}


def convert(source, dest, resolution, *arguments):
    call("convert", "--source", source, "--dest", dest, "--resolution", resolution, "--workers", 1, *arguments)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder, kind):
    return nib.load(folder / f"{folder.name}_{kind}.nii.gz")


# --- the source's own grid ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turned_cases(tmp_path_factory):
    """One head in files of all 48 axes, with voxels of 1×1×2.5 mm."""
    source = tmp_path_factory.mktemp("turned")
    for n, axes in enumerate(ALL_AXES):
        write_case(source, f"Brats18_X_{n}_1", draw(), axes, (1.0, 1.0, 2.5))
    return source


@pytest.fixture(scope="module")
def padded(turned_cases, tmp_path_factory):
    """An archive of their slices with tumor, padded to 64×64 pixels."""
    path = tmp_path_factory.mktemp("padded") / "x.zip"
    convert(turned_cases, path, 64)
    return path


@pytest.mark.parametrize("fov", [None, 32.0], ids=["padded", "cropped"])
def test_what_comes_back_lies_in_the_source_files_grid(turned_cases, padded, tmp_path, fov):
    if fov:
        convert(turned_cases, tmp_path / "x.zip", 32, "--fov", fov)
    output = call("export", tmp_path / "x.zip" if fov else padded, "--dest", tmp_path / "out", "--format", "nifti")
    assert "written: " in output and "192 slices of 48 patients" in output
    # Voxels that a picture shows, along L, P, S: the middle. If the difference is odd, the first margin is smaller.
    shown = np.zeros((47, 60, 10), bool)
    shown[(slice(8, 40), slice(14, 46)) if fov else ()] = True
    shown[:, :, [0, 1, 2, 7, 8, 9]] = False
    for n, axes in enumerate(ALL_AXES):
        source, out = turned_cases / f"Brats18_X_{n}_1", tmp_path / "out" / f"Brats18_X_{n}_1"
        about = json.loads((out / "slices.json").read_text())
        kept = turned(shown, axes)[0]
        labels, truth = load(out, "seg"), load(source, "seg")
        assert labels.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(labels.dataobj), np.where(kept, truth.dataobj, 0))
        for contrast in BRATS.contrasts:
            image, original = load(out, contrast), load(source, contrast)
            assert image.shape == original.shape and image.get_data_dtype() == np.float32
            np.testing.assert_array_equal(image.affine, original.affine)
            low, high = about["windows"][contrast]
            before, after = original.get_fdata(), image.get_fdata()
            head = kept & (before != 0)  # the background of these files is 0
            assert (after[~head] == 0).all()
            error = np.abs(np.clip(before, low, high) - after)[head]
            assert error.max() <= (high - low) / 254 / 2 * (1 + 1e-6)
            assert (before[head] > high).any()  # clipping was tried
        assert about["slices"]["present"] == [3, 4, 5, 6] and about["slices"]["of"] == 10
        axis, planes = about["slices"]["axis"], about["slices"]["planes"]
        assert axis == next(i for i, letter in enumerate(axes) if letter in "SI")
        assert planes == ([3, 4, 5, 6] if "S" in axes else [6, 5, 4, 3])
        description = image.header["descrip"].item().decode()
        some = ", middle 32x32 of 47x60" if fov else ""
        assert description == f"source voxels{some}; 4 of 10 slices, others 0"
        assert re.search(rf"{out.name} +4 +10 +source voxels{some.replace('x', '×')}\n", output)


def test_slices_json_says_where_they_are_from(turned_cases, tmp_path):
    chosen = tmp_path / "split.json"
    names = [f"Brats18_X_{n}_1" for n in range(48)]
    chosen.write_text(json.dumps({"train": names[1:2], "test": names[:1]}))
    convert(turned_cases, tmp_path / "two", 64, "--split-file", chosen)
    archive = tmp_path / "two" / "test.zip"
    call("export", archive, "--dest", tmp_path / "out", "--format", "nifti")
    about = json.loads((tmp_path / "out" / names[0] / "slices.json").read_text())
    reader = ArchiveReader(archive)
    assert about["archive"]["name"] == "test.zip" and len(about["archive"]["sha256"]) == 64
    assert about["schema"]["contrasts"] == list(BRATS.contrasts) and about["part"] == "test"
    assert about["slices"]["present"] == list(range(10))
    assert {k: tuple(v) for k, v in about["windows"].items()} == reader.info.volumes[names[0]].windows
    assert [path.name for path in (tmp_path / "out").iterdir()] == names[:1]


def test_slices_need_not_lie_together_nor_in_order(turned_cases, padded, tmp_path):
    reader = ArchiveReader(padded)
    with ArchiveWriter(tmp_path / "shuffled.zip", reader.schema, 64, {}) as writer:
        writer.volumes = dict(reader.info.volumes)
        for i in (6, 0, 5, 3, 1, 7):
            r = reader.info.slices[i]
            writer.add_packed(reader.packed(i), patient=r.patient, volume=r.volume, index=r.index)
    call("export", tmp_path / "shuffled.zip", "--dest", tmp_path / "out", "--format", "nifti")
    first, second = (tmp_path / "out" / name for name in reader.info.patients[:2])
    for folder, present in ((first, [3, 4, 6]), (second, [4, 5, 6])):
        about = json.loads((folder / "slices.json").read_text())
        assert about["slices"]["present"] == present
        kept = np.zeros((47, 60, 10), bool)
        kept[:, :, present] = True
        kept = turned(kept, ALL_AXES[int(folder.name.split("_")[2])])[0]
        truth = np.asarray(load(turned_cases / folder.name, "seg").dataobj)
        np.testing.assert_array_equal(np.asarray(load(folder, "seg").dataobj), np.where(kept, truth, 0))


# --- the archive's grid ---------------------------------------------------------------------------------------------


def middle(lengths):
    """Center of a pixel, from its weights for a row of voxels. Voxel j reaches from j − ½ to j + ½."""
    first, *_, last = np.flatnonzero(lengths).tolist() * 2
    return (first + 0.5 - lengths[first] + last - 0.5 + lengths[last]) / 2


@pytest.mark.parametrize(
    "axes, spacing, resolution, words",
    [
        ("LPS", (1.0, 1.0, 2.0), 32, "1.875 mm"),
        ("RAS", (1.0, 1.0, 1.0), 16, "3.75 mm"),
        ("SLA", (1.0, 1.5, 3.0), 64, "1.5 mm"),  # one axis keeps its voxels, with an odd difference; the other doesn't
        ("PIR", (1.5, 1.0, 3.0), 64, "1.5 mm"),
    ],
)
def test_resampled_pixels_lie_where_they_were(tmp_path, axes, spacing, resolution, words):
    folder = write_case(tmp_path / "source", "Brats18_X_1_1", draw(), axes, spacing)
    convert(tmp_path / "source", tmp_path / "x.zip", resolution, "--slices", "all")
    output = call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "nifti")
    assert f"resampled to {words} pixels" in output
    reader = ArchiveReader(tmp_path / "x.zip")
    out = tmp_path / "out" / folder.name
    image, source = load(out, "t1"), load(folder, "t1")
    assert image.header["descrip"].item().decode() == f"resampled to {words} pixels; 10 of 10 slices, others 0"
    assert image.shape == (resolution, resolution, 10) and nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(
        nib.affines.voxel_sizes(image.affine), (reader.info.volumes[folder.name].pixel,) * 2 + (spacing[2],), rtol=1e-6
    )
    # The place of a pixel, computed from the source: the center of the voxels that it covers.
    turn = nib.orientations.ornt_transform(nib.io_orientation(source.affine), nib.orientations.axcodes2ornt("LPS"))
    to_world = source.affine @ nib.orientations.inv_ornt_aff(turn, source.shape)
    pixel = reader.info.volumes[folder.name].pixel
    shares = [area_weights(n, mm, resolution, pixel).toarray() for n, mm in zip((47, 60), spacing[:2], strict=True)]
    full = [np.flatnonzero(np.isclose(share.sum(axis=1), 1)) for share in shares]
    for i, j, k in itertools.product(full[0][[0, 3, -1]], full[1][[0, 3, -1]], (0, 7)):
        center = [middle(share[at] * pixel / mm) for share, at, mm in zip(shares, (i, j), spacing, strict=False)]
        expected = nib.affines.apply_affine(to_world, (*center, k))
        np.testing.assert_allclose(nib.affines.apply_affine(image.affine, (i, j, k)), expected, atol=0.01)
    # The volume consists of the archive's pictures [P, L], stacked from the feet.
    for i, record in enumerate(reader.info.slices):
        contrasts, classes = BRATS.split(reader.read(i))
        np.testing.assert_array_equal(
            np.asarray(load(out, "seg").dataobj)[:, :, record.index], np.array([0, 1, 2, 4])[classes].T
        )
        low, high = reader.info.volumes[folder.name].windows["t1"]
        expected = np.where(contrasts[0], low + (contrasts[0] - 1.0) / 254 * (high - low), 0)
        np.testing.assert_allclose(image.dataobj[:, :, record.index], expected.T, rtol=1e-6)
    # An independent check: the tumor's center is where it was.
    centers = [
        nib.affines.apply_affine(i.affine, np.argwhere(np.asarray(i.dataobj) > 0)).mean(axis=0)
        for i in (load(out, "seg"), load(folder, "seg"))
    ]
    np.testing.assert_allclose(centers[0], centers[1], atol=pixel / 2)


# --- slices of no known volume --------------------------------------------------------------------------------------


def write_singles(path, schema=BRATS, resolution=16, wheres=()):
    """Write an archive of random slices, and return these."""
    rng = np.random.default_rng(0)
    stored = [
        schema.join(
            rng.integers(0, 256, (schema.num_contrasts, resolution, resolution), dtype=np.uint8),
            rng.integers(0, max(1, schema.num_maps), (resolution, resolution)),
        )
        for _ in wheres
    ]
    with ArchiveWriter(path, schema, resolution, {}) as writer:
        for one, where in zip(stored, wheres, strict=True):
            writer.add(one, **where)
    return stored


def test_generated_slices_are_never_stacked(tmp_path):
    wheres = [dict(patient=f"generated-{seed}", seed=seed, snapshot="beef") for seed in (7, 8)]
    wheres += [dict(patient="unknown", index=1), dict(patient="unknown", index=2), dict(patient="bare")]
    stored = write_singles(tmp_path / "x.zip", wheres=wheres)
    output = call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "nifti")
    assert "5 slices of no known volume, each by itself; pixel size unknown" in output
    names = ["generated-7", "generated-8", "unknown-00000002", "unknown-00000003", "bare"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for n, name in enumerate(names):
        folder = tmp_path / "out" / name
        assert sorted(content(folder)) == sorted(
            ["slices.json", *(f"{name}_{kind}.nii.gz" for kind in (*BRATS.contrasts, "seg"))]
        )
        contrasts, classes = BRATS.split(stored[n])
        for kind, picture in zip((*BRATS.contrasts, "seg"), (*contrasts, np.array([0, 1, 2, 4])[classes]), strict=True):
            image = load(folder, kind)
            assert image.shape == (16, 16, 1)
            np.testing.assert_array_equal(image.affine, np.diag((-1, -1, 1, 1)))
            np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].T, picture)
            origin = "generated" if n < 2 else "of an unknown volume"
            assert image.header["descrip"].item().decode() == f"{origin}; pixel size unknown"
    about = json.loads((tmp_path / "out" / "generated-8" / "slices.json").read_text())
    assert (about["seed"], about["snapshot"], about["patient"]) == (8, "beef", "generated-8")


def test_a_volume_keeps_its_name_beside_a_single_slice_of_the_patient(tmp_path):
    volume = Volume("P1", (16, 16, 3), AFFINE, 1.0, WINDOWS | {"t1": (5.0, 9.0)})
    wheres = [dict(patient="P1", volume="P1", index=0), dict(patient="P1")]
    wheres += [dict(patient="fake", volume="P1", index=1, seed=7)]  # generated, although it also names a volume
    write_described(tmp_path / "x.zip", volume, wheres)
    call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "nifti")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["P1", "P1-00000001", "fake"]
    assert load(tmp_path / "out" / "P1", "t1").shape == (16, 16, 3)
    assert load(tmp_path / "out" / "fake", "t1").shape == (16, 16, 1)
    assert not np.asarray(load(tmp_path / "out" / "P1", "t1").dataobj)[..., 1:].any()


@pytest.mark.parametrize(
    "values, kind", [((1, 2, 255), np.uint8), ((1, 2, 256), np.int16), ((-1, 2, 3), np.int16), ((1, 40000), np.int32)]
)
def test_label_values_of_other_schemas(tmp_path, values, kind):
    schema = Schema(("t1",), tuple(LesionClass(f"c{v}", "", v) for v in values))
    (stored,) = write_singles(tmp_path / "x.zip", schema, wheres=[dict(patient="a", seed=1)])
    call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "nifti")
    image = load(tmp_path / "out" / "a", "seg")
    assert image.get_data_dtype() == kind
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0].T, np.array([0, *values])[schema.split(stored)[1]])


@pytest.mark.parametrize("form, names", [("nifti", ["a_t1.nii.gz", "a_t2.nii.gz"]), ("png", ["seed0001_t1.png"])])
def test_without_classes_there_is_no_label_map(tmp_path, form, names):
    write_singles(tmp_path / "x.zip", NO_CLASSES, wheres=[dict(patient="a", seed=1)])
    call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", form)
    written = sorted(content(tmp_path / "out"))
    assert not [name for name in written if "seg" in name] and set(names) <= {name.split("/")[-1] for name in written}


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures(padded, tmp_path):
    output = call("export", padded, "--dest", tmp_path / "out", "--format", "png")
    assert re.search(r"Brats18_X_0_1 +4 +10\n", output) and "192 slices of 48 patients" in output
    reader = ArchiveReader(padded)
    assert len(content(tmp_path / "out")) == 192 * 5 + 1
    for i, record in list(enumerate(reader.info.slices))[::17]:
        contrasts, classes = BRATS.split(reader.read(i))
        stem = tmp_path / "out" / record.volume / f"{record.index:03d}"
        for contrast, picture in zip(BRATS.contrasts, contrasts, strict=True):
            image = Image.open(f"{stem}_{contrast}.png")
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), picture)
        labels = Image.open(f"{stem}_seg.png")
        assert labels.mode == "P" and open(f"{stem}_seg.png", "rb").read()[24] == 8  # the bit depth in the header
        np.testing.assert_array_equal(np.asarray(labels), classes)
        colors = np.array([(0, 0, 0), *PALETTE])
        np.testing.assert_array_equal(np.asarray(labels.convert("RGB")), colors[classes])
    about = json.loads((tmp_path / "out" / "channels.json").read_text())
    assert [(c["index"], c["name"], c["value"]) for c in about["labels"]] == [
        (0, "background", 0),
        (1, "NCR", 1),
        (2, "ED", 2),
        (3, "ET", 4),
    ]
    assert about["labels"][1]["colour"] == list(PALETTE[0])
    name = "Brats18_X_0_1"
    assert about["volumes"][name]["windows"]["t2"] == list(reader.info.volumes[name].windows["t2"])
    assert about["volumes"][name]["pixel"] == 1 and about["schema"]["classes"][2]["value"] == 4


def test_pictures_of_slices_without_volumes(tmp_path):
    wheres = [dict(patient="a", seed=7, snapshot="x"), dict(patient="a", seed=7, snapshot="y")]
    wheres += [dict(patient="b", index=12), dict(patient="b")]
    write_singles(tmp_path / "x.zip", NO_CLASSES, wheres=wheres)
    call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "png")
    assert sorted(content(tmp_path / "out")) == sorted(
        [
            "channels.json",
            *(
                f"{stem}_{contrast}.png"
                for stem in ("a/seed0007-00000000", "a/seed0007-00000001", "b/012", "b/slice00000003")
                for contrast in ("t1", "t2")
            ),
        ]
    )


# --- destinations ---------------------------------------------------------------------------------------------------

FORMATS = pytest.mark.parametrize("form", ["nifti", "png"])


@FORMATS
def test_bytes_depend_on_the_archive_alone(tmp_path, form):
    write_case(tmp_path / "source", "Brats18_X_1_1", draw())
    convert(tmp_path / "source", tmp_path / "x.zip", 64)
    (tmp_path / "empty").mkdir()
    for dest in ("new", "empty"):
        call("export", tmp_path / "x.zip", "--dest", tmp_path / dest, "--format", form)
    assert content(tmp_path / "new") == content(tmp_path / "empty")
    for name, held in content(tmp_path / "new").items():
        assert not name.endswith(".gz") or held[4:8] == bytes(4)  # no time in the header of gzip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new", "source", "x.zip"]


@FORMATS
def test_what_is_there_stays_unless_forced(tmp_path, form):
    write_singles(tmp_path / "x.zip", wheres=[dict(patient="a", seed=1)])
    out = tmp_path / "out"
    call("export", tmp_path / "x.zip", "--dest", out, "--format", form)
    fresh = content(out)
    (out / "a" / "notes.txt").write_text("mine")
    spoilt = next(path for path in sorted((out / "a").iterdir()) if "t1" in path.name)
    spoilt.write_text("old")
    before = content(out)
    refused(
        call("export", tmp_path / "x.zip", "--dest", out, "--format", form, expected=2), out, "not empty", "--force"
    )
    assert content(out) == before
    call("export", tmp_path / "x.zip", "--dest", out, "--format", form, "--force")
    assert content(out) == fresh | {"a/notes.txt": b"mine"}


@FORMATS
def test_a_slice_that_cannot_be_read_leaves_nothing(tmp_path, form):
    write_singles(tmp_path / "x.zip", wheres=[dict(patient=f"p{n}", seed=n) for n in range(4)])
    damaged = bytearray((tmp_path / "x.zip").read_bytes())
    place = damaged.index(b"slices/00000/00000002.npy")
    damaged[place + 200 : place + 220] = bytes(20)
    (tmp_path / "x.zip").write_bytes(damaged)
    output = call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", form, expected=2)
    refused(output, "x.zip", "00000002.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_destinations_that_are_no_folder(tmp_path):
    write_singles(tmp_path / "x.zip", wheres=[dict(patient="a", seed=1)])
    before = (tmp_path / "x.zip").read_bytes()
    for dest in (tmp_path / "x.zip", tmp_path / "x.zip" / "out"):
        output = call("export", tmp_path / "x.zip", "--dest", dest, "--format", "png", "--force", expected=2)
        refused(output, tmp_path / "x.zip", "choose another name")
    output = call("export", tmp_path / "none.zip", "--dest", tmp_path / "out", "--format", "png", expected=2)
    refused(output, tmp_path / "none.zip", "no such file")
    assert (tmp_path / "x.zip").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["x.zip"]


# --- archives of other programs -------------------------------------------------------------------------------------

WINDOWS = {contrast: (0.0, 9.0) for contrast in BRATS.contrasts}
AFFINE = tuple(map(tuple, np.diag((-1.0, -1, 1, 1)).tolist()))


def write_described(path, volume, wheres):
    with ArchiveWriter(path, BRATS, 16, {}) as writer:
        writer.volumes["P1"] = volume
        for where in wheres:
            writer.add(BRATS.join(np.ones((4, 16, 16), np.uint8), np.zeros((16, 16), int)), **where)


@pytest.mark.parametrize(
    "change, indices, words",
    [
        ({}, [3], "slice 3 of the volume P1, which has the slices 0 to 2"),
        ({}, [1, 1], "00000001.npy of the volume P1 has the index 1, as another"),
        ({}, [None], "has no index"),
        ({"affine": (AFFINE[0], AFFINE[0], *AFFINE[2:])}, [0], "its affine is not invertible"),
        ({"shape": (16, 32768, 3)}, [0], "its shape is [16, 32768, 3]; expected at most 32767"),
        ({"shape": (16, 30000, 30000)}, [0], "16×30000×30000 voxels are too many"),
        ({"affine": ((1e39, 0.0, 0.0, 0.0), *AFFINE[1:])}, [0], "its affine is not invertible"),
    ],
)
@FORMATS
def test_volumes_that_make_no_sense(tmp_path, change, indices, words, form):
    volume = Volume(**{**dict(patient="P1", shape=(16, 16, 3), affine=AFFINE, pixel=1.0, windows=WINDOWS), **change})
    write_described(tmp_path / "x.zip", volume, [dict(patient="P1", volume="P1", index=index) for index in indices])
    output = call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", form, expected=2)
    refused(output, tmp_path / "x.zip", "P1", words)
    assert not (tmp_path / "out").exists()


def test_a_contrast_with_the_name_of_the_label_map(tmp_path):
    schema = Schema(("t1", "seg"), (LesionClass("MS", "lesion", 1),))
    write_singles(tmp_path / "x.zip", schema, wheres=[dict(patient="a", seed=1)])
    output = call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "nifti", expected=2)
    refused(output, "x.zip", "a contrast is called seg")


def test_a_constant_contrast_comes_back_as_its_only_value(tmp_path):
    volume = Volume("P1", (16, 16, 3), AFFINE, 1.0, WINDOWS | {"t2": (5.0, 5.0)})
    write_described(tmp_path / "x.zip", volume, [dict(patient="P1", volume="P1", index=1)])
    call("export", tmp_path / "x.zip", "--dest", tmp_path / "out", "--format", "nifti")
    values = np.asarray(load(tmp_path / "out" / "P1", "t2").dataobj)
    assert (values[:, :, 1] == 5).all() and (values[:, :, [0, 2]] == 0).all()
