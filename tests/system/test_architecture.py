"""The page on the architecture shows the packages as they are: whoever moves a module draws it anew."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="the script reads pyproject.toml with Python 3.11's tomllib")
SOURCE = Path(__file__).parents[2] / "docs" / "draw_packages.py"
SPEC = importlib.util.spec_from_file_location("draw_packages", SOURCE)
DRAW = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(DRAW)


def test_the_picture_and_the_table_are_those_of_the_files():
    assert DRAW.PICTURE.read_text() == DRAW.picture(), "run python docs/draw_packages.py"
    assert DRAW.PAGE.read_text() == DRAW.page(), "run python docs/draw_packages.py"


def test_every_arrow_points_downwards():
    floor = {name: number for number, names in enumerate(DRAW.floors()) for name in names}
    upwards = [(a, b) for a, b in DRAW.arrows() if a in floor and floor[a] >= floor[b]]
    assert not upwards and len(DRAW.arrows()) > 30


def test_what_follows_from_others_is_left_out():
    assert DRAW.needed({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}


def test_packages_and_files_stay_small():
    # A newcomer finds an idea from the listing of a folder, and reads a file in one go.
    for folder in [DRAW.PACKAGE, *(path for path in DRAW.PACKAGE.rglob("*") if path.is_dir())]:
        assert len(list(folder.glob("*.py"))) <= 20, folder
    long = {path.name for path in DRAW.PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400}
    assert long == {"osds.py"}
