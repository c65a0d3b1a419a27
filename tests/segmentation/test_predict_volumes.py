"""python -m segmentation predict: masks of NIfTI volumes."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

import dataset_tool
from helpers.drawn import turned, write_nifti
from rings import plain_dice, refused, run
from segmentation.config import TrainUNetConfig
from segmentation.evaluate import load_evaluation
from segmentation.fit import MODEL, train_unet
from segmentation.unet import build_unet, load_unet, save_unet
from slices.archive.history import Cutting
from slices.archive.reader import ArchiveReader
from slices.orientation import Orientation
from slices.phantom import write_patients
from slices.schema import BRATS

CASES = ("Phantom000_0000_1", "Phantom000_0001_1", "Phantom000_0002_1")
VALUES = {c.name: c.value for c in BRATS.classes}
SHAPE = (24, 24, 12)
FOV = 320  # mm; 32 pixels of 10 mm
TARGETS = {f"region {r.name}": [VALUES[name] for name in r.classes] for r in BRATS.regions} | {
    f"label {name}": [value] for name, value in VALUES.items()
}


def convert(*arguments) -> None:
    words = ["convert", "--resolution=32", "--slices=all", "--workers=1", *map(str, arguments)]
    result = CliRunner().invoke(dataset_tool.main, words)
    assert result.exit_code == 0, result.output


def draw_patient(random: np.random.RandomState) -> dict[str, np.ndarray]:
    """A head with nested balls as a lesion, that any U-Net learns: contrasts and 'seg', [L, P, S]."""
    l, p, s = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2 + 0.5
    head = ((l / 10) ** 2 + (p / 11) ** 2 < 1) & (np.abs(s) < 5) & ~((l < -5) & (p > 6))  # not symmetric
    distance = np.sqrt(sum((x - random.uniform(-2, 2)) ** 2 for x in (l, p, s)))
    seg = np.select([distance < 2.3, distance < 3.5, distance < 5], [1, 4, 2], 0) * head
    volumes = {}
    for n, contrast in enumerate(BRATS.contrasts):
        tissue = np.array([100, *np.roll([240, 160, 60, 200], n)])[seg] + random.randint(0, 20, SHAPE)
        volumes[contrast] = np.where(head, tissue, 0).astype(np.int16)
    return volumes | {"seg": seg.astype(np.uint8)}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Patients with voxels of 10 mm in `coarse`, the same with 5 mm in `fine`, and archives of 32 pixels of 10 mm."""
    folder, random = tmp_path_factory.mktemp("volumes"), np.random.RandomState(0)
    for case in CASES:
        for kind, volume in draw_patient(random).items():
            for name, times in (("coarse", 1), ("fine", 2)):
                path = folder / name / "HGG" / case / f"{case}_{kind}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = np.kron(volume, np.ones((times, times, 1), volume.dtype))
                write_nifti(path, *turned(image, "LPS", (10 / times, 10 / times, 5)))
    convert("--source", folder / "coarse", "--dest", folder / "coarse.zip")
    convert("--source", folder / "fine", "--dest", folder / "fine.zip", "--fov", FOV)
    return folder


@pytest.fixture(scope="module")
def model(place) -> Path:
    """A U-Net that answers with every class."""
    train_unet(TrainUNetConfig(steps=100, batch=8, lr=0.02, width=4), [place / "coarse.zip"], place / "unet")
    return place / "unet" / MODEL


@pytest.fixture(scope="module")
def masks(place, model) -> dict[str, nib.Nifti1Image]:
    """The masks of `coarse`."""
    code, output = run("predict", "--model", model, "--source", place / "coarse", "--dest", place / "masks")
    assert code == 0 and "3 masks; label values: 1 NCR, 2 ED, 4 ET" in output, output
    assert "it knows 3 of the 3 patients" in output and "larger than voxels" not in output
    assert sorted(path.name for path in (place / "masks").iterdir()) == [f"{case}.nii.gz" for case in CASES]
    return {case: nib.load(place / "masks" / f"{case}.nii.gz") for case in CASES}


def source_file(folder: Path, case: str, kind: str) -> Path:
    (path,) = folder.glob(f"*/{case}/{case}_{kind}.nii.gz")
    return path


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)


def copied(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "coarse", tmp_path / "source")


