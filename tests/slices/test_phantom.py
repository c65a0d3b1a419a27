"""Phantom patients: reproducible, anatomically plausible, in the layout of BraTS 2018."""

import functools
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dnnlib.errors import UserError
from slices import phantom
from slices.phantom import EDEMA, ENHANCING, NECROSIS, make_patient, write_patients

pytest.importorskip("nilearn")

SMALL = (48, 48, 31)  # 5 mm
SEED = 7


@functools.cache
def cohort() -> list[phantom.PhantomPatient]:
    return [make_patient(SEED, index, SMALL) for index in range(20)]


@functools.cache
def finer(index: int) -> phantom.PhantomPatient:
    return make_patient(SEED, index, (96, 96, 62))  # 2.5 mm


def enhancing() -> list[phantom.PhantomPatient]:
    return [p for p in cohort() if (p.label_map == ENHANCING).any()]


def head(patient: phantom.PhantomPatient) -> np.ndarray:
    return patient.contrasts["t1"] > 0


def healthy_white(patient: phantom.PhantomPatient) -> np.ndarray:
    """The brightest healthy tissue on T1, which is white matter."""
    t1 = patient.contrasts["t1"]
    healthy = head(patient) & ~ndimage.binary_dilation(patient.label_map > 0, iterations=2)
    return healthy & (t1 > np.quantile(t1[healthy], 0.8))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def same(a: phantom.PhantomPatient, b: phantom.PhantomPatient) -> bool:
    volumes = [*zip(a.contrasts.values(), b.contrasts.values(), strict=True), (a.label_map, b.label_map)]
    return a.name == b.name and a.grade == b.grade and all(np.array_equal(x, y) for x, y in volumes)


# ---- reproducible ----


def test_patient_is_a_function_of_seed_and_index():
    first = cohort()[3]
    assert same(first, make_patient(SEED, 3, SMALL))
    for other in (make_patient(SEED + 1, 3, SMALL), make_patient(SEED - 1, 4, SMALL), cohort()[4]):
        assert other.name != first.name
        assert not np.array_equal(other.contrasts["t1"] > 0, first.contrasts["t1"] > 0)
        assert not np.array_equal(other.label_map, first.label_map)


@pytest.mark.parametrize("shape", [(96, 96, 62), (64, 80, 39)])
def test_another_shape_shows_the_same_anatomy(shape):
    """Compared at the voxels of the coarser patient, with the nearest voxel of the other."""
    for index in range(2):
        coarse, other = cohort()[index], make_patient(SEED, index, shape)
        to_other = np.linalg.inv(other.affine) @ coarse.affine
        # Voxel indices [X, Y, Z, 3] -> indices in the other patient, rounded, as a tuple for indexing.
        positions = np.moveaxis(np.indices(SMALL), 0, -1) @ to_other[:3, :3].T + to_other[:3, 3]
        nearest = tuple(np.moveaxis(np.rint(positions - 1e-6).astype(int), -1, 0))
        assert dice(head(coarse), head(other)[nearest]) > 0.95
        assert dice(coarse.label_map > 0, other.label_map[nearest] > 0) > 0.8
        assert dice(np.isin(coarse.label_map, (1, 4)), np.isin(other.label_map[nearest], (1, 4))) > 0.75
        assert coarse.grade == other.grade
        inside = head(coarse) & head(other)[nearest]
        for name in phantom.CONTRASTS:
            pair = coarse.contrasts[name][inside], other.contrasts[name][nearest][inside]
            assert np.corrcoef(*pair)[0, 1] > 0.7, name


# ---- anatomy ----


def test_volumes_are_what_brats_holds():
    for patient in cohort():
        assert tuple(patient.contrasts) == ("t1", "t1ce", "t2", "flair")
        assert set(np.unique(patient.label_map)) <= {0, 1, 2, 4} and patient.label_map.dtype == np.uint8
        inside = head(patient)
        for image in patient.contrasts.values():
            assert image.dtype == np.int16 and image.shape == SMALL
            assert np.array_equal(image > 0, inside) and image.min() == 0  # one skull-stripped head, nothing else
            assert 100 < np.quantile(image[inside], 0.99) < 4000
        pieces = np.bincount(ndimage.label(inside)[0].flat)[1:]
        assert pieces.max() > 0.99 * pieces.sum()


