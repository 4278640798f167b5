"""Every public name says what it takes and shows itself in a doctested example, and importing them is quick."""

import inspect
import subprocess
import sys

import pytest

import pyro_osds

PUBLIC = {name: getattr(pyro_osds, name) for name in pyro_osds.__all__ if callable(getattr(pyro_osds, name))}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def members(cls):
    """Public methods and properties that this package wrote, also those of base classes."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("pyro_osds")]
    found = {name: value for base in reversed(own) for name, value in vars(base).items() if name[0] != "_"}

    return {
        name: value.__func__ if isinstance(value, classmethod | staticmethod) else value
        for name, value in found.items()
        if inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
    }


MEMBERS = [(cls, name) for cls in CLASSES for name in members(CLASSES[cls])]


def undocumented(function, text):
    """Parameters that are not named, as ``name:``, in a docstring."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

    return [name for name in names if f"{name}:" not in text]


def example_lines(*docs):
    return [line for doc in docs for line in (doc or "").splitlines() if line.strip().startswith((">>>", "..."))]


@pytest.mark.parametrize("name", PUBLIC)
def test_name_has_arguments_and_an_example(name):
    # Warnings are raised by the package: their example is the function that warns.
    value, text = PUBLIC[name], inspect.getdoc(PUBLIC[name])
    assert text
    if inspect.isclass(value) and issubclass(value, Warning):
        return
    assert any(name in line for line in example_lines(text)), f"{name} has no example in its docstring"
    function = value.__init__ if inspect.isclass(value) else value
    assert not undocumented(function, text)


@pytest.mark.parametrize(("cls", "name"), MEMBERS, ids=lambda value: value)
def test_method_has_arguments_and_is_used_in_an_example(cls, name):
    member = members(CLASSES[cls])[name]
    text = inspect.getdoc(getattr(CLASSES[cls], name))
    assert text
    if not isinstance(member, property):
        assert not undocumented(member, text)
    everything = [CLASSES[cls].__doc__, *(value.__doc__ for value in members(CLASSES[cls]).values())]
    assert any(f".{name}" in line for line in example_lines(*everything)), f"no example of {cls} uses {name}"


def test_import_leaves_slow_packages_alone():
    # Each of them takes a quarter of a second to two seconds; they are imported where they are needed.
    slow = {"arviz", "matplotlib", "pandas", "scipy", "xarray"}
    code = f"import sys, pyro_osds; print({slow!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_command_tells_the_versions():
    done = subprocess.run([sys.executable, "-m", "pyro_osds", "--version"], capture_output=True, text=True, check=True)
    assert f"pyro_osds {pyro_osds.__version__}" in done.stdout
    assert "torch" in done.stdout
