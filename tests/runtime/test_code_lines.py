"""Which line is the user's: with a file or without one, and never one of this package."""

import re
from pathlib import Path

import pytest

import pyro_osds
from pyro_osds.runtime.errors.lines import is_library, own_line, user_line


def raised(text):
    """What running a text raises."""
    names = {}
    exec(text, names)
    with pytest.raises(ZeroDivisionError) as caught:
        names["half"](0)
    return caught.value


def test_code_without_a_file_is_the_users():
    error = raised("def half(x):\n    y = 1\n    return y / x\n")
    assert user_line(error) == own_line(error) == "`half` (line 3 of <string>)"


@pytest.mark.parametrize("name", ["<frozen importlib._bootstrap>", "<eval_with_key>.3", "<attrs generated init x.Y>"])
def test_code_that_libraries_write_is_theirs(name):
    assert is_library(name)


def test_every_file_of_the_package_is_its_own_and_no_file_beside_it():
    package = Path(pyro_osds.__file__).parent
    assert all(is_library(str(path)) for path in package.rglob("*.py"))
    assert not is_library(str(package.parent / "model.py"))


@pytest.mark.parametrize("name", ["<string>", "<stdin>", "<ipython-input-3-abc>", "/tmp/ipykernel_7/12.py"])
def test_a_notebook_or_a_prompt_is_the_users(name):
    assert not is_library(name)


def test_a_failure_inside_a_library_is_shown_where_the_user_called_it():
    with pytest.raises(re.error) as caught:
        re.compile("(")
    assert user_line(caught.value).endswith("of test_code_lines.py)")
