"""Evaluation of a U-Net on an archive: results.json."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from dnnlib.files import sha256
from rings import RING, SIZE, draw_ring, refused, run, write_rings, write_volumes
from segmentation import evaluate, predict
from segmentation.config import TrainUNetConfig
from segmentation.evaluate import evaluate_archive, find_overlap, load_evaluation
from segmentation.fit import train_unet
from segmentation.hausdorff import hd95
from segmentation.report import describe_data, evaluation_table
from segmentation.unet import load_unet
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS, LesionClass, Region, Schema
from torch_utils import checkpoint


def test_the_numbers_of_results_json_add_up(evaluated, trained, test_zip, folder):
    content = json.loads((folder / "evaluated" / "results.json").read_text())
    assert content["data"] == (
        {"file": "test.zip", "sha256": sha256(test_zip), "slices": 24, "patients": 4, "examinations": 4}
        | {"pixel": None, "unmeasured": 24, "remarks": []}
    )
    assert content["model"]["sha256"] == sha256(trained.model)
    assert [p["patient"] for p in content["examinations"]] == ["a", "b", "c", "d"]
    assert [(p["slices"], p["of"]) for p in content["examinations"]] == [(6, None)] * 4
    for kind, names in (("regions", ["whole", "core"]), ("labels", ["core", "rim"])):
        assert list(content[kind]) == names
        for name in names:
            for dice, mean, sd in (("dice", "mean", "sd"), ("masked_dice", "masked_mean", "masked_sd")):
                values = [p[kind][name][dice] for p in content["examinations"]]
                assert content[kind][name][mean] == pytest.approx(np.mean(values))
                assert content[kind][name][sd] == pytest.approx(np.std(values, ddof=1))
            assert content[kind][name]["removed"] == sum(p[kind][name]["removed"] for p in content["examinations"])
            found = content[kind][name]
            assert (found["present"], found["empty_truth"], found["hd95"]) == (3, 1, None), "no known volumes"
    assert load_evaluation(folder / "evaluated" / "results.json") == evaluated


def test_generated_slices_are_patients_of_their_own(tmp_path, trained):
    random = np.random.RandomState(0)
    fakes = tmp_path / "fake.zip"
    with ArchiveWriter(fakes, RING, SIZE, {"tool": "test"}) as writer:
        for seed in range(70):
            writer.add(draw_ring(random), patient=f"seed{seed:04d}", seed=seed)
    result = evaluate_archive(Path(trained.model).parent, fakes, tmp_path / "out")
    assert len(result.patients) == 70 and result.regions["whole"].mean > 0.8
    assert describe_data(result) == "fake.zip: 70 patients, 70 slices (1 per patient)"


def test_examinations_of_a_patient_are_evaluated_apart(tmp_path, trained):
    made = {"voxels": {"labels that are ignored": 7, "odd": "x"}, "split": {"part": "test", "test": ["p", "q", "z"]}}
    visits = write_volumes(tmp_path / "v.zip", {"p-000": "p", "q-000": "q", "p-001": "p"}, made=made)
    result = evaluate_archive(trained.model, visits, tmp_path / "out")
    assert [(e.patient, e.volume, e.slices, e.of) for e in result.examinations] == [
        ("p", "p-000", 4, 4),
        ("q", "q-000", 4, 4),
        ("p", "p-001", 4, 4),
    ]
    dice = [e.regions["whole"].dice for e in result.examinations]
    assert len(set(dice)) == 3
    assert result.regions["whole"].mean == pytest.approx(((dice[0] + dice[2]) / 2 + dice[1]) / 2)
    assert (result.data.patients, result.data.examinations) == (2, 3)
    assert describe_data(result) == "v.zip: 3 examinations of 2 patients, 12 slices (4 per examination)"
    notes = evaluation_table(result).notes
    assert notes[0] == (
        "test data: 3 examinations of 2 patients, 12 slices, all that their volumes have; "
        "a patient counts once, with the mean of the examinations"
    )
    assert notes[1:3] == (
        "v.zip: 1 of the 3 patients in this part of the split have no slice here",
        "v.zip: labels that are ignored: 7 voxels",
    )
    assert not any("lacks" in note or "unknown volume" in note for note in notes)


def test_incomplete_volumes_are_told(tmp_path, trained):
    some = write_volumes(tmp_path / "some.zip", {"a": "a", "b": "b"}, slices=(1, 5), of=7)
    code, output = run("evaluate", "--model", trained.model, "--data", some, "--outdir", tmp_path / "out")
    words = (
        "Dice of 4 of 14 slices: the archive lacks slices of 2 of 2 examinations, so this is not the Dice of whole "
        "volumes"
    )
    assert code == 0 and words in output, output
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert words in content["notes"] and [(e["slices"], e["of"]) for e in content["examinations"]] == [(2, 7)] * 2
    result = load_evaluation(tmp_path / "out" / "results.json")
    table = evaluation_table(result)
    assert words in table.text() and words in table.markdown()


def test_distances_are_measured_in_known_volumes(tmp_path, train_zip):
    """Two volumes of 5 slices of 3 mm, cut off below and shuffled."""
    poor = train_unet(TrainUNetConfig(steps=2, batch=2, width=2), [train_zip], tmp_path).model
    whole = write_volumes(tmp_path / "v.zip", {"a": "a", "b": "b"}, slices=(3, 2, 5, 4, 1), of=6, pixel=2.0)
    result = evaluate_archive(poor, whole, tmp_path / "out")
    for one, segmented in zip(
        result.examinations,
        predict.predict_examinations(load_unet(poor), ArchiveReader(whole), [("a", "a"), ("b", "b")]),
        strict=True,
    ):
        upward = np.argsort((3, 2, 5, 4, 1))
        prediction, truth = segmented.prediction[upward] > 0, segmented.truth[upward] > 0
        assert one.regions["whole"].hd95 == hd95(prediction, truth, (1.0, 2.0, 2.0))
        assert (one.missing, one.diagonal) == (0, pytest.approx(np.sqrt(5**2 + 2 * 64**2)))
    assert result.regions["whole"].hd95.median > 0
    assert any(note.startswith("HD95: median") for note in result.notes)

    gap = write_volumes(tmp_path / "gap.zip", {"a": "a"}, slices=(0, 1, 5), of=6)
    found = evaluate_archive(poor, gap, tmp_path / "gap")
    (one,) = found.examinations
    assert (one.missing, one.diagonal, one.regions["whole"].hd95) == (3, None, None) and one.regions["whole"].dice > 0
    assert any(note.startswith("no HD95 of 1 of 1 examination: the archive lacks slices") for note in found.notes)


def test_results_are_the_same_in_any_folder(tmp_path, trained, test_zip, evaluated, folder):
    shutil.copy(trained.model, tmp_path / "unet.safetensors")
    shutil.copy(test_zip, tmp_path / "test.zip")
    evaluate_archive(tmp_path / "unet.safetensors", tmp_path / "test.zip", tmp_path / "out")
    for name in ("results.json", "patients.png"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "evaluated" / name).read_bytes()


def test_a_schema_without_regions_is_evaluated_by_its_labels(tmp_path):
    one = Schema(("t1", "t2", "flair"), (LesionClass("MS", "", 1),))
    random = np.random.RandomState(0)
    archive = write_rings(tmp_path / "ms.zip", (("p", draw_ring(random, one)) for _ in range(2)), one)
    record = train_unet(TrainUNetConfig(steps=1, batch=2, width=2), [archive], tmp_path)
    result = evaluate_archive(record.model, archive, tmp_path, allow_overlap=True)
    assert result.regions == {} and result.labels["MS"].sd is None
    assert (tmp_path / "patients.png").exists()


def test_what_cannot_be_evaluated_is_refused(tmp_path, trained, train_zip, test_zip):
    random = np.random.RandomState(0)
    large = write_rings(tmp_path / "large.zip", [("p", draw_ring(random, size=64))])
    brats = write_rings(tmp_path / "brats.zip", [("p", draw_ring(random, BRATS))], BRATS)
    checkpoint.save(tmp_path / "snapshot.safetensors", {"G.w": torch.zeros(1)}, {}, kind="snapshot")
    (tmp_path / "empty").mkdir()

    def evaluate(model, data):
        return refused("evaluate", "--model", model, "--data", data, "--outdir", tmp_path / "new")

    assert "convert the archive at --resolution 32" in evaluate(trained.model, large)
    assert "was trained on t1, flair | core, rim" in evaluate(trained.model, brats)
    halves = dataclasses.replace(RING, regions=(Region("half", ("rim",)),))
    other = write_rings(tmp_path / "halves.zip", [("p", draw_ring(random))], halves)
    assert "| core, rim | half = rim, but" in evaluate(trained.model, other), "says in what they differ"
    assert "is a snapshot; expected a unet" in evaluate(tmp_path / "snapshot.safetensors", test_zip)
    assert "a zip file" in evaluate(test_zip, test_zip)
    assert "holds no unet.safetensors" in evaluate(tmp_path / "empty", test_zip)
    assert "no such file" in evaluate(tmp_path / "nothing", test_zip)
    assert "not a complete zip archive" in evaluate(trained.model, trained.model)
    assert not (tmp_path / "new").exists()


def test_where_results_cannot_be_written_no_network_runs(tmp_path, trained, test_zip, monkeypatch):
    monkeypatch.setattr(predict, "predict_slices", lambda *_: pytest.fail("the network ran"))
    (tmp_path / "file").write_text("")
    command = ("evaluate", "--model", trained.model, "--data", test_zip, "--outdir")
    assert "a file is where a folder is needed" in refused(*command, tmp_path / "file")
    assert "a file is where a folder is needed" in refused(*command, tmp_path / "file" / "below")
    (tmp_path / "out" / "results.json").mkdir(parents=True)
    assert "results.json is a folder" in refused(*command, tmp_path / "out")

    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(evaluate.tempfile, "TemporaryFile", read_only)
    assert "Read-only file system" in refused(*command, tmp_path / "new") and not (tmp_path / "new").exists()


def test_results_of_another_kind_are_refused(tmp_path, folder, evaluated):
    with pytest.raises(UserError, match="training.json: not the results of an evaluation"):
        load_evaluation(folder / "trained" / "training.json")
    content = json.loads((folder / "evaluated" / "results.json").read_text())
    for version in (99, 1, 2, 3):
        (tmp_path / "new.json").write_text(json.dumps({**content, "version": version}))
        with pytest.raises(UserError, match=f"version {version}; .* evaluate again"):
            load_evaluation(tmp_path / "new.json")


def test_evaluation_is_refused_if_and_only_if_a_patient_is_known(trained):
    rng, names = Random(0), [f"n{i}" for i in range(10)]
    refusals = 0
    for _ in range(1000):
        patients, seen, tested = (rng.sample(names, rng.choice([0, 1, 1, 2, 4])) for _ in range(3))
        info = dataclasses.replace(trained.unet, patients=tuple(patients), seen=tuple(seen))
        reader = SimpleNamespace(path="test.zip", info=SimpleNamespace(patients=tested, seen=tuple(names)))
        common = tuple(sorted({*patients, *seen} & set(tested)))
        assert find_overlap(info, "unet", reader, allow=True) == common
        try:
            assert find_overlap(info, "unet", reader, allow=False) == ()
        except UserError as error:
            assert common and all(name in str(error) for name in common[:1])
            refusals += 1
        else:
            assert not common
    assert 200 < refusals < 800, "both happen often"