def evaluated(place: Path, model: Path, archive: str, outdir: Path) -> dict[str, dict[str, float]]:
    """Case -> target -> Dice, as `evaluate` has it."""
    options = ("--model", model, "--data", place / archive, "--outdir", outdir, "--allow-overlap")
    assert run("evaluate", *options)[0] == 0
    found = {}
    for one in load_evaluation(outdir / "results.json").examinations:
        found[one.patient] = {f"region {name}": target.dice for name, target in one.regions.items()} | {
            f"label {name}": target.dice for name, target in one.labels.items()
        }
    return found


def test_dice_of_the_files_is_that_of_evaluate(place, model, masks, tmp_path):
    expected = evaluated(place, model, "coarse.zip", tmp_path)
    found = {}
    for case, image in masks.items():
        truth = voxels(nib.load(source_file(place / "coarse", case, "seg")))
        found[case] = {name: plain_dice(voxels(image), truth, classes) for name, classes in TARGETS.items()}
        assert found[case] == pytest.approx(expected[case], abs=1e-6)
    # Empty masks would agree, too, and so would perfect ones.
    all_dice = [dice for case in CASES for dice in found[case].values()]
    assert min(all_dice) > 0.3 and len(set(all_dice)) > 9, found


def test_masks_lie_where_the_images_lie(place, masks):
    for case, image in masks.items():
        source = nib.load(source_file(place / "coarse", case, "flair"))
        assert image.shape == source.shape and image.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-5)
        assert image.header.get_xyzt_units()[0] == "mm" and image.header["scl_slope"] != 0
    assert set(np.unique([voxels(image) for image in masks.values()])) == {0, *VALUES.values()}


@pytest.mark.parametrize("axes, suffix", [("LAS", ".nii.gz"), ("SRP", ".nii")])
def test_axes_of_the_files_make_no_difference(place, model, masks, tmp_path, axes, suffix):
    for case in CASES[:2]:
        for kind in BRATS.contrasts:  # without masks
            source = nib.load(source_file(place / "coarse", case, kind))
            path = tmp_path / "source" / case / f"{case}_{kind}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            spacing = nib.affines.voxel_sizes(source.affine)
            image, affine = turned(Orientation.of(source.affine).to_lps(voxels(source)), axes, spacing)
            write_nifti(path, image, affine)
    code, output = run("predict", "--model", model, "--source", tmp_path / "source", "--dest", tmp_path / "masks")
    assert code == 0, output
    for case in CASES[:2]:
        image = nib.load(tmp_path / "masks" / f"{case}.nii.gz")
        assert "".join(nib.aff2axcodes(image.affine)) == axes
        np.testing.assert_allclose(image.affine[:3, 3], (11, -7, 3.5))
        expected = Orientation.of(masks[case].affine).to_lps(voxels(masks[case]))
        np.testing.assert_array_equal(Orientation.of(image.affine).to_lps(voxels(image)), expected)


def test_voxels_take_the_pixels_that_they_lie_in(place, model, tmp_path):
    """A pixel is 2×2 voxels here, so the archive's Dice can be computed on every second voxel."""
    options = ("--model", model, "--source", place / "fine", "--dest", tmp_path / "masks", "--fov", FOV)
    code, output = run("predict", *options)
    assert code == 0 and "Dice on voxels is not that of evaluate" in output, output
    expected = evaluated(place, model, "fine.zip", tmp_path)
    reader = ArchiveReader(place / "fine.zip")
    index_of = np.array([0, *VALUES.values()])
    for case in CASES:
        image = nib.load(tmp_path / "masks" / f"{case}.nii.gz")
        assert image.shape == (48, 48, 12)
        found = Orientation.of(image.affine).to_lps(voxels(image))
        for k in (0, 1):
            for j in (0, 1):
                np.testing.assert_array_equal(found[k::2, j::2], found[::2, ::2])
        pixels = np.zeros((12, 32, 32), int)
        pixels[:, 4:28, 4:28] = found[::2, ::2].T
        truth = np.stack([reader.schema.split(reader.read(i))[1] for i in reader.by_examination()[case, case]])
        dice = {name: plain_dice(pixels, index_of[truth], classes) for name, classes in TARGETS.items()}
        assert dice == pytest.approx(expected[case], abs=1e-6)


