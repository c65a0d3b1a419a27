import io
import pickle
import subprocess
import sys
import zipfile

import pytest
import safetensors.torch
import torch

from dnnlib.errors import UserError
from helpers.commands import ROOT
from torch_utils import checkpoint


def example():
    return {
        "double": torch.tensor([[1 / 3, -1e300]], dtype=torch.float64),
        "bfloat": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
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


def test_safetensors_reads_what_is_written(tmp_path):
    """Our writer against the library's reader, which checks offsets and sizes."""
    tensors = example() | {
        "moments": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "one": torch.ones([]),
    }
    checkpoint.save(tmp_path / "a", tensors, {"kimg": 1}, kind="snapshot")
    again = safetensors.torch.load_file(tmp_path / "a")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)
    assert again["moments"].is_contiguous()


def test_every_flipped_bit_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, example(), {"step": 1234}, kind="snapshot")
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    checkpoint.load(path, "snapshot")
    for n in range(len(content)):
        path.write_bytes(content[:n] + bytes([content[n] ^ 1 << n % 8]) + content[n + 1 :])
        try:
            again = checkpoint.load(path, "snapshot")
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < 400
            assert n < header or "damaged" in str(error)
        else:
            # Only the name of the list of checksums: then the file counts as an older one.
            assert again.metadata == {"step": 1234} and again.tensors.keys() == example().keys()
            assert all(torch.equal(again.tensors[name], tensor) for name, tensor in example().items())
            assert b"crc32" not in path.read_bytes()


def test_a_damaged_tensor_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    network = torch.nn.Linear(3, 2)
    checkpoint.save(path, network.state_dict(), {}, kind="toy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last weight
    path.write_bytes(content)
    for load in (lambda: checkpoint.load(path, "toy"), lambda: checkpoint.load_network(path, lambda: network)):
        with pytest.raises(checkpoint.Damaged, match=r"a\.safetensors: 'weight' is damaged"):
            load()


def test_a_file_without_checksums_is_read(tmp_path):
    """As all files were before checksums."""
    checkpoint.save(tmp_path / "new", example(), {"x": 1}, kind="snapshot")
    with safetensors.safe_open(tmp_path / "new", framework="pt") as file:
        stored = {"checkpoint": file.metadata()["checkpoint"]}
    safetensors.torch.save_file(example(), tmp_path / "old", stored)
    assert checkpoint.load(tmp_path / "old", "snapshot").metadata == {"x": 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory as Linux tells it")
def test_tensors_are_not_copied_together(tmp_path):
    """In a new process, whose memory never was larger: 8 tensors of 16 MB."""
    script = """
import resource, sys, torch
from torch_utils import checkpoint
tensors = {str(n): torch.ones(1 << 22) for n in range(8)}
tensors["0"] = tensors["0"].reshape(2048, 2048).T
checkpoint.save(sys.argv[1], {"small": torch.ones(4).T}, {}, "toy")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint.save(sys.argv[1], tensors, {}, "toy")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", script, tmp_path / "a"]
    grown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 24 << 10  # in KiB: room for one tensor, not for two
