"""Training with labels, mirrored images, dropout and images stored as bytes: each setting matters and is repeatable."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from ddpm_nb.checkpoint import CheckpointError, save_checkpoint
from ddpm_nb.data import DataError, card_of, load_dataset, load_labels, load_pixels
from ddpm_nb.denoiser import X0
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import NETWORKS, UNet, built, image_unet
from ddpm_nb.optimizers import adamw, muon
from ddpm_nb.packing import pack
from ddpm_nb.pretrained import load_model
from ddpm_nb.recipe import Recipe
from ddpm_nb.schedule import cosine_schedule
from ddpm_nb.training import Objective, Plan, batch_of_step, constant_rate, labels_of_step, train

OBJECTIVE = Objective(GaussianDiffusion(cosine_schedule(100)))
PLAN = Plan(steps=3, batch_size=400, rate=constant_rate(1e-3), label_dropout=0.25)
SHORT = Recipe(mixed_precision="no", steps=4, batch_size=16, warmup=1, conditional=True)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits"), load_labels("digits")


def finish(recipe, images, labels=None):
    learner = recipe.learner()
    for _ in recipe.run(learner, images, Accelerator(), labels=labels):
        pass
    return learner


def weights(learner):
    return torch.cat([p.detach().flatten() for p in learner.network.parameters()])


def test_labels_are_those_of_the_images_and_a_share_is_dropped(digits):
    images, labels = digits
    x_0, _, _ = batch_of_step(OBJECTIVE, PLAN, images, 7)
    drawn = labels_of_step(PLAN, labels, 7)
    dropped = drawn == -1
    rows = (x_0.flatten(1)[:, None] == images.flatten(1)[None]).all(2).float().argmax(1)
    assert torch.equal(drawn[~dropped], labels[rows][~dropped])
    assert abs(dropped.double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert torch.equal(drawn, labels_of_step(PLAN, labels, 7))
    assert not torch.equal(dropped, labels_of_step(PLAN, labels, 8) == -1)
    for share, expected in ((0.0, 0), (1.0, 400)):
        assert int((labels_of_step(replace(PLAN, label_dropout=share), labels, 7) == -1).sum()) == expected


def test_flips_mirror_half_of_the_images_and_change_nothing_else(digits):
    plain = batch_of_step(OBJECTIVE, PLAN, digits[0], 3)
    flipped = batch_of_step(OBJECTIVE, replace(PLAN, flip=True), digits[0], 3)
    assert torch.equal(plain[1], flipped[1]) and torch.equal(plain[2], flipped[2])
    turned = (flipped[0] == plain[0].flip(-1)).flatten(1).all(1)
    kept = (flipped[0] == plain[0]).flatten(1).all(1)
    assert bool((turned | kept).all())
    assert abs(turned.double().mean().item() - 0.5) < 0.1


def test_bytes_are_the_same_images():
    bytes_ = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x_0, t, eps = batch_of_step(OBJECTIVE, PLAN, bytes_, 2)
    other = batch_of_step(OBJECTIVE, PLAN, bytes_.float() / 127.5 - 1, 2)
    assert_close(x_0, other[0], rtol=0, atol=1e-6)
    assert torch.equal(t, other[1]) and torch.equal(eps, other[2])


def test_a_conditional_run_is_repeatable_and_looks_at_the_labels(digits):
    images, labels = digits
    first = weights(finish(SHORT, images, labels))
    torch.manual_seed(123)  # the caller's own randomness is not part of a run
    assert torch.equal(first, weights(finish(SHORT, images, labels)))
    assert not torch.equal(first, weights(finish(SHORT, images, labels.flip(0))))
    assert not torch.equal(first, weights(finish(replace(SHORT, label_dropout=0.9), images, labels)))
    with pytest.raises(ValueError, match="labels = None: expected those of the images"):
        finish(SHORT, images)


def test_dropout_is_drawn_from_the_seed_of_the_step(digits):
    recipe = Recipe(mixed_precision="no", steps=3, batch_size=16, warmup=1, dropout=0.3)
    before = torch.random.get_rng_state()
    first = weights(finish(recipe, digits[0]))
    assert torch.equal(torch.random.get_rng_state(), before), "torch's generator is left alone"
    torch.manual_seed(99)
    assert torch.equal(first, weights(finish(recipe, digits[0])))
    assert not torch.equal(first, weights(finish(replace(recipe, dropout=0.0), digits[0])))
    network = recipe.untrained()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 9])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
        assert not torch.equal(network(x, t), network(x, t))
        network.eval()
        assert torch.equal(network(x, t), network(x, t))


def test_the_first_weights_and_answers_are_those_of_a_network_without_labels():
    """The embedding of labels is made last: the other first weights are those of a network without."""
    plain, labelled = Recipe().untrained(), replace(Recipe(), conditional=True).untrained()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, labelled.state_dict()[name])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 50])
    assert torch.equal(plain(x, t), labelled(x, t, torch.tensor([3, -1])))


def test_the_network_tells_labels_apart():
    network = built("unet", 1, 8, classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    x, t = torch.randn(1, 1, 8, 8).expand(4, 1, 8, 8), torch.full((4,), 20)
    y = network(x, t, torch.tensor([0, 1, 2, -1]))
    assert all((y[i] - y[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    assert_close(y[3], network(x, t)[3])
    for label in (3, -2):
        with pytest.raises(ValueError, match=r"label: numbers from .*expected classes 0 to 2, or -1 for none"):
            network(x, t, torch.full((4,), label))
    with pytest.raises(ValueError, match="built without classes"):
        built("unet", 1, 8)(x, t, torch.zeros(4, dtype=torch.long))


def test_labels_are_embedded_by_adam_under_both_optimizers():
    network = built("unet", 1, 8, classes=3)
    assert len(adamw(network).param_groups) == 1
    kernels = muon(network).param_groups[0]["params"]
    assert all(p is not network.label.weight for p in kernels)


@pytest.mark.parametrize("side", [8, 12, 16, 28, 32, 64, 96, 128, 256])
def test_the_network_grows_with_the_side_and_attends_where_it_can_pay(side):
    network = image_unet(3, side)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, side, side), torch.ones(1, dtype=torch.long)).shape == (1, 3, side, side)
    lowest = side // network.patch // 2 ** (len(network.down) - 1)
    assert lowest <= 16
    assert sum(p.numel() for p in network.parameters()) < 2e7


def test_sides_and_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="side = 4: expected 8 to 256 pixels"):
        image_unet(1, 4)
    with pytest.raises(ValueError, match=r"dropout = 1\.5"):
        UNet(8, dropout=1.5)
    NETWORKS.register("plain", lambda channels, side: UNet(side, channels))
    try:
        with pytest.raises(ValueError, match="network = 'plain': it takes no classes"):
            built("plain", 1, 8, classes=2)
    finally:
        NETWORKS.remove("plain")


@pytest.fixture
def folder(tmp_path):
    """Two classes of eight small colour pictures in a folder with a space and an umlaut."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for name, shade in (("rot", (200, 30, 30)), ("blau", (30, 30, 200))):
        (tmp_path / "meine Bilder ü" / name).mkdir(parents=True)
        for i in range(8):
            noise = torch.randint(-20, 20, (16, 16, 3), generator=generator)
            pixels = (torch.tensor(shade) + noise).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "meine Bilder ü" / name / f"{i}.png")
    return tmp_path / "meine Bilder ü"


