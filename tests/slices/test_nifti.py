"""NIfTI files: round trips, and messages for damaged files and for files that are no NIfTI."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from dnnlib.errors import UserError
from dnnlib.text import count
from helpers.drawn import SHAPE, turned, write_nifti
from slices.nifti import GENERATED, nifti_bytes, read_channels, read_nifti


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        read_nifti(path)
    assert all(word in str(caught.value) for word in (str(path), *words)), caught.value


def test_damaged_files(tmp_path):
    path = tmp_path / "x.nii.gz"
    write_nifti(path, np.random.default_rng(0).integers(0, 999, SHAPE), dtype=np.int16)
    content = path.read_bytes()
    plain = gzip.decompress(content)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:5], content[:1000], content[:-8], content[:-1], bytes(flipped), plain[:2000]):
        path.write_bytes(damaged)
        refused(path, "damaged or incomplete", "download it again")
    path.write_bytes(plain)  # not compressed, although its name says so: harmless
    assert read_nifti(path).voxels.shape == SHAPE


def test_bytes_behind_the_end_are_passed_over(tmp_path):
    path, volume = tmp_path / "x.nii.gz", np.random.default_rng(0).integers(0, 999, SHAPE, np.int16)
    write_nifti(path, volume)
    content = path.read_bytes()
    plain, half = gzip.decompress(content), len(content) // 2
    members = gzip.compress(gzip.decompress(content)[:999]) + b"\0" * 7 + gzip.compress(plain[999:])
    for longer, behind in (
        (content + b"\n", 1),
        (content + b"\0" * 70_000 + b"left", 4),
        (gzip.compress(plain + b"left over"), 9),
        (gzip.compress(plain + bytes(512)), 0),  # padding
        (plain + b"left over", 9),
        (members, 0),
        (members + b"more", 4),
    ):
        path.write_bytes(longer)
        found = read_nifti(path)
        np.testing.assert_array_equal(found.voxels, volume)
        assert found.remarks == ((f"{count(behind, 'byte')} behind its end passed over",) if behind else ())
    for damaged in (
        content[:half] + b"?" + content[half + 1 :] + b"left",
        content[:-4] + b"left",
        content + content[:99],
    ):
        path.write_bytes(damaged)
        refused(path, "download it again")
    path.write_bytes(gzip.compress(plain + plain[352:] * 3))  # a 4-D file whose header says 3-D
    refused(path, "too many bytes follow the voxels")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\r\noid sha256:00\r\nsize 9\r\n", "git lfs pull"),
        (b"/annex/objects/MD5E-s2841--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n", "datalad get"),
        (b"../../.git/annex/objects/0K/x9/MD5E-s7--9.nii.gz/MD5E-s7--9.nii.gz", "git annex get"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML PUBLIC>" + b"x" * 900, "a web page"),
        (b'<?xml version="1.0"?><html xmlns="x">', "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b'{"detail": "Authentication required"}', "Authentication required"),
        ("404: nicht gefunden ä\n".encode() * 90, "text instead of the file, perhaps a server's error message (404: "),
        (b"PK\3\4" + bytes(90), "zip: unpack it"),
        (bytes(257) + b"ustar" + bytes(90), "tar: unpack it"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\x28\xb5\x2f\xfd\0", "Zstandard"),
        (bytes(128) + b"DICM" + bytes(500), "DICOM"),
        (b"\0\0\0\1\0\0\1\0" + bytes(280), "MGH"),
        (b"NRRD0004\ntype: short", "NRRD"),
        (bytes(4000), "nothing but zeros"),
        (b"\x5c\1\0\0" + bytes(400), "Analyze"),
        (bytes(344) + b"ni1\0" + bytes(99), "half of a pair of files"),
        (b"\x80\4\x95\xff" * 200, "80 04 95 ff"),
        (b"\x1f", "no NIfTI file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_nifti_is_named(tmp_path, content, words):
    path = tmp_path / "x.nii.gz"
    for packed in (content, gzip.compress(content)):
        path.write_bytes(packed)
        refused(path, words)
        with pytest.raises(UserError) as caught:
            read_nifti(path)
        assert "damaged, incomplete" not in str(caught.value) and str(caught.value).isprintable()
    path.write_bytes(gzip.compress(gzip.compress(content)))
    refused(path, "packed twice")


@pytest.mark.parametrize(
    "volume, words",
    [
        (np.zeros((4, 4, 4, 2), np.int16), ["expected a 3-D volume", "4×4×4×2"]),
        (np.zeros((4, 4), np.int16), ["expected a 3-D volume"]),
        (np.zeros((4, 4, 4), np.complex64), ["expected voxels of real numbers", "complex64"]),
        (
            np.array([0, np.nan, np.inf, -np.inf] * 16, np.float32).reshape(4, 4, 4),
            ["infinite, or beyond float32, in 32 voxels"],
        ),
        (np.full((4, 4, 4), 1e300), ["infinite, or beyond float32, in 64 voxels"]),
        (np.full((4, 4, 4), np.nan, np.float32), ["all voxels are NaN"]),
    ],
    ids=["4-D", "2-D", "complex", "not finite", "beyond float32", "NaN"],
)
def test_files_that_hold_something_else(tmp_path, volume, words):
    write_nifti(tmp_path / "x.nii", volume)
    refused(tmp_path / "x.nii", *words)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 5, 6, 1, 3), (4, 5, 6, 1, 1, 3, 1), (4, 5, 6, 3, 1)])
def test_channels_in_any_dimension(tmp_path, shape):
    volume = np.arange(360, dtype=np.int16).reshape(4, 5, 6, 3)
    write_nifti(tmp_path / "x.nii.gz", volume.reshape(shape))
    for n, channel in enumerate(read_channels(tmp_path / "x.nii.gz", 3)):
        np.testing.assert_array_equal(channel.voxels, volume[..., n])
    with pytest.raises(UserError, match="expected 2 volumes, one for each contrast, found the shape 4×5×6×"):
        read_channels(tmp_path / "x.nii.gz", 2)


@pytest.mark.slow
def test_more_than_4_GiB_in_one_file(tmp_path):
    """gzip stores the length modulo 2^32. The limit of voxels holds for each volume, not for the file."""
    shape, volumes = (512, 512, 205), 10
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((*shape, volumes))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with igzip.open(tmp_path / "x.nii.gz", "wb", 1) as file:
        file.write(header.binaryblock + bytes(4))
        block = bytes(512 * 512 * 8)
        for n in range(shape[2] * volumes):
            file.write(block if n < shape[2] * volumes - 1 else np.full(512 * 512, 7.5).tobytes())
    channels = read_channels(tmp_path / "x.nii.gz", volumes)
    assert [channel.voxels.max() for channel in channels] == [0] * 9 + [7.5]
    assert (channels[-1].voxels[..., -1] == 7.5).all() and not channels[-1].voxels[..., :-1].any()


def test_nifti_2_and_scaled_integers(tmp_path):
    volume = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    nib.save(nib.Nifti2Image(volume, np.eye(4)), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "two.nii.gz").voxels, volume)
    image = nib.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scaled.nii.gz")
    raw = gzip.decompress((tmp_path / "scaled.nii.gz").read_bytes())
    stored = np.frombuffer(raw, np.int16, 64, 352).reshape(4, 4, 4, order="F")
    np.testing.assert_allclose(read_nifti(tmp_path / "scaled.nii.gz").voxels, stored * 0.5 - 3)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAL"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_what_is_written_is_read_again(tmp_path, axes, dtype):
    volume = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    voxels, affine = turned(volume, axes, (1.0, 1.5, 2.5))
    path = tmp_path / "x.nii.gz"
    path.write_bytes(nifti_bytes(voxels, affine, "source voxels, middle 3×3"))
    found = read_nifti(path)
    assert found.voxels.dtype == dtype and found.remarks == () and found.step == 0
    np.testing.assert_array_equal(found.voxels, voxels)
    np.testing.assert_allclose(found.affine, affine)
    assert nib.load(path).header["descrip"].item() == b"source voxels, middle 3x3"
    assert nifti_bytes(voxels, affine, "") == nifti_bytes(voxels.copy(), affine, ""), "without the time"


def test_a_generated_volume_says_so_when_it_is_read(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(nifti_bytes(np.zeros((4, 4, 1), np.float32), np.eye(4), f"{GENERATED}; x"))
    assert read_nifti(tmp_path / "x.nii.gz").remarks == ("generated, says the header",)
