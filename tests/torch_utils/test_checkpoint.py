import io
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from dnnlib.errors import UserError
from torch_utils import checkpoint


def example():
    return {
        "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "half": torch.tensor([0.1, 2.5], dtype=torch.float16),
        "whole": torch.tensor([2**40, -1]),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
    }


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    metadata = {"kimg": 12.5, "names": ["t1", "oedème"], "nested": {"none": None, "yes": True}}
    checkpoint.save(tmp_path / "a.safetensors", example(), metadata, kind="snapshot")
    again = checkpoint.load(tmp_path / "a.safetensors", "snapshot")
    assert again.metadata == metadata
    assert set(again.tensors) == set(example())
    for name, tensor in example().items():
        assert again.tensors[name].dtype == tensor.dtype and torch.equal(again.tensors[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_views_transposes_and_shared_memory_are_written_as_what_they_show(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {"t": base.T, "column": base[:, 1], "same": base, "again": base, "cl": channels_last}
    tensors["parameter"] = torch.nn.Parameter(base[1])
    checkpoint.save(tmp_path / "a", tensors, {}, kind="snapshot")
    for name, tensor in checkpoint.load(tmp_path / "a", "snapshot").tensors.items():
        assert torch.equal(tensor, tensors[name]), name


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, example(), {"x": 1}, kind="snapshot")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_kind_or_version_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, example(), {}, kind="unet")
    with pytest.raises(UserError, match=r"a\.safetensors is a unet; expected a snapshot"):
        checkpoint.load(path, "snapshot")
    checkpoint.save(path, example(), {}, kind="unet", version=7)
    with pytest.raises(UserError, match="version 7 .* reads version 1"):
        checkpoint.load(path, "unet")


def pickled():
    return pickle.dumps({"weights": [1.0]}, protocol=4)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("dataset.json", "{}")
    return buffer.getvalue()


def torch_saved():
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    return buffer.getvalue()


FOREIGN = {
    "pickle": (pickled, "a pickle, which is never opened"),
    "zip": (zipped, "a zip file"),
    "torch": (torch_saved, "a zip file"),
    "text": (lambda: b"epoch 1: loss 0.5\n" * 9, "not a .safetensors file"),
    "one byte": (lambda: b"\x80", "not a .safetensors file"),
    "empty": (lambda: b"", "an empty file"),
    "truncated": (lambda: safetensors.torch.save(example())[:-5], "an incomplete or damaged"),
    "half a header": (lambda: safetensors.torch.save(example())[:60], "an incomplete or damaged"),
    "someone else's": (lambda: safetensors.torch.save(example(), {"format": "pt"}), "not one of this project"),
    "no metadata": (lambda: safetensors.torch.save(example()), "not one of this project"),
    "odd metadata": (lambda: safetensors.torch.save(example(), {"checkpoint": "[1]"}), "not one of this project"),
    "no JSON": (lambda: safetensors.torch.save(example(), {"checkpoint": "{"}), "not one of this project"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_with_its_name_and_what_it_is(tmp_path, name):
    make, expected = FOREIGN[name]
    (tmp_path / "foreign").write_bytes(make())
    with pytest.raises(UserError, match=expected) as error:
        checkpoint.load(tmp_path / "foreign", "snapshot")
    assert str(tmp_path / "foreign") in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing.safetensors: no such file"):
        checkpoint.load(tmp_path / "nothing.safetensors", "snapshot")
    with pytest.raises(UserError, match="is a folder"):
        checkpoint.load(tmp_path, "snapshot")


def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, example(), {"round": 1}, kind="snapshot")
    for unfit in ({"round": float("nan")}, {"round": object()}):
        with pytest.raises((ValueError, TypeError)):
            checkpoint.save(path, example(), unfit, kind="snapshot")
    assert checkpoint.load(path, "snapshot").metadata == {"round": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_networks_are_saved_below_a_folder_whose_name_is_no_text(odd_folder):
    checkpoint.save(odd_folder / "a.safetensors", {"x": torch.arange(3)}, {"data": "a.zip"}, kind="toy")
    tensors, metadata = checkpoint.load(odd_folder / "a.safetensors", kind="toy")
    assert tensors["x"].tolist() == [0, 1, 2] and metadata == {"data": "a.zip"}
