import math
import os
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ddpm_nb import checkpoint
from ddpm_nb.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def same(a, b) -> bool:
    """Equal in structure, type, dtype and every bit; NaN equals NaN."""
    if torch.is_tensor(a):
        bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(3):
        network(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return network, optimizer


STATE = {
    "step": 12,
    "loss": 0.1 + 0.2,
    "name": "ε-prediction",
    "nothing": None,
    "flag": True,
    "history": [1.5, math.inf, math.nan, -0.0],
    "pair": (1, [torch.arange(3), ()]),
    "numbers": {0: torch.tensor(1e-300, dtype=torch.float64), -1: {}},
    "tensors": {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
    },
    "special": torch.tensor([math.nan, math.inf, -0.0]),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3),
    "strided": torch.arange(12.0).reshape(3, 4).mT,
    "with gradient": torch.ones(2, requires_grad=True).detach(),
}


def test_nested_states_come_back_bit_for_bit(tmp_path):
    path = save_checkpoint(tmp_path / "new folder" / "state.safetensors", STATE)
    assert same(load_checkpoint(path), STATE)


def test_network_and_optimizer_come_back_bit_for_bit(tmp_path):
    network, optimizer = trained()
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    loaded = load_checkpoint(save_checkpoint(str(tmp_path / "x.safetensors"), state))
    assert same(loaded["optimizer"], state["optimizer"])
    assert same(loaded["network"], dict(state["network"]))

    other, fresh = trained()
    for parameter in other.parameters():
        parameter.data.zero_()
    fresh.state.clear()
    other.load_state_dict(loaded["network"])
    fresh.load_state_dict(loaded["optimizer"])
    x = torch.randn(5, 3)
    for net, opt in ((network, optimizer), (other, fresh)):
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()
    assert same(dict(other.state_dict()), dict(network.state_dict()))


def test_keys_that_look_alike_do_not_overwrite_each_other(tmp_path):
    state = {
        "a/b": torch.zeros(2),
        "a": {"b": torch.ones(2), "": torch.full((2,), 5.0)},
        1: torch.full((2,), 2.0),
        "1": torch.full((2,), 3.0),
        "": torch.full((2,), 4.0),
        "__metadata__": torch.full((2,), 6.0),
        "list": [torch.zeros(1), {"0": torch.ones(1)}],
    }
    assert same(load_checkpoint(save_checkpoint(tmp_path / "x", state)), state)


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    base = torch.arange(4.0)
    state = {"base": base, "again": base, "part": base[1:3]}
    assert same(load_checkpoint(save_checkpoint(tmp_path / "x", state)), state)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.text(max_size=4).filter(lambda name: name.isprintable()) | st.integers(-3, 3)
STATES = st.recursive(
    LEAVES | st.integers(0, 3).map(lambda n: torch.arange(float(n))),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)
@given(state=st.dictionaries(NAMES, STATES, max_size=3))
def test_every_nested_state_comes_back(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    assert same(load_checkpoint(save_checkpoint(path, state)), state)


def test_dict_subclasses_become_dicts(tmp_path):
    loaded = load_checkpoint(save_checkpoint(tmp_path / "x", {"o": OrderedDict(b=1, a=2)}))
    assert loaded == {"o": {"b": 1, "a": 2}}
    assert list(loaded["o"]) == ["b", "a"]


def test_a_new_checkpoint_replaces_the_old_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_byte_that_is_missing_or_too_many_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path / "x.safetensors", {"w": torch.arange(5.0), "step": 3})
    content = path.read_bytes()
    for damaged in [content[:n] for n in range(len(content))] + [content + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
            load_checkpoint(path)
        assert path.read_bytes() == damaged


def test_every_flipped_bit_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path / "x.safetensors", {"w": torch.arange(3.0), "step": 3, "t": (torch.ones(1),)})
    content = path.read_bytes()
    for byte in range(len(content)):
        for bit in (1 << byte % 8, 1 << (byte + 3) % 8):
            damaged = bytearray(content)
            damaged[byte] ^= bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
                load_checkpoint(path)
    assert path.read_bytes() == bytes(damaged)


def test_a_changed_weight_is_named_as_such(tmp_path):
    path = save_checkpoint(tmp_path / "x.safetensors", {"w": torch.arange(3.0)})
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        load_checkpoint(path)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint written by save_checkpoint"):
        load_checkpoint(path)
    pickled = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2)}, pickled)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load_checkpoint(pickled)
    assert torch.load(pickled)["w"].sum() == 2  # untouched


def test_a_missing_file_names_what_is_there(tmp_path):
    save_checkpoint(tmp_path / "step-100.safetensors", {})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no such checkpoint; the folder holds step-100"):
        load_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, object()]}}, r"state\.a\.b\.1: cannot save a object"),
        ({"a": {1, 2}}, r"state\.a: cannot save a set"),
        ({"a": {(1, 2): 3}}, r"state\.a: key \(1, 2\): expected a string or a whole number"),
        ({"a": {True: 3}}, r"state\.a: key True"),
        ({"a": b"bytes"}, r"state\.a: cannot save a bytes"),
    ],
)
def test_what_cannot_be_saved_is_named_and_the_old_file_stays(tmp_path, state, message):
    path = save_checkpoint(tmp_path / "x.safetensors", {"step": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=message):
        save_checkpoint(path, state)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stage", ["write", "sync", "rename", "interrupt"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, stage):
    path = save_checkpoint(tmp_path / "x.safetensors", {"step": 1})
    before = path.read_bytes()
    error = KeyboardInterrupt() if stage == "interrupt" else OSError(28, "No space left on device")

    def fail(*args, **kwargs):
        if stage in ("write", "interrupt"):
            args[1] and open(args[1], "wb").write(b"half a file")  # noqa: SIM115
        raise error

    targets = {"write": (checkpoint, "save_file"), "sync": (os, "fsync"), "rename": (checkpoint.Path, "replace")}
    monkeypatch.setattr(*targets.get(stage, targets["write"]), fail)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"step": 2, "w": torch.ones(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}


def test_the_bytes_reach_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    replace, fsync = checkpoint.Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(checkpoint.Path, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    save_checkpoint(tmp_path / "x", {"w": torch.ones(2)})
    assert order[:2] == ["sync", "rename"]


def test_loading_does_not_tie_the_state_to_the_file(tmp_path):
    path = save_checkpoint(tmp_path / "x", {"w": torch.ones(3)})
    loaded = load_checkpoint(path)
    loaded["w"].zero_()
    assert torch.equal(load_checkpoint(path)["w"], torch.ones(3))
