"""Run folders and their log."""

from dnnlib import runs


def test_run_folders_count_up_past_gaps_and_strangers(tmp_path):
    (tmp_path / "00007-old").mkdir()
    (tmp_path / "notes").mkdir()
    assert runs.make_run_folder(tmp_path, "x").name == "00008-x"
    assert runs.make_run_folder(tmp_path, "y").name == "00009-y"
    assert runs.make_run_folder(tmp_path / "new", "z").name == "00000-z"
