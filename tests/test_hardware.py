"""What a device is asked for: numbers, the layout of weights, and a batch in no more parts than its memory asks for."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.testing import assert_close

from ddpm_nb.commands import options
from ddpm_nb.hardware import (
    emulated,
    fewest_parts,
    memory_format_for,
    precision_for,
    step_memory,
    training_room,
)
from ddpm_nb.nets import image_unet
from ddpm_nb.recipe import Recipe


@pytest.mark.parametrize(
    ("kind", "capability", "precision"),
    [
        ("cpu", None, "no"),
        ("mps", None, "no"),
        ("cuda", (7, 5), "fp16"),
        ("cuda", (8, 0), "bf16"),
        ("cuda", (9, 0), "bf16"),
    ],
)
def test_precision_is_what_the_device_computes_fast(monkeypatch, kind, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_for(torch.device(kind)) == precision


@pytest.mark.parametrize(
    ("precision", "kind", "machine", "answer", "slow"),
    [
        ("no", "cpu", "x86_64", False, False),
        ("bf16", "cpu", "x86_64", False, True),
        ("fp16", "cpu", "x86_64", False, True),
        ("bf16", "cpu", "x86_64", True, False),
        ("bf16", "cpu", "arm64", False, False),
        ("bf16", "cuda", "x86_64", (7, 5), True),
        ("fp16", "cuda", "x86_64", (7, 5), False),
        ("bf16", "cuda", "x86_64", (8, 0), False),
        ("bf16", "mps", "arm64", False, False),
    ],
)
def test_numbers_that_a_device_only_emulates_are_known(monkeypatch, precision, kind, machine, answer, slow):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: answer)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: answer, raising=False)
    assert emulated(precision, torch.device(kind)) == slow


def test_a_torch_that_does_not_say_what_a_processor_can_is_not_guessed_at(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not emulated("bf16", torch.device("cpu"))


def test_a_recipe_warns_of_numbers_that_its_device_emulates(monkeypatch, recwarn):
    monkeypatch.setattr("ddpm_nb.recipe.emulated", lambda precision, device: precision == "bf16")
    with pytest.warns(UserWarning, match="mixed_precision = 'bf16': this cpu has no instructions"):
        assert Recipe(mixed_precision="bf16").on(torch.device("cpu")).mixed_precision == "bf16"
    recwarn.clear()
    assert Recipe().on(torch.device("cpu")).mixed_precision == "no"
    assert not recwarn


def test_precision_is_decided_once_for_notebook_and_command_line(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert Recipe().on(cuda).mixed_precision == "bf16"
    assert Recipe(mixed_precision="fp16").on(cuda).mixed_precision == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert Recipe().on(cuda).mixed_precision == "fp16"
    assert Recipe().on(torch.device("cpu")).mixed_precision == Recipe().on(torch.device("mps")).mixed_precision == "no"
    assert memory_format_for(cuda) == torch.channels_last
    assert memory_format_for(torch.device("cpu")) == torch.contiguous_format
    assert options().parse_args(["train", "--compiled"]).compiled


def test_channels_last_changes_the_layout_and_not_the_answer():
    network = Recipe().untrained()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    plain = network(x, t)
    network = network.to(memory_format=memory_format_for(torch.device("cuda")))
    assert_close(network(x, t), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("room", "parts"), [(70, 1), (69, 2), (40, 2), (39, 3), (30, 3), (29, 4), (15, 12)])
def test_a_batch_is_cut_into_as_few_equal_parts_as_fit(room, parts):
    assert fewest_parts(lambda images: 10 + 5 * images, 12, room) == parts


def test_an_image_that_does_not_fit_is_said_aloud():
    with pytest.warns(UserWarning, match=r"one image holds about 15\.0 GiB, but 14\.0 GiB are there"):
        assert fewest_parts(lambda images: (10 + 5 * images) << 30, 12, 14 << 30) == 12
    with pytest.raises(ValueError, match="batch_size = 0"):
        fewest_parts(lambda images: images, 0, 1)


def test_the_room_of_a_run_is_a_share_of_all_the_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 500, raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2000, available=1))
    rooms = [training_room(torch.device(kind)) for kind in ("cuda", "mps", "cpu")]
    assert rooms == [900, 450, 1000]


def test_a_step_holds_what_its_layers_keep_and_five_copies_of_the_weights():
    linear = torch.nn.Linear(4, 4, bias=False)  # of (x_t, t) it keeps x_t
    network = torch.nn.Module()
    network.forward = lambda x_t, t: linear(x_t)
    network.register_module("only", linear)
    assert step_memory(network, (4,), 3) == 4 * (3 * 4 + 5 * 16)
    each = [step_memory(image_unet(1, 8), (1, 8, 8), images) for images in (2, 4, 6)]
    assert each[2] - each[1] == each[1] - each[0] > 0


def test_a_recipe_is_cut_to_the_memory_of_its_device(monkeypatch):
    recipe = Recipe(batch_size=12, conditional=True)
    assert recipe.microbatches(torch.device("cpu")) == 1
    for images, processes, parts in ((12, 1, 1), (6, 1, 2), (5, 1, 3), (6, 2, 1), (3, 2, 2)):
        room = recipe.step_memory(images)
        monkeypatch.setattr("ddpm_nb.recipe.training_room", lambda device, room=room: room)
        assert recipe.microbatches(torch.device("cpu"), processes) == parts
