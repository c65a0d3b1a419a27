"""Which patients a U-Net knows, and where these must not be."""

import json

from rings import RING, SIZE, TINY, refused, run, write_patients
from segmentation.evaluate import load_evaluation
from segmentation.fit import MODEL
from segmentation.unet import load_unet
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter


def test_names_alike_are_told_in_training_and_in_results(tmp_path):
    train = write_patients(tmp_path / "train.zip", ["TCGA_DU_7294", "a"])
    test = write_patients(tmp_path / "test.zip", ["tcga-du-07294", "b"])
    code, output = run("train", "--data", train, "--exclude", test, "--outdir", tmp_path / "unet", *TINY)
    assert code == 0 and "as far as their names tell" in output
    assert "warning: names so alike that they may be of one patient: TCGA_DU_7294 and tcga-du-07294\n" in output
    code, output = run("evaluate", "--model", tmp_path / "unet", "--data", test, "--outdir", tmp_path / "out")
    assert code == 0 and "TCGA_DU_7294 and tcga-du-07294" in output
    found = load_evaluation(tmp_path / "out" / "results.json")
    assert len([note for note in found.notes if "names so alike" in note]) == 1


def test_a_unet_of_fakes_is_not_tested_on_patients_that_the_gan_saw(tmp_path, fake_zip, test_zip):
    code, output = run("train", "--data", fake_zip, "--outdir", tmp_path, *TINY)
    assert code == 0, output
    info = load_unet(tmp_path / MODEL).info
    assert info.seen == ("r0", "r1", "r2", "r3", "r4") and info.patients == tuple(ArchiveReader(fake_zip).info.patients)
    some = write_patients(tmp_path / "some.zip", ["new", "r3", "r1"])
    evaluate = ("evaluate", "--model", tmp_path, "--outdir", tmp_path / "out", "--data")
    output = refused(*evaluate, some)
    assert "was trained on generated slices of a GAN that learned from r1, r3: it knows 2 of the 3 patients" in output
    assert f"{some}, so its Dice would say nothing about others" in output and "--allow-overlap" in output
    assert "slices of generated-" in refused(*evaluate, fake_zip)
    assert not (tmp_path / "out").exists()

    code, output = run(*evaluate, some, "--allow-overlap")
    assert code == 0 and "note: the U-Net was trained on generated slices of a GAN that learned from r1, r3" in output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["overlap"] == ["r1", "r3"]
    assert load_evaluation(tmp_path / "out" / "results.json").overlap == ("r1", "r3")
    for strangers in (test_zip, fake_zip.with_name("o.zip")):  # other patients; other fakes of the same GAN
        code, output = run(*evaluate, strangers, "--force")
        assert code == 0 and "note:" not in output, output
        assert json.loads((tmp_path / "out" / "results.json").read_text())["overlap"] == []


def test_a_merged_archive_counts_its_patients_and_those_behind_its_fakes(tmp_path, fake_zip):
    sources = [ArchiveReader(fake_zip), ArchiveReader(write_patients(tmp_path / "more.zip", ["m1", "m2"]))]
    with ArchiveWriter(tmp_path / "merged.zip", RING, SIZE, {}, seen=sources[0].info.seen) as writer:
        for source in sources:
            for i, record in enumerate(source.info.slices):
                writer.add_packed(source.packed(i), patient=record.patient, seed=record.seed)
    assert run("train", "--data", tmp_path / "merged.zip", "--outdir", tmp_path, *TINY)[0] == 0
    test = write_patients(tmp_path / "test.zip", ["m2", "new", "r0"])
    output = refused("evaluate", "--model", tmp_path, "--data", test, "--outdir", tmp_path / "out")
    assert "slices of m2, and generated slices of a GAN that learned from r0: it knows 2 of the 3 patients" in output


def test_training_on_held_out_patients_is_refused(tmp_path, fake_zip, train_zip):
    test = write_patients(tmp_path / "test.zip", ["r1", "r9", "p3"], part="test")
    new = write_patients(tmp_path / "new.zip", ["n1"], part="test")

    def train(*options):
        return refused("train", *options, "--outdir", tmp_path / "unet", *TINY)

    assert f"{test}: 3 of its 3 slices (3 of its 3 patients) are of the test part" in train(
        "--data", train_zip, "--data", test
    )
    output = train("--data", fake_zip, "--exclude", new, "--exclude", test)
    assert f"{fake_zip} must share no patient with {test}" in output and "a GAN that learned from r1;" in output
    output = train("--data", fake_zip.with_name("o.zip"), "--data", train_zip, "--exclude", fake_zip)
    assert "learned from r0, r1, r2 and 2 more;" in output
    assert "holds slices of p3;" in train("--data", train_zip, "--exclude", test)
    assert "none.zip: no such file" in train("--data", train_zip, "--exclude", tmp_path / "none.zip")
    assert not (tmp_path / "unet").exists()
    code, output = run("train", "--data", train_zip, "--exclude", new, "--outdir", tmp_path / "unet", *TINY)
    assert code == 0 and f"no patient is shared with {new}" in output
    assert load_unet(tmp_path / "unet" / MODEL).info.patients == tuple(sorted(f"p{i}" for i in range(12)))