def test_voxels_outside_the_picture_are_background_and_counted(place, model, masks, tmp_path):
    """Twice as many voxels of 10 mm, of which the U-Net sees the middle 320 mm."""
    for case in CASES[:1]:
        for kind in BRATS.contrasts:
            source = nib.load(source_file(place / "coarse", case, kind))
            wide = np.pad(voxels(source), ((12, 12), (12, 12), (0, 0)))
            wide[:8, 20:30, 5:7] = wide.max()  # a head that reaches out of the picture
            path = tmp_path / "source" / case / f"{case}_{kind}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(path, wide, source.affine)
    options = ("predict", "--model", model, "--source", tmp_path / "source")
    code, output = run(*options, "--dest", tmp_path / "cut", "--fov", FOV, "--head=0")
    assert code == 0 and "1 case, 160 voxels" in output and "outside the picture" in output, output
    image = nib.load(tmp_path / "cut" / f"{case}.nii.gz")
    assert image.shape == (48, 48, 12) and not voxels(image)[:8].any() and voxels(image)[12:36, 12:36].any()
    code, output = run(*options, "--dest", tmp_path / "whole", "--head=0")
    assert code == 0 and "outside the picture" not in output, output
    assert "pixels of 15 mm, but the U-Net learned from pixels of 10 mm" in output


def test_lesion_beyond_the_volume_is_counted(place, model, tmp_path):
    """An untrained U-Net answers anything anywhere, also in the padding around the volume."""
    unet = load_unet(model)
    save_unet(tmp_path / "u", replace(unet, network=build_unet(unet.info.network, seed=1)))
    options = ("--model", tmp_path / "u", "--source", place / "coarse", "--dest", tmp_path / "masks")
    code, output = run("predict", *options)
    options = ("--model", tmp_path / "u", "--data", place / "coarse.zip", "--outdir", tmp_path, "--allow-overlap")
    assert code == 0 and run("evaluate", *options)[0] == 0
    found = [voxels(nib.load(path)) for path in (tmp_path / "masks").iterdir()]
    examinations = load_evaluation(tmp_path / "results.json").examinations
    beyond = sum(one.regions["WT"].predicted for one in examinations) - np.count_nonzero(found)
    assert beyond > 0 and f"3 cases, {beyond} pixels" in output, output


def test_the_head_may_be_given_as_masks(place, model, tmp_path):
    source = copied(place, tmp_path)
    for case in CASES:
        image = nib.load(source_file(source, case, "flair"))
        path = source_file(source, case, "flair").with_name(f"{case}_brain.nii.gz")
        write_nifti(path, (voxels(image) > 0).astype(np.uint8), image.affine)
    options = ("predict", "--model", model, "--source", source, "--dest")
    assert run(*options, tmp_path / "value", "--head=0")[0] == 0
    assert run(*options, tmp_path / "masks", "--head=HGG/{case}/{case}_brain.nii.gz")[0] == 0
    for case in CASES:
        found = (tmp_path / "masks" / f"{case}.nii.gz").read_bytes()
        assert found == (tmp_path / "value" / f"{case}.nii.gz").read_bytes()
    assert "_none.nii.gz is missing" in refused(*options, tmp_path / "x", "--head={grade}/{case}/{case}_none.nii.gz")


def test_masks_of_the_source_are_not_needed(place, model, masks, tmp_path):
    """Neither of one patient, nor of all, nor described; the contrasts may be in any order."""
    source = copied(place, tmp_path)
    source_file(source, CASES[1], "seg").unlink()
    options = ("predict", "--model", model, "--source", source)
    assert run(*options, "--dest", tmp_path / "one")[0] == 0
    for case in (CASES[0], CASES[2]):
        source_file(source, case, "seg").write_bytes(b"no NIfTI")
    assert run(*options, "--dest", tmp_path / "damaged")[0] == 0
    for path in source.rglob("*_t2.nii.gz"):
        path.rename(path.with_name(path.name.replace("t2", "T2w")))
    described = ("--contrasts=flair,T1=t1,t1,t1ce,t2=T2w", "--pattern={grade}/{case}/{case}_{contrast}.nii.gz")
    assert "t1 would stand for two" in refused(*options, "--dest", tmp_path / "x", *described)
    described = ("--contrasts=flair,t1,t1ce,t2=T2w", "--pattern={grade}/{case}/{case}_{contrast}.nii.gz")
    code, output = run(*options, "--dest", tmp_path / "none", *described)
    assert code == 0 and "label values: 1 NCR, 2 ED, 4 ET" in output, output
    for case in CASES:
        for folder in ("one", "damaged", "none"):
            found = (tmp_path / folder / f"{case}.nii.gz").read_bytes()
            assert found == (place / "masks" / f"{case}.nii.gz").read_bytes()


