import sys

import pytest

from mambakit.core.adapters import (
    AdapterPluginError,
    AdapterSpec,
    IdAdapter,
    VocabularyTokenizer,
    adapter_names,
    get_adapter,
    register_adapter,
    registry,
)
from mambakit.core.errors import UserError


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that makes a package visible to importlib.metadata, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install_package(package, source, **entries):
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {module}:{value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("[mambakit.adapters]\n" + "\n".join(lines) + "\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install_package


GOOD = """
from mambakit.core.adapters import AdapterSpec, IdAdapter, VocabularyTokenizer
class Letters(IdAdapter): pass
SPEC = AdapterSpec("letters", VocabularyTokenizer, Letters)
"""


def test_the_general_adapters_are_there():
    assert {"vocabulary", "continuous"} <= set(adapter_names())
    assert get_adapter("vocabulary").adapter is IdAdapter


def test_decorator_registers_both_halves():
    @register_adapter("letters", tokenizer=VocabularyTokenizer)
    class Letters(IdAdapter):
        pass

    assert get_adapter("letters") == AdapterSpec("letters", VocabularyTokenizer, Letters)
    assert "letters" in adapter_names()


def test_a_taken_name_is_an_error_but_a_reload_is_not():
    def define():
        @register_adapter("letters", tokenizer=VocabularyTokenizer)
        class Letters(IdAdapter):
            pass

        return Letters

    define()
    again = define()
    assert get_adapter("letters").adapter is again
    with pytest.raises(
        ValueError, match=r"'vocabulary' is taken by mambakit\.core\.adapters\.adapter\.IdAdapter"
    ):
        register_adapter("vocabulary", tokenizer=VocabularyTokenizer)(again)


def test_unknown_name_lists_close_ones():
    with pytest.raises(UserError, match="no adapter is called 'vocabluary'; did you mean 'vocabulary'"):
        get_adapter("vocabluary")
    with pytest.raises(UserError, match=r"there are: continuous, .*vocabulary"):
        get_adapter("zzz")


def test_an_installed_package_is_found_and_only_then_imported(install):
    install("letters-plugin", GOOD, letters="SPEC")
    assert "letters" in adapter_names()
    assert "letters_plugin" not in sys.modules
    assert get_adapter("letters").adapter.__name__ == "Letters"
    assert get_adapter("letters") == get_adapter("letters")


def test_an_entry_point_may_name_a_decorated_class(install):
    install(
        "letters-plugin",
        "from mambakit.core.adapters import IdAdapter, VocabularyTokenizer, register_adapter\n"
        "@register_adapter('letters', tokenizer=VocabularyTokenizer)\n"
        "class Letters(IdAdapter): pass\n",
        letters="Letters",
    )
    assert get_adapter("letters").adapter.__name__ == "Letters"
    assert get_adapter("letters").tokenizer is VocabularyTokenizer


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("import no_such_module_anywhere", "SPEC", "raised ModuleNotFoundError: No module named"),
        ("1 / 0", "SPEC", "raised ZeroDivisionError"),
        ("x = 1", "SPEC", "raised AttributeError"),
        ("SPEC = 1", "SPEC", "should be an AdapterSpec .* got 1"),
        (GOOD.replace('"letters"', '"other"'), "SPEC", "holds an adapter of another name, 'other'"),
    ],
)
def test_a_broken_plugin_names_its_package_and_leaves_the_others_alone(install, source, value, message):
    install("broken-plugin", source, broken=value)
    install("letters-plugin", GOOD, letters="SPEC")
    assert {"broken", "letters"} <= set(adapter_names())
    with pytest.raises(AdapterPluginError, match=f"package broken-plugin .*{message}"):
        get_adapter("broken")
    assert get_adapter("letters").name == "letters"


def test_two_packages_with_one_name_are_both_named(install):
    install("letters-plugin", GOOD, letters="SPEC")
    install("more-letters", GOOD, letters="SPEC")
    with pytest.raises(
        AdapterPluginError, match="installed packages: letters-plugin, more-letters; uninstall"
    ):
        get_adapter("letters")


def test_a_package_can_not_take_a_name_of_ours(install):
    install("letters-plugin", GOOD.replace('"letters"', '"vocabulary"'), vocabulary="SPEC")
    with pytest.raises(AdapterPluginError, match="package letters-plugin offers an adapter 'vocabulary'"):
        get_adapter("vocabulary")


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (("", VocabularyTokenizer, IdAdapter), ValueError, "name: expected a non-empty string"),
        (("x", IdAdapter, IdAdapter), TypeError, "tokenizer: expected a subclass of Tokenizer"),
        (("x", VocabularyTokenizer, "IdAdapter"), TypeError, "adapter: expected a subclass of Adapter"),
    ],
)
def test_a_spec_is_checked(parts, error, message):
    with pytest.raises(error, match=message):
        AdapterSpec(*parts)
