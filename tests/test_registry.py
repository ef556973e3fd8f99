"""A registry grows by one call, refuses what would change a name's meaning, and runs a user's file once."""

import sys

import pytest

from ddpm_nb.registry import Registry, load_extension


@pytest.fixture
def colours() -> Registry[int]:
    return Registry("colour", {"red": 1, "green": 2})


def test_a_registry_is_a_mapping_that_grows(colours):
    assert colours.register("blue", 3) == 3
    assert dict(colours) == {"red": 1, "green": 2, "blue": 3}
    assert len(colours) == 3
    assert "blue" in colours
    colours.remove("blue")
    assert list(colours) == ["red", "green"]


def test_an_unknown_name_is_refused_with_the_nearest(colours):
    for ask in (colours.__getitem__, colours.remove):
        with pytest.raises(ValueError, match=r"colour = 'gren': expected one of 'red', 'green' \(did you mean 'green'"):
            ask("gren")


def test_a_taken_name_is_refused_and_the_same_entry_is_not(colours):
    entry = object()
    colours.register("own", entry)
    colours.register("own", entry)  # a cell that is run twice
    with pytest.raises(ValueError, match="colour = 'own': that name is taken"):
        colours.register("own", object())


def test_an_extension_is_run_once_by_file_and_found_by_name(tmp_path, monkeypatch):
    path = tmp_path / "counted.py"
    path.write_text("import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\n")
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    load_extension("")
    for _ in range(2):
        load_extension(str(path))
    assert sys.runs == 1
    monkeypatch.syspath_prepend(tmp_path)
    load_extension("counted")
    assert sys.runs == 2
    for name in ("counted", "ddpm_nb_extension_counted"):
        sys.modules.pop(name, None)


def test_a_missing_extension_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"extension = .*absent\.py': there is no such file"):
        load_extension(str(tmp_path / "absent.py"))
    (tmp_path / "needy.py").write_text("import what_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_is_not_there"):
        load_extension("needy")
    with pytest.raises(ValueError, match=r"extension = 'no_such_module': expected a path to a \.py file, or a module"):
        load_extension("no_such_module")