def test_one_file_of_all_contrasts(place, model, masks, tmp_path):
    (tmp_path / "source").mkdir()
    order = ("flair", "t1", "t1ce", "t2")
    for case in CASES:
        images = [nib.load(source_file(place / "coarse", case, kind)) for kind in order]
        stacked = np.stack([voxels(image) for image in images], axis=-1)
        write_nifti(tmp_path / "source" / f"{case}.nii.gz", stacked, images[0].affine)
    described = ("--contrasts", ",".join(order), "--pattern={case}.nii.gz")
    options = ("predict", "--model", model, "--source", tmp_path / "source", *described, "--dest")
    assert run(*options, tmp_path / "masks")[0] == 0
    for case in CASES:
        found = nib.load(tmp_path / "masks" / f"{case}.nii.gz")
        np.testing.assert_array_equal(voxels(found), voxels(masks[case]))
    # Here a mask would have the name of the images.
    output = refused(*options, tmp_path / "source", "--force")
    assert f"{CASES[0]}.nii.gz is a file of the source: choose another --dest" in output
    assert nib.load(tmp_path / "source" / f"{CASES[0]}.nii.gz").ndim == 4


def test_other_contrasts_are_refused(place, model, tmp_path):
    described = ("--contrasts=t1,flair", "--pattern={grade}/{case}/{case}_{contrast}.nii.gz")
    output = refused(
        "predict", "--model", model, "--source", place / "coarse", "--dest", tmp_path / "masks", *described
    )
    assert "has the contrasts t1, flair, but" in output and "takes t1, t1ce, t2, flair: t1ce, t2 are missing" in output
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    "release, words, values",
    [
        ("2023-gli", "label values: 1 NCR, 2 ED, 3 ET", {0, 1, 2, 3}),
        ("2024-gli", "label values are those of the U-Net's archives", {0, 1, 2, 4}),
    ],
)
def test_label_values_are_those_of_the_source(place, model, masks, tmp_path, release, words, values):
    names = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
    for n, case in enumerate(CASES):
        new = f"BraTS-GLI-0000{n}-000"
        (tmp_path / "source" / new).mkdir(parents=True)
        for kind, name in names.items():
            shutil.copy(source_file(place / "coarse", case, kind), tmp_path / "source" / new / f"{new}-{name}.nii.gz")
    options = ("--source", tmp_path / "source", "--dest", tmp_path / "masks", "--release", release)
    code, output = run("predict", "--model", model, *options)
    assert code == 0 and words in output and "it knows" not in output, output
    found = [voxels(nib.load(tmp_path / "masks" / f"BraTS-GLI-0000{n}-000.nii.gz")) for n in range(len(CASES))]
    assert set(np.unique(found)) == values
    et = max(values)
    for case, mask in zip(CASES, found, strict=True):
        np.testing.assert_array_equal(mask == et, voxels(masks[case]) == 4)


def test_masks_that_are_there_stay(place, model, masks, tmp_path):
    options = ("predict", "--model", model, "--source", place / "coarse", "--dest", tmp_path)
    (tmp_path / f"{CASES[2]}.nii.gz").write_bytes(b"mine")
    output = refused(*options)
    assert f"{CASES[2]}.nii.gz exists already" in output and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "other.txt").write_text("mine, too")
    assert run(*options, "--force")[0] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"other.txt", *(f"{case}.nii.gz" for case in CASES)}
    np.testing.assert_array_equal(voxels(nib.load(tmp_path / f"{CASES[2]}.nii.gz")), voxels(masks[CASES[2]]))


