import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch.testing import assert_close

from ddpm_nb.__main__ import main
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ddpm_nb.data import load_dataset
from ddpm_nb.pretrained import load_model
from ddpm_nb.recipe import Recipe
from ddpm_nb.schedule import SCHEDULES, linear_schedule
from ddpm_nb.training import checkpointed

KILLS = int(os.environ.get("DDPM_NB_KILLS", "2"))  # a run by hand may ask for more
SHORT = Recipe(
    mixed_precision="no", steps=6, batch_size=12, warmup=2, parameterization="v", weighting="min_snr", ema_decay=0.9
)


def words(recipe: Recipe) -> list[str]:
    chosen = {name: value for name, value in asdict(recipe).items() if not isinstance(value, bool)}
    return [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]


def digest(path: Path) -> str:
    """The hash of everything a run has left: weights, average, optimizer, losses, settings."""
    load_checkpoint(path)
    with safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits")


def finish(recipe, learner, images, path=None, microbatches=1):
    run = recipe.run(learner, images, Accelerator(), microbatches)
    for _ in checkpointed(run, path, 2, lambda: recipe.state(learner)) if path else run:
        pass
    return learner


def test_the_command_ends_with_the_weights_of_the_recipe(images, tmp_path):
    path = tmp_path / "run.safetensors"
    main([*words(SHORT), "--checkpoint", str(path), "--save-every", "4"])
    learner = finish(SHORT, SHORT.learner(), images)
    saved = load_checkpoint(path)
    assert saved["step"] == 6
    assert torch.equal(saved["losses"], torch.stack(learner.losses))
    for name, value in learner.network.state_dict().items():
        assert torch.equal(saved["weights"][name], value)
    for name, value in learner.ema.network.state_dict().items():
        assert torch.equal(saved["ema"]["network"][name], value)
    model = load_model(path)
    assert (model.dataset, model.step, model.q.schedule.T, model.parameterization.name) == ("digits", 6, 1000, "v")


@pytest.mark.parametrize("cut", [1, 4])
def test_a_resumed_learner_ends_with_the_same_bits(images, tmp_path, cut):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    finish(SHORT, SHORT.learner(), images, whole)
    learner = SHORT.learner()
    for step in checkpointed(SHORT.run(learner, images, Accelerator()), path, 1, lambda: SHORT.state(learner)):
        if step.number > cut:  # the step after the last saved one is lost, as it would be in a crash
            break
    assert load_checkpoint(path)["step"] == cut
    with torch.random.fork_rng():
        torch.manual_seed(99)
        learner = SHORT.learner()
        SHORT.resume(learner, path)
        finish(SHORT, learner, images, path)
    assert digest(path) == digest(whole)


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path):
    """SIGKILL at random moments, many of them while a checkpoint is being written."""
    recipe = Recipe(mixed_precision="no", steps=200 + 10 * KILLS, batch_size=8, warmup=0)
    whole, path = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    main([*words(recipe), "--checkpoint", str(whole), "--save-every", "1000"])

    chance = random.Random(0)
    command = [sys.executable, "-m", "ddpm_nb", "train", *words(recipe), "--checkpoint", str(path), "--save-every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reached = [0]
    for _ in range(KILLS):
        written = path.stat().st_mtime_ns if path.exists() else 0
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else 0) == written:
            time.sleep(0.01)  # until this run has written a checkpoint of its own
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(load_checkpoint(path)["step"])
    assert all(before < after for before, after in pairwise(reached)), reached
    assert reached[-1] < recipe.steps, "every kill should hit a run that was under way"
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert digest(path) == digest(whole)


def test_two_processes_are_one_with_the_same_batch(images, tmp_path):
    path = tmp_path / "two.safetensors"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, "-m", "ddpm_nb", *words(SHORT), "--checkpoint", str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process(es)" in done.stdout
    alone = finish(SHORT, SHORT.learner(), images)
    two = load_checkpoint(path)
    assert_close(two["losses"], torch.stack(alone.losses), rtol=1e-5, atol=0)
    for name, value in alone.ema.network.state_dict().items():
        assert_close(two["ema"]["network"][name], value, rtol=1e-3, atol=2e-5)  # Adam divides by small numbers
    alone_but_wrong = finish(SHORT, SHORT.learner(), images.flip(0))
    assert not torch.allclose(two["losses"], torch.stack(alone_but_wrong.losses), rtol=1e-3)


