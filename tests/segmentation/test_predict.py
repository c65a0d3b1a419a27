"""Predictions of a U-Net."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from rings import RING, SIZE, draw_ring, plain_dice, write_volumes
from segmentation.predict import predict_examinations, predict_slices
from segmentation.unet import TrainedUNet, build_unet, configure_unet, load_unet
from slices.archive.reader import ArchiveReader


def test_answers_that_are_no_numbers_are_refused():
    schema, contrasts = RING, np.zeros((1, 2, SIZE, SIZE), np.uint8)
    network = build_unet(configure_unet(schema, SIZE, width=1))
    torch.nn.init.constant_(network.final_conv.weight, 3e38)
    model = TrainedUNet(network, SimpleNamespace(schema=schema))
    with pytest.raises(UserError, match="not finite numbers"):
        predict_slices(model, contrasts + np.arange(SIZE, dtype=np.uint8))


def test_a_network_leaves_empty_slices_alone(trained):
    """Trainings draw blank slices, although no archive has any."""
    assert not predict_slices(load_unet(trained.model), np.zeros((1, 2, SIZE, SIZE), np.uint8)).any()


def test_the_prediction_is_the_networks_own_answer_everywhere(trained):
    random = np.random.RandomState(0)
    net = load_unet(trained.model)
    for p in net.network.final_conv.parameters():
        torch.nn.init.zeros_(p)
    net.network.final_conv.bias.data[2] = 5.0  # class 2 everywhere
    found = predict_slices(net, np.stack([RING.split(draw_ring(random, empty=e))[0] for e in (False, True)]))
    assert found.dtype == np.uint8 and (found == 2).all(), "nothing is hidden"


def test_patients_are_put_together_from_slices_that_take_turns(evaluated, trained, test_zip):
    reader, net = ArchiveReader(test_zip), load_unet(trained.model)
    names = [("c", None), ("a", None)]
    for name, one in zip(names, predict_examinations(net, reader, names, batch=5), strict=True):
        stored = np.stack([reader.read(i) for i in reader.by_examination()[name]])
        contrasts, truth = RING.split(stored)
        assert (one.truth == truth).all() and (one.background == contrasts[:, -1]).all()
        assert (one.inside == (contrasts > 0).any(axis=1)).all()
        (found,) = (e for e in evaluated.examinations if e.patient == name[0])
        answer = predict_slices(net, contrasts)
        assert found.regions["whole"].dice == pytest.approx(plain_dice(answer, truth, (1, 2)), abs=1e-3)
        masked = np.where(one.inside, answer, 0)
        assert found.regions["whole"].masked_dice == pytest.approx(plain_dice(masked, truth, (1, 2)), abs=1e-3)
        assert abs(found.removed - (answer[~one.inside] > 0).sum()) <= 3  # predictions may depend on the batch size


def test_slices_know_their_places_in_the_volume(trained, tmp_path):
    """The archive lacks most slices of a volume, and the others are not numbered anew."""
    reader = ArchiveReader(write_volumes(tmp_path / "few.zip", {"v": "p"}, slices=(1, 5), of=7))
    (found,) = predict_examinations(load_unet(trained.model), reader, [("p", "v")])
    assert tuple(found.places) == (1, 5)