def test_from_a_folder_to_a_conditional_model(folder, tmp_path):
    path = tmp_path / "bilder.safetensors"
    pack(folder, path, side=16)
    card = card_of(str(path))
    assert (card.event, card.classes, card.levels) == ((3, 16, 16), ("blau", "rot"), 256)
    images, labels = load_pixels(str(path))
    assert images.dtype == torch.uint8 and len(images) == len(labels) == 14
    assert_close(load_dataset(str(path)), images.float() / 127.5 - 1)
    assert len(load_dataset(str(path), split="test")) == 2
    red = images[labels == 1].float().mean((0, 2, 3))
    assert red[0] > 150 > red[2]

    recipe = replace(SHORT, dataset=str(path), steps=2)
    learner = recipe.learner()
    for _ in recipe.run(learner, images, Accelerator(), labels=labels):
        pass
    save_checkpoint(tmp_path / "model.safetensors", recipe.state(learner))
    model = load_model(tmp_path / "model.safetensors")
    assert model.classes == ("blau", "rot") and model.event == (3, 16, 16)
    x_t = torch.randn(2, 3, 16, 16)
    assert model.given(1)(x_t, 50).shape == x_t.shape


def test_a_damaged_or_foreign_packed_file_is_named(folder, tmp_path):
    path = tmp_path / "bilder.safetensors"
    pack(folder, path, side=16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DataError, match="does not match its SHA-256"):
        load_pixels(str(path))
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="truncated or not a safetensors file"):
        load_pixels(str(path))
    save_checkpoint(path, {"step": 1})
    with pytest.raises(DataError, match="not one written by ddpm-nb pack"):
        card_of(str(path))
    with pytest.raises(DataError, match=r"no such packed file \(did you mean 'bilder.safetensors'\?\)"):
        card_of(str(tmp_path / "bildr.safetensors"))
    with pytest.raises(DataError, match="a folder; pack it first: ddpm-nb pack"):
        card_of(str(folder))


def test_a_model_without_classes_refuses_a_label():
    with pytest.raises(ValueError, match="trained without classes"):
        load_model("digits").given(3)


def test_wrong_labels_are_refused_before_any_work(digits):
    network = Recipe().untrained()
    with pytest.raises(ValueError, match=r"labels of shape \(3,\): expected \(1437,\)"):
        train(network, adamw(network), OBJECTIVE, digits[0], PLAN, labels=torch.zeros(3))
    with pytest.raises(ValueError, match="label_dropout = 2: expected a share from 0 to 1"):
        replace(PLAN, label_dropout=2)


def test_the_denoiser_of_none_is_the_average_over_the_data_in_a_trained_network():
    """Two classes of constant images ±0.5: labels decide x̂_0 at high noise, and none lies between."""
    images = torch.cat([torch.full((8, 1, 8, 8), 0.5), torch.full((8, 1, 8, 8), -0.5)])
    labels = torch.arange(2).repeat_interleave(8)
    q = GaussianDiffusion(cosine_schedule(100))
    torch.manual_seed(0)
    network = built("unet", 1, 8, classes=2)
    plan = Plan(steps=150, batch_size=64, rate=constant_rate(2e-3), label_dropout=0.3)
    for _ in train(network, adamw(network), Objective(q, X0), images, plan, labels=labels):
        pass
    network.eval()
    x_t, t = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.full((6,), 99)
    with torch.no_grad():
        means = [network(x_t, t, torch.full((6,), label)).mean().item() for label in (0, 1, -1)]
    assert means[0] > 0.35 and means[1] < -0.35 and abs(means[2]) < 0.25


def test_a_checkpoint_of_a_run_without_classes_is_another_recipe(tmp_path):
    path = tmp_path / "run.safetensors"
    plain = replace(SHORT, conditional=False)
    save_checkpoint(path, plain.state(plain.learner()))
    with pytest.raises(CheckpointError, match="conditional is False there, True here"):
        SHORT.resume(SHORT.learner(), path)
