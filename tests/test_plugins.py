"""Plug-ins are found by module name, checked for their contract, and may be the user's own package."""

import pytest

from d2v import plugins

FAMILIES = list(plugins.CONTRACTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_on_disk_exports_its_contract(family):
    names = plugins.available(family)
    assert names == sorted(names) and names
    for name in names:
        module = plugins.load(family, name)
        assert module.__doc__ and all(vars(module)[part] is not None for part in plugins.CONTRACTS[family])
        assert plugins.load(family, module.__name__) is module


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's beside the project."""
    package = tmp_path / "mylab_of_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "whole.py").write_text("class Config: ...\ndef build(encoder, config): ...\n")
    (package / "half.py").write_text("class Config: ...\n")
    (package / "broken.py").write_text("import no_such_library_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    return package.name


def test_own_packages(mine):
    family = "d2v.objectives"
    assert plugins.load(family, f"{mine}.whole").Config
    with pytest.raises(ValueError, match=rf"{mine}.half is no plug-in of {family}: it does not export build"):
        plugins.load(family, f"{mine}.half")
    with pytest.raises(ModuleNotFoundError, match="no_such_library_at_all"):  # its own fault is not hidden
        plugins.load(family, f"{mine}.broken")
    for name in (f"{mine}.nothing", "nowhere_at_all.nothing", "nothing"):
        with pytest.raises(
            ValueError,
            match=rf"{family} has no '{name}'; it has {', '.join(plugins.available(family))}, or give the dotted name",
        ):
            plugins.load(family, name)


def test_modules_beside_the_plugins_are_none():
    assert "common" not in plugins.available("d2v.modalities")
    with pytest.raises(ValueError, match="does not export FrontendConfig, DataConfig"):
        plugins.load("d2v.modalities", "common")
