"""python -m segmentation as a user calls it."""

import re
import subprocess
import sys

import numpy as np

from rings import RING, SIZE, TINY, draw_ring, refused, run, write_rings, write_volumes
from segmentation import fit, predict
from segmentation.evaluate import load_evaluation
from segmentation.fit import MODEL
from segmentation.unet import load_unet
from slices.archive.writer import ArchiveWriter


def test_the_commands_work_together(tmp_path, train_zip, test_zip):
    options = ("--steps", 2, "--batch", 2, "--width", 2, "--lr", 0.01, "--seed", 3, "--workers", 0)
    code, output = run("train", "--data", train_zip, "--data", train_zip, "--outdir", tmp_path, *options)
    assert code == 0 and "train.zip (48 slices, 12 patients) + train.zip" in output, output
    code, output = run("evaluate", "--model", tmp_path, "--data", test_zip, "--outdir", tmp_path)
    assert code == 0 and "4 patients, 24 slices (6 per patient)" in output, output
    assert "whole (region)" in output and "rim (label)" in output and "false alarms" in output
    output = refused("train", "--data", train_zip, "--steps", 1, "--outdir", tmp_path)
    assert "unet.safetensors exists already" in output
    model = tmp_path / "unet.safetensors"
    again = ("evaluate", "--model", model, "--data", test_zip, "--outdir", tmp_path, "--batch", 5)
    assert "results.json exists already" in refused(*again)
    assert run(*again, "--force")[0] == 0


def test_pixels_of_another_size_are_refused_unless_one_insists(tmp_path):
    fine = write_volumes(tmp_path / "fine.zip", {"a": "a"}, pixel=3.125)
    nearly = write_volumes(tmp_path / "nearly.zip", {"b": "b"}, pixel=3.13)
    coarse = write_volumes(tmp_path / "coarse.zip", {"c": "c"}, pixel=3.75)
    fakes = write_rings(tmp_path / "fakes.zip", [("f", draw_ring(np.random.RandomState(0)))], seen=["z"])
    known = tmp_path / "known.zip"
    with ArchiveWriter(known, RING, SIZE, {}, seen=["z"], pixel=(3.125, 3.125)) as writer:
        writer.add(draw_ring(np.random.RandomState(0)), patient="g", seed=1)
    for name, data in {"real": [fine], "both": [fine, coarse], "fake": [fakes], "known": [known]}.items():
        code, output = run("train", *(w for d in data for w in ("--data", d)), "--outdir", tmp_path / name, *TINY)
        assert code == 0 and ("pixels of 3.12 to 3.75 mm: is this mixture" in output) == (name == "both"), output
        assert ("pixel size unknown: 1 slice of fakes.zip" in output) == (name == "fake")
    assert load_unet(tmp_path / "both" / MODEL).info.archives[1].pixel == (3.75, 3.75)

    def evaluate(model, data, *options):
        return ("evaluate", "--model", tmp_path / model, "--data", data, "--outdir", tmp_path / "out", *options)

    for model in ("real", "known"):
        output = refused(*evaluate(model, coarse))
        assert "coarse.zip has pixels of 3.75 mm, but" in output and "learned from pixels of 3.12 mm" in output
        assert "--fov" in output and "--allow-other-pixels" in output and not (tmp_path / "out").exists()
    assert run(*evaluate("both", write_volumes(tmp_path / "between.zip", {"d": "d"}, pixel=3.4)))[0] == 0
    assert run(*evaluate("real", nearly, "--force"))[0] == 0
    code, output = run(*evaluate("fake", coarse, "--force"))
    assert code == 0 and "pixel size unknown and not compared: 1 slice of fakes.zip" in output
    code, output = run(*evaluate("real", coarse, "--force", "--allow-other-pixels"))
    words = "the U-Net learned from pixels of 3.12 mm and was tested on pixels of 3.75 mm"
    assert code == 0 and words in output, output
    result = load_evaluation(tmp_path / "out" / "results.json")
    assert any(words in note for note in result.notes)


def test_label_maps_of_another_coding_are_refused(tmp_path, trained):
    """As 0 and 1, which `split` would take for nothing but background or anything."""
    random = np.random.RandomState(0)
    good = draw_ring(random)
    for i, wrong in enumerate([np.where(good[2:] > 0, 1, 0), np.where(good[2:] > 0, 254, 1), good[2:] * 0]):
        stored = np.concatenate([good[:2], wrong.astype(np.uint8)])
        path = write_rings(tmp_path / f"{i}.zip", [("a", good), ("b", stored)])
        for command in (
            ("train", "--data", path, "--steps", 1, "--outdir", tmp_path / "new"),
            ("evaluate", "--model", trained.model, "--data", path, "--outdir", tmp_path / "new"),
        ):
            output = refused(*command)
            assert f"{path}: the label maps of slices/00000/00000001.npy are not one-hot" in output
        assert not (tmp_path / "new").exists()


def test_want_of_memory_names_what_to_lower(tmp_path, trained, train_zip, test_zip, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(fit, "to_input", out_of_memory)
    monkeypatch.setattr(predict, "to_input", out_of_memory)
    code, output = run("train", "--data", train_zip, "--outdir", tmp_path / "a", *TINY)
    assert code == 1 and re.search(r"^error: out of memory .*: lower --batch or --width$", output, re.MULTILINE)
    code, output = run("evaluate", "--model", trained.model, "--data", test_zip, "--outdir", tmp_path / "b")
    assert code == 1 and "out of memory" in output and "lower --batch" in output and "--width" not in output


def test_help_answers_without_loading_torch():
    code = (
        "import sys; from segmentation.__main__ import main\n"
        "try: main(['train', '--help'])\n"
        "finally: assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--width" in done.stdout, done.stderr