def test_a_case_that_cannot_be_read(place, model, tmp_path):
    source = copied(place, tmp_path)
    damaged = source_file(source, CASES[1], "t2")
    damaged.write_bytes(damaged.read_bytes()[:300])
    source_file(source, CASES[0], "t1").unlink()
    options = ("predict", "--model", model, "--source", source, "--dest", tmp_path / "masks")
    assert f"{CASES[0]}_t1.nii.gz is missing" in refused(*options)
    source_file(source, CASES[0], "t1ce").parent.rename(tmp_path / "away")
    output = refused(*options)
    assert f"{damaged}: damaged or incomplete" in output and "--on-error skip" in output
    assert not (tmp_path / "masks").exists()
    code, output = run(*options, "--on-error=skip")
    assert code == 0 and f"left out: {damaged}" in output and "left out: could not be read" in output
    assert [path.name for path in (tmp_path / "masks").iterdir()] == [f"{CASES[2]}.nii.gz"]
    other = source_file(source, CASES[2], "flair")
    other.write_bytes(b"")
    output = run(*options, "--on-error=skip", "--force")
    assert output[0] == 2 and "no case can be read, the first of 2" in output[1]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == [f"{CASES[2]}.nii.gz"]  # the old one


def learned(model: Path, path: Path, *cuttings: Cutting | None, **facts) -> Path:
    """The same U-Net, as if it had learned from archives that were cut like this."""
    unet = load_unet(model)
    archives = tuple(replace(unet.info.archives[0], cutting=one, **facts) for one in cuttings)
    save_unet(path, replace(unet, info=replace(unet.info, archives=archives)))
    return path


def test_slices_are_cut_as_the_archive_was(place, model, masks, tmp_path):
    def options(path):
        return ("predict", "--model", path, "--source", place / "coarse", "--force", "--dest", tmp_path / "masks")

    assert load_unet(model).info.archives[0].cutting == Cutting()
    for differing in ((Cutting(), Cutting(fov=240.0)), (Cutting(), Cutting(head="40"))):
        output = refused(*options(learned(model, tmp_path / "u", *differing)))
        assert "learned from archives of differing --" in output
    assert "(the whole slice, 240.0): choose one with --fov" in refused(
        *options(learned(model, tmp_path / "u", Cutting(), Cutting(fov=240.0)))
    )
    assert "(auto, 40): choose one with --head" in refused(*options(learned(model, tmp_path / "u", *differing)))
    # An archive that doesn't say it stands back; where none says it, as with fakes, the pixels tell.
    code, output = run(*options(learned(model, tmp_path / "u", None, Cutting(head="0"))))
    assert code == 0 and "doesn't know" not in output
    code, output = run(*options(learned(model, tmp_path / "u", None)))
    assert code == 0 and "doesn't know how its slices were cut from volumes: --fov 320 and --head auto" in output
    for case in CASES:
        found = nib.load(tmp_path / "masks" / f"{case}.nii.gz")
        np.testing.assert_array_equal(voxels(found), voxels(masks[case]))
    unknown = learned(model, tmp_path / "u", None, pixel=None)
    assert "learned from pixels of unknown size: say with --fov" in refused(*options(unknown))
    assert run(*options(unknown), "--fov", FOV)[0] == 0
    # --fov and --head reach the cutting.
    assert "no voxel is above that" in refused(*options(model), "--head=99999")
    assert "asks for pixels of 3.12 mm, but a voxel has 10 mm" in refused(*options(model), "--fov=100")


@pytest.mark.slow
def test_phantoms_of_64_pixels(tmp_path):
    """The project's own phantoms, with voxels of 3.75 mm, and others for training."""
    for name, seed in (("learned", 1), ("phantoms", 0)):
        write_patients(tmp_path / name, 3, seed, (64, 64, 24))
        convert("--source", tmp_path / name, "--dest", tmp_path / f"{name}.zip", "--resolution=64")
    config = TrainUNetConfig(steps=200, batch=8, lr=0.01, width=8, lesion_free=0.2)
    train_unet(config, [tmp_path / "learned.zip"], tmp_path / "unet")
    model, source = tmp_path / "unet" / MODEL, tmp_path / "phantoms"
    code, output = run("predict", "--model", model, "--source", source, "--dest", tmp_path / "masks")
    assert code == 0 and "it knows" not in output, output
    expected = evaluated(tmp_path, model, "phantoms.zip", tmp_path / "test")
    for case, dice in expected.items():
        found, truth = voxels(nib.load(tmp_path / "masks" / f"{case}.nii.gz")), source_file(source, case, "seg")
        truth = voxels(nib.load(truth))
        assert {t: plain_dice(found, truth, c) for t, c in TARGETS.items()} == pytest.approx(dice, abs=1e-6)
        assert dice["region WT"] > 0.05, dice