def test_head_is_whole_and_centered():
    """On a grid with 1 mm from feet to head, where there is least room."""
    for index in range(3):
        inside = head(make_patient(SEED, index, (48, 48, 155)))
        assert not any(inside.take(edge, axis).any() for axis in range(3) for edge in (0, -1))
    middle = np.mean([ndimage.center_of_mass(head(p)) for p in cohort()], axis=0)
    assert np.abs((middle + 0.5) / SMALL - 0.5).max() < 0.06
    liters = [head(p).sum() * 5**3 / 1e6 for p in cohort()]
    assert 1.0 < min(liters) and max(liters) < 2.0


def test_second_axis_runs_to_the_back_and_third_up():
    """The brain is wider at the back than at the front. Left and right look the same in the template."""
    mean = np.mean([head(p) for p in cohort()], axis=0)
    assert dice(mean > 0.5, mean[::-1] > 0.5) > 0.95
    k = 20
    width = (mean[:, :, k] > 0.5).sum(axis=0)
    rows = np.flatnonzero(width)
    third = len(rows) // 3
    assert width[rows[-third:]].sum() > width[rows[:third]].sum()
    area = (mean > 0.5).sum(axis=(0, 1))
    assert area[4] < area[-8]  # brain stem and cerebellum below, hemispheres above


def test_healthy_tissues_have_their_order():
    """Tissues are found by intensity: fluid on T2, white and gray matter on T1. Compared are means over patients."""
    rows = []
    for patient in cohort():
        t1, t2 = patient.contrasts["t1"], patient.contrasts["t2"]
        healthy = head(patient) & ~ndimage.binary_dilation(patient.label_map > 0, iterations=2)
        low, high = np.quantile(t1[healthy], [0.25, 0.45])
        tissues = (
            healthy_white(patient),
            healthy & (t1 > low) & (t1 < high),
            healthy & (t2 > np.quantile(t2[healthy], 0.98)),
        )
        rows.append(
            [[image[t].mean() / image[healthy].mean() for t in tissues] for image in patient.contrasts.values()]
        )
    t1, t1ce, t2, flair = np.mean(rows, axis=0)
    for white, gray, fluid in (t1, t1ce):
        assert white > 1.15 * gray and gray > 1.3 * fluid
    white, gray, fluid = t2
    assert fluid > 1.3 * gray and gray > 1.1 * white
    white, gray, fluid = flair
    assert gray > 1.03 * white and white > 1.3 * fluid


# ---- tumors ----


def test_tumors_differ_and_some_do_not_enhance():
    grades = [p.grade for p in cohort()]
    assert 1 <= grades.count("LGG") <= 9
    hgg = [p for p in cohort() if p.grade == "HGG"]
    with_rim = [p for p in hgg if (p.label_map == ENHANCING).any()]
    assert len(with_rim) > 0.7 * len(hgg)
    assert 1 <= len(cohort()) - len(enhancing()) <= 10
    for patient in cohort():
        assert (patient.label_map == EDEMA).any()
        assert np.isin(patient.label_map, (NECROSIS, ENHANCING)).any()
    diameters = [(6 / np.pi * (p.label_map > 0).sum() * 5**3) ** (1 / 3) for p in cohort()]
    assert 20 < min(diameters) < 42 and 55 < max(diameters) < 85
    sides = [ndimage.center_of_mass(p.label_map > 0)[0] > SMALL[0] / 2 for p in cohort()]
    assert 4 <= sum(sides) <= 16


def test_parts_are_nested():
    for index in range(4):
        patient = finer(index)
        labels, inside = patient.label_map, head(patient)
        assert not (labels[~inside] > 0).any()
        depth = ndimage.distance_transform_edt(labels > 0, sampling=2.5)
        if patient.label_map.max() == ENHANCING:
            assert depth[labels == NECROSIS].min() > 3.5  # mm
            neighbors = ndimage.binary_dilation(labels == NECROSIS) & (labels != NECROSIS)
            assert (labels[neighbors] == ENHANCING).all()
        assert depth[np.isin(labels, (NECROSIS, ENHANCING))].mean() > depth[labels == EDEMA].mean()


