import ast
import math
import textwrap
from dataclasses import dataclass

import pytest
import torch

import ddpm_nb
from ddpm_nb.arguments import choose, nearest, whole_number
from ddpm_nb.book.notebook import (
    at_least,
    between,
    check_parameters,
    describe_device,
    one_of,
    provenance,
    show_source,
)
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.gaussian import Gaussian

CELL = """
steps: int = 300  # optimization steps
rate: float = 1e-3
dataset: str = "digits"
clip: bool = False
"""
CHECKS = {"steps": at_least(1), "rate": between(1e-6, 1.0), "dataset": one_of("digits", "mnist", "fashion_mnist")}


def run(injected: str = "", cell: str = CELL, **checks) -> None:
    """Do what a kernel does with a parameters cell, papermill's injected cell, and the check cell."""
    namespace: dict = {"In": ["", cell]}
    exec(compile(cell, "<cell>", "exec"), namespace)
    if injected:
        code = "# Parameters\n" + injected
        namespace["In"].append(code)
        exec(compile(code, "<cell>", "exec"), namespace)
    check_parameters(namespace, **(checks or CHECKS))


@pytest.mark.parametrize(
    "injected",
    ["", "steps = 1", "rate = 1", "rate = 1.0", "dataset = 'mnist'\nclip = True", "steps: int = 5", "steps = 10**9"],
)
def test_right_parameters_pass(injected):
    run(injected)


@pytest.mark.parametrize(
    ("injected", "kind", "message"),
    [
        (
            "step = 5",
            ValueError,
            r"unknown parameter 'step' \(did you mean 'steps'\?\); known: steps, rate, dataset, clip",
        ),
        ("steps = 5\nzzz = 1", ValueError, r"unknown parameter 'zzz'; known: steps"),
        ("data_set = 'mnist'", ValueError, r"unknown parameter 'data_set' \(did you mean 'dataset'\?\)"),
        ("steps = '5'", TypeError, "steps = '5': expected int, got str"),
        ("steps = 5.0", TypeError, "steps = 5.0: expected int, got float"),
        ("steps = True", TypeError, "steps = True: expected int, got bool"),
        ("steps = None", TypeError, "steps = None: expected int, got NoneType"),
        ("rate = '0.1'", TypeError, "rate = '0.1': expected float, got str"),
        ("rate = False", TypeError, "rate = False: expected float, got bool"),
        ("clip = 1", TypeError, "clip = 1: expected bool, got int"),
        ("dataset = 3", TypeError, "dataset = 3: expected str, got int"),
        ("steps = 0", ValueError, "steps = 0: expected a number of at least 1"),
        ("rate = 2.0", ValueError, "rate = 2.0: expected a number from 1e-06 to 1.0"),
        ("rate = float('nan')", ValueError, "rate = nan: expected a number from"),
        (
            "dataset = 'fashion-mnist'",
            ValueError,
            r"dataset = 'fashion-mnist': expected one of 'digits', 'mnist', .*\(did you mean 'fashion_mnist'\?\)",
        ),
    ],
)
def test_wrong_parameters_are_refused_by_name(injected, kind, message):
    with pytest.raises(kind, match=message):
        run(injected)


def test_wrong_defaults_are_refused_too():
    with pytest.raises(TypeError, match=r"steps = 300\.0: expected int, got float"):
        run(cell="steps: int = 300.0", steps=at_least(1))


def test_a_check_of_a_name_that_is_no_parameter_is_refused():
    with pytest.raises(ValueError, match=r"condition on an undeclared parameter 'step' \(did you mean 'steps'\?\)"):
        run(step=at_least(1))


def test_bounds_are_included():
    run("rate = 1e-6")
    run("rate = 1.0")
    assert not at_least(0).holds(-1e-9)
    assert not at_least(0).holds(math.nan)
    assert not between(0, 1).holds(1 + 1e-9)


def shown(monkeypatch, *objects) -> str:
    """The Markdown that a notebook would show, without its fence."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", outputs.append)
    show_source(*objects)
    (output,) = outputs
    assert output.data.startswith("```python\n")
    assert output.data.endswith("\n```")
    return output.data.removeprefix("```python\n").removesuffix("\n```")


def sample_function(x):
    """A docstring
    of two lines."""

    # a comment that says why
    def inner():
        """Gone too."""
        return "a string"  # kept

    return inner() + """not a docstring"""


@dataclass
class Sample:
    """Gone."""

    value: int = 0
    """This one documents an attribute."""

    def method(self):
        """Gone."""
        # kept
        return self.value

    def documented_only(self):
        """A docstring that is the whole body has to stay."""


def test_source_is_shown_without_docstrings_and_with_comments(monkeypatch):
    source = shown(monkeypatch, sample_function)
    assert source == textwrap.dedent(
        '''\
        def sample_function(x):
            # a comment that says why
            def inner():
                return "a string"  # kept

            return inner() + """not a docstring"""'''
    )
    source = shown(monkeypatch, Sample)
    assert "Gone" not in source
    assert "# kept\n        return self.value" in source
    assert "has to stay" in source
    assert source.startswith("@dataclass\nclass Sample:\n    value: int = 0\n")


@pytest.mark.parametrize("item", [GaussianDiffusion, Gaussian, GaussianDiffusion.posterior, check_parameters])
def test_the_shown_source_is_the_code_that_runs(monkeypatch, item):
    import inspect

    def code(source: str) -> str:
        """The syntax tree without docstrings: what Python executes."""
        tree = ast.parse(textwrap.dedent(source))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and ast.get_docstring(node) is not None
                and len(node.body) > 1
            ):
                del node.body[0]
        return ast.dump(tree)

    source = shown(monkeypatch, item)
    assert code(source) == code(inspect.getsource(item))
    assert "Book:" not in source


def test_several_objects_are_shown_together(monkeypatch):
    source = shown(monkeypatch, GaussianDiffusion.marginal, GaussianDiffusion.diffuse)
    assert source.index("def marginal") < source.index("def diffuse")
    assert "\n\ndef diffuse" in source


def test_provenance_names_what_numbers_depend_on():
    found = provenance()
    assert found["ddpm_nb"] == ddpm_nb.__version__
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())


def test_nearest_names():
    assert nearest("stepz", ["steps", "rate"]) == " (did you mean 'steps'?)"
    assert nearest("qqq", ["steps", "rate"]) == ""
    assert choose("kind", "a", {"a": 1}) == 1
    with pytest.raises(ValueError, match=r"kind = 'alpa': expected one of 'alpha', 'beta' \(did you mean 'alpha'\?\)"):
        choose("kind", "alpa", {"alpha": 1, "beta": 2})


def test_whole_numbers():
    assert whole_number("n", torch.tensor(3), least=0) == 3
    assert type(whole_number("n", torch.tensor(3), least=0)) is int
    for value, kind in ((2.0, TypeError), ("2", TypeError), (True, TypeError), (None, TypeError), (-1, ValueError)):
        with pytest.raises(kind, match=f"n = {value!r}: expected a whole number"):
            whole_number("n", value, least=0)


def test_a_device_is_described_by_what_its_owner_calls_it(monkeypatch):
    @dataclass
    class Properties:
        name: str = "Tesla T4"
        total_memory: int = 15 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    assert describe_device(torch.device("cuda")) == "Tesla T4, 15 GiB"
    assert describe_device(torch.device("mps")) == "Apple GPU"
    assert describe_device(torch.device("cpu")).endswith(f"{torch.get_num_threads()} thread(s)")