@pytest.mark.parametrize("parts", [2, 3])
def test_microbatches_are_one_batch_to_rounding(images, parts):
    whole = finish(SHORT, SHORT.learner(), images)
    divided = finish(SHORT, SHORT.learner(), images, microbatches=parts)
    assert_close(torch.stack(divided.losses), torch.stack(whole.losses), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"batch_size = 12: expected a multiple of 5, for 1 process\(es\) of 5 micro"):
        finish(SHORT, SHORT.learner(), images, microbatches=5)


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path):
    path = tmp_path / "run.safetensors"
    main([*words(SHORT), "--checkpoint", str(path)])
    before = digest(path)
    other = Recipe(**{**asdict(SHORT), "learning_rate": 0.5, "steps": 7})
    with pytest.raises(CheckpointError, match="another recipe: steps is 6 there, 7 here; learning_rate is"):
        main([*words(other), "--checkpoint", str(path)])
    assert digest(path) == before
    save_checkpoint(path, {"step": 3})
    with pytest.raises(CheckpointError, match="a checkpoint, but not of a training run"):
        main([*words(SHORT), "--checkpoint", str(path)])


def test_a_run_that_diverges_names_step_rate_and_last_good_checkpoint(images, tmp_path):
    path = tmp_path / "run.safetensors"
    learner = SHORT.learner()
    run = checkpointed(SHORT.run(learner, images, Accelerator()), path, 2, lambda: SHORT.state(learner))
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is nan at step 5 with learning rate .*the last good checkpoint: .*run\.safetensors, of step 4",
    ):
        for step in run:
            if step.number == 5:
                with torch.no_grad():
                    learner.network.outward.bias.fill_(torch.nan)
    good = load_checkpoint(path)
    assert good["step"] == 4
    assert all(bool(value.isfinite().all()) for value in good["weights"].values())


def test_broken_weights_never_replace_a_good_checkpoint(images, tmp_path):
    path = tmp_path / "run.safetensors"
    learner = SHORT.learner()
    run = checkpointed(SHORT.run(learner, images, Accelerator()), path, 2, lambda: SHORT.state(learner))
    with pytest.raises(
        FloatingPointError, match=r"after step 4 the weights 'outward.bias' are not finite; the last good .*, of step 2"
    ):
        for step in run:
            if step.number == 4:  # the next thing to happen is a save, not a step that would notice
                with torch.no_grad():
                    learner.network.outward.bias.fill_(torch.inf)
    assert load_checkpoint(path)["step"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "fashionmnist"}, r"dataset = 'fashionmnist': .*did you mean 'fashion_mnist'"),
        ({"weighting": "minsnr"}, r"weighting = 'minsnr': .*did you mean 'min_snr'"),
        ({"step_draw": "stratify"}, r"step_draw = 'stratify': .*did you mean 'stratified'"),
        ({"mixed_precision": "fp8"}, r"mixed_precision = 'fp8': expected one of 'auto', 'no', 'bf16', 'fp16'"),
        ({"parameterization": "epsilon"}, r"parameterization = 'epsilon': .*did you mean 'eps'"),
        ({"steps": 0}, "steps = 0: expected a whole number of at least 1"),
        ({"T": 1}, "T = 1: expected a whole number of at least 2"),
    ],
)
def test_a_recipe_refuses_what_it_does_not_know(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_the_first_weights_are_a_function_of_the_seed():
    same = [Recipe(seed=seed).untrained().state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(same[0].values(), same[1].values()))
    assert any(not torch.equal(a, b) for a, b in zip(same[0].values(), same[2].values()))


def test_a_chain_that_ends_with_signal_is_said_aloud_and_others_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schedule in ("linear", "cosine"):
            for T in (50, 200, 1000):
                Recipe(schedule=schedule, T=T)
    SCHEDULES.register("short", lambda T: linear_schedule(T, 1e-4, 0.02))
    try:
        with pytest.warns(UserWarning, match=r"T = 200: the chain ends with √ᾱ_T = 0\.36.* nats"):
            Recipe(schedule="short", T=200)
    finally:
        SCHEDULES.remove("short")


def test_a_schedule_is_shifted_for_the_side_of_the_images():
    plain, same, larger = (Recipe(schedule_side=side).q.schedule for side in (0, 8, 4))
    t = torch.arange(1, plain.T + 1)
    assert_close(same.log_alpha_bars, plain.log_alpha_bars, rtol=1e-10, atol=0)
    # The digits are 8 pixels wide, twice as wide as the schedule was made for.
    assert_close(larger.level(t).snr, plain.level(t).snr / 4, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="schedule_side = -1"):
        Recipe(schedule_side=-1)


def test_a_half_life_of_the_average_takes_the_place_of_its_decay():
    decays = [
        Recipe(ema_decay=0.9, ema_half_life=half_life, batch_size=batch).learner().ema.decay
        for half_life, batch in ((0, 64), (64, 64), (128, 64), (128, 128))
    ]
    assert_close(decays, [0.9, 0.5, 0.5**0.5, 0.5], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="ema_half_life = -1"):
        Recipe(ema_half_life=-1)