def test_rim_is_thick_enough_to_be_seen():
    """The border of the necrosis lies 4 to 8 mm inside that of the core. At 64×64, a pixel has 3.75 mm."""
    rims = [p.label_map for p in map(finer, range(4)) if p.label_map.max() == ENHANCING]
    assert len(rims) >= 2
    for labels in rims:
        depth = ndimage.distance_transform_edt(np.isin(labels, (NECROSIS, ENHANCING)), sampling=2.5)
        edge = (labels == NECROSIS) & ndimage.binary_dilation(labels == ENHANCING)
        assert 4 < depth[edge].mean() < 8


def test_parts_look_as_they_do_in_mr():
    checked = 0
    for patient in enhancing():
        labels, white = patient.label_map, healthy_white(patient)
        mean = {
            (name, part): image[mask].mean()
            for name, image in patient.contrasts.items()
            for part, mask in {
                "edema": labels == EDEMA,
                "rim": labels == ENHANCING,
                "necrosis": labels == NECROSIS,
                "white": white,
                "head": head(patient),
            }.items()
            if mask.any()
        }
        assert mean["flair", "edema"] > 1.3 * mean["flair", "white"]
        assert mean["t2", "edema"] > 1.3 * mean["t2", "white"]
        assert mean["t1", "edema"] < 0.9 * mean["t1", "white"]
        assert mean["t1ce", "rim"] > 1.1 * mean["t1ce", "white"]
        assert mean["t1", "rim"] < mean["t1", "white"]  # bright after contrast agent only
        if (labels == NECROSIS).sum() > 30:  # enough voxels that are not mixed with the rim
            checked += 1
            assert mean["t1ce", "necrosis"] < 0.8 * mean["t1ce", "rim"]
            assert mean["t1", "necrosis"] < mean["t1", "edema"]
            assert mean["t2", "necrosis"] > mean["t2", "head"]
            assert mean["flair", "necrosis"] < mean["flair", "edema"]
    assert checked >= 3
    for patient in cohort():
        if not (patient.label_map == ENHANCING).any():
            t1ce = patient.contrasts["t1ce"]
            assert t1ce[patient.label_map == NECROSIS].mean() < 0.85 * t1ce[healthy_white(patient)].mean()


def test_edema_prefers_white_matter(monkeypatch):
    """Compared with the same tumors in a brain where edema spreads through all tissues alike.

    The tissue under an edema is judged by T1 at the same place in the healthy hemisphere: white matter is brightest.
    """

    def brightness_taken(patient: phantom.PhantomPatient) -> float:
        other_side = patient.contrasts["t1"][::-1]
        free = head(patient) & (other_side > 0) & ~ndimage.binary_dilation(patient.label_map > 0, iterations=2)[::-1]
        return other_side[(patient.label_map == EDEMA) & free].mean() / patient.contrasts["t1"][head(patient)].mean()

    indices = range(8)
    drawn = [brightness_taken(cohort()[i]) for i in indices]
    atlas = phantom._atlas()
    even = replace(atlas.tract, values=np.full_like(atlas.tract.values, 0.5))
    monkeypatch.setattr(phantom, "_loaded", replace(atlas, tract=even))
    indifferent = [brightness_taken(make_patient(SEED, i, SMALL)) for i in indices]
    assert np.mean(drawn) > 1.03 * np.mean(indifferent)
    assert np.mean(np.array(drawn) > np.array(indifferent)) >= 0.75


def test_tumor_spares_the_fluid():
    """By the depth map of the atlas, no tumor voxel lies in a ventricle, in a fissure or outside the brain."""
    traits = phantom._draw(np.random.default_rng([SEED, 0]))
    voxel = tuple(side / n for side, n in zip(phantom.FIELD_OF_VIEW, SMALL, strict=True))
    _, axes = phantom._head_box(traits, voxel, SMALL)
    place = phantom._to_template(traits, axes).reshape(3, -1)
    pushed, lesion = phantom._grow(traits, place, lambda c, spacing: phantom._field(c, spacing, axes).ravel())
    assert (lesion.whole < 0).sum() > 100
    assert phantom._atlas().depth.at(pushed)[lesion.whole < 0].min() > 0
    assert (lesion.whole < lesion.core).all() and (lesion.core < lesion.necrosis).all()


