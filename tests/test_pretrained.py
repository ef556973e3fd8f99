"""The shipped files hold what their cards say, and nothing else passes for them."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ddpm_nb import pretrained
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ddpm_nb.data import load_dataset, load_labels
from ddpm_nb.denoiser import clipped
from ddpm_nb.metrics import Moments
from ddpm_nb.pretrained import export_features, export_model, load_features, load_model
from ddpm_nb.recipe import Recipe
from ddpm_nb.sampling import DDIM, grid, last, walk

WEIGHTS = Path(pretrained.__file__).parent / "weights"
NAMES = ("digits", "fashion_mnist", "fashion_mnist_likelihood")


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_that_of_the_shipped_file(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    path = WEIGHTS / f"{name}.safetensors"
    model = load_model(name)
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["bytes"] == path.stat().st_size < 5_000_000
    assert card["parameters"] == sum(p.numel() for p in model.network.parameters())
    recipe = Recipe(**card["recipe"])
    assert recipe.dataset == model.dataset
    assert (recipe.steps, recipe.target) == (model.step, model.parameterization)
    bound = card["bits_per_dim"]
    assert 0 < bound["error_of_estimate"] < bound["error_over_images"]
    share, error = card["told_apart"]["real"]
    assert abs(share - 0.5) < 4 * error  # real images are not told from real ones
    assert_close(recipe.q.schedule.log_alpha_bars, model.q.schedule.log_alpha_bars, rtol=1e-11, atol=0.0)
    for row in (*card["samples"].values(), card["real"]):
        assert row["frechet"]["runs"] >= 3
    # Some of what nobody would take for real has a good recall; precision, density and coverage see all of it.
    assert max(row["recall"]["mean"] for row in card["decoys"].values()) > 0.8 * card["real"]["recall"]["mean"]
    for decoy in card["decoys"].values():
        assert decoy["precision"]["mean"] < 0.8 * card["real"]["precision"]["mean"]
        assert decoy["density"]["mean"] < 0.5 * card["real"]["density"]["mean"]
        assert decoy["coverage"]["mean"] < 0.7 * card["real"]["coverage"]["mean"]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_far_nearer_to_the_data_than_noise_is(name):
    model = load_model(name)
    space = load_features(model.dataset)
    noise = torch.randn(200, *model.event, generator=torch.Generator().manual_seed(0))
    images = last(walk(DDIM(model.q, clipped(model.denoiser)), noise, grid(model.q.schedule.T, 10))).x
    distance = [Moments.of(space(x)).frechet_distance(space.test) for x in (images, noise.clamp(-1, 1))]
    assert distance[0] < 0.25 * distance[1]


def test_the_stored_moments_and_accuracy_are_those_of_the_data():
    space = load_features("digits")
    for split, stored in (("train", space.train), ("test", space.test)):
        images = load_dataset("digits", split=split)
        found = Moments.of(space(images))
        assert stored.count == len(images)
        assert_close(found.mean, stored.mean, rtol=1e-4, atol=1e-5)
        assert_close(found.cov, stored.cov, rtol=1e-3, atol=1e-4)
    truth = load_labels("digits", split="test")
    right = space.classifier(images).argmax(1).eq(truth).double().mean().item()
    assert right == pytest.approx(space.accuracy, abs=1e-9)
    assert right > 0.97


def test_export_keeps_the_averaged_weights_to_half_precision(tmp_path):
    recipe = Recipe(steps=1)
    learner = recipe.learner()
    with torch.no_grad():
        for parameter in learner.ema.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    whole = save_checkpoint(tmp_path / "whole.safetensors", recipe.state(learner))
    small = export_model(whole, tmp_path / "small.safetensors")
    assert small.stat().st_size < 0.3 * whole.stat().st_size
    exported = load_model(small).network.state_dict()
    for key, value in learner.ema.network.state_dict().items():
        assert_close(exported[key], value, rtol=2**-11, atol=2**-24)
        assert not torch.equal(value, learner.network.state_dict()[key])  # the average, not the weights


def test_features_survive_a_round_trip(tmp_path):
    space = load_features("digits")
    again = load_features(export_features(space, tmp_path / "features.safetensors"))
    images = load_dataset("digits", split="test")[:20]
    assert torch.equal(again(images), space(images))
    assert again.test.frechet_distance(space.test) == space.test.frechet_distance(space.test)
    assert (again.accuracy, again.train.count) == (space.accuracy, space.train.count)


def test_what_is_not_a_model_or_a_feature_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source = 'fashion-mnist': .*did you mean 'fashion_mnist'"):
        load_model("fashion-mnist")
    with pytest.raises(ValueError, match=r"source = 'digit': .*did you mean 'digits'"):
        load_features("digit")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "absent.safetensors")
    other = save_checkpoint(tmp_path / "other.safetensors", {"step": 3})
    with pytest.raises(CheckpointError, match="not of a model; missing: model, ema"):
        load_model(other)
    with pytest.raises(CheckpointError, match="not of a feature space; missing: classifier, train, test, accuracy"):
        load_features(other)
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray((WEIGHTS / "digits.safetensors").read_bytes())
    content[-1000] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        load_model(damaged)
    assert load_checkpoint(WEIGHTS / "digits.safetensors")["step"] == load_model("digits").step


def test_the_colour_model_draws_each_class_in_its_colours():
    model, space = load_model("openmoji"), load_features("openmoji")
    assert (model.event, len(model.classes)) == ((3, 32, 32), 6)
    card = json.loads((WEIGHTS / "openmoji.json").read_text())
    path = WEIGHTS / "openmoji.safetensors"
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["bytes"] == path.stat().st_size < 5_000_000
    assert "CC BY-SA 4.0" in card["packed"]["attribution"]
    assert card["recipe"]["steps"] == model.step
    labels = torch.arange(6).repeat_interleave(8)
    noise = torch.randn(48, *model.event, generator=torch.Generator().manual_seed(0))
    images = last(walk(DDIM(model.q, clipped(model.given(labels))), noise, grid(model.q.schedule.T, 10))).x
    told = space.classifier(images).argmax(1)
    right = (told == labels).double().mean().item()
    # By chance one in six; the classifier is right on 84 % of the test set.
    assert right > 1 / 6 + 5 * math.sqrt(5 / 36 / 48)
    assert images.std(1).mean() > 0.05  # not grey
    faces = images[labels == 0]
    assert faces[:, :2].mean() > faces[:, 2].mean() + 0.1  # yellow