def test_smooth_fields_have_unit_variance_and_do_not_depend_on_the_grid():
    control = phantom._controls(np.random.default_rng(0), 1, 5.0)[0]
    fine, coarse = np.linspace(-60, 60, 61), np.linspace(-60, 60, 31)
    values = phantom._field(control, 5.0, [fine, fine, fine])
    assert values.std() == pytest.approx(1, abs=0.05) and values.dtype == np.float32
    assert np.allclose(values[::2, ::2, ::2], phantom._field(control, 5.0, [coarse] * 3), atol=1e-5)
    assert np.abs(np.diff(values, axis=0)).mean() < 0.6  # 2 mm apart: smooth, where white noise would give 1.1


# ---- files ----


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_have_the_layout_of_brats_and_do_not_depend_on_workers(tmp_path):
    write_patients(tmp_path / "alone", 3, SEED, SMALL, workers=1)
    write_patients(tmp_path / "shared", 2, SEED, SMALL, workers=2)
    alone, shared = files(tmp_path / "alone"), files(tmp_path / "shared")
    expected = {
        f"{p.grade}/{p.name}/{p.name}_{kind}.nii.gz" for p in cohort()[:3] for kind in (*phantom.CONTRASTS, "seg")
    }
    assert set(alone) == expected
    assert len(shared) == 10 and shared == {name: alone[name] for name in shared}

    patient = cohort()[1]
    assert patient.name == "Phantom007_0001_1"
    for kind in (*phantom.CONTRASTS, "seg"):
        image = nib.load(tmp_path / "alone" / patient.grade / patient.name / f"{patient.name}_{kind}.nii.gz")
        volume = patient.label_map if kind == "seg" else patient.contrasts[kind]
        assert image.get_data_dtype() == volume.dtype
        assert np.array_equal(np.asarray(image.dataobj), volume)
        assert np.array_equal(image.affine, patient.affine)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_affine_keeps_the_field_of_view():
    full = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert np.array_equal(phantom._affine((1, 1, 1)), full)
    small = cohort()[0].affine
    for corner in np.ndindex(2, 2, 2):  # outer corners of the two grids
        a = full @ [*(np.array(corner) * phantom.FIELD_OF_VIEW - 0.5), 1]
        assert np.allclose(a, small @ [*(np.array(corner) * SMALL - 0.5), 1])


def test_a_folder_in_use_is_refused_unless_forced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty.*--force"):
        write_patients(tmp_path, 1, SEED, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    case = tmp_path / cohort()[0].grade / cohort()[0].name
    case.mkdir(parents=True)
    (case / "stale.nii.gz").write_bytes(b"")
    write_patients(tmp_path, 1, SEED, SMALL, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(case.iterdir())) == 5 and not (case / "stale.nii.gz").exists()


def test_an_interrupted_case_leaves_no_folder(tmp_path, monkeypatch):
    save, written = nib.save, []

    def fails_at_the_third(image, path):
        written.append(path)
        if len(written) == 3:
            raise OSError("disk full")
        save(image, path)

    monkeypatch.setattr(nib, "save", fails_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        write_patients(tmp_path, 1, SEED, SMALL)
    assert len(written) == 3 and files(tmp_path) == {}
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "0 patients"),
        ({"workers": 0}, "0 workers"),
        ({"seed": -1}, "seed -1"),
        ({"shape": (48, 48, 8)}, "48×48×8"),
        ({"shape": (48, 48)}, "48×48 voxels"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_patients(**{"dest": tmp_path / "new", "patients": 1, "seed": 0, "shape": SMALL, "workers": 1, **change})
    assert not (tmp_path / "new").exists()


def test_missing_nilearn_is_named(monkeypatch):
    monkeypatch.setattr(phantom, "_loaded", None)
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(UserError, match="install it with `make setup`"):
        make_patient(0, 0, (16, 16, 16))
