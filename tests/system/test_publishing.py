"""What a release says of itself, in the files that nothing else reads, is true and the same everywhere."""

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pyro_osds

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
VERSION = pyro_osds.__version__


def project():
    tomllib = pytest.importorskip("tomllib", reason="in Python 3.11 and later")

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements():
    return {requirement.name: requirement for requirement in map(Requirement, project()["dependencies"])}


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    heading = re.search(r"^## \[(.*?)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == VERSION
    assert re.search(r"^date-released: (.*)$", citation, re.MULTILINE)[1] == heading[2]
    assert heading[1] == VERSION
    assert f"version = {{{VERSION}}}" in (ROOT / "docs" / "citing.md").read_text()
    assert "version" in project()["dynamic"]


def imported():
    """Packages that a module of ours imports, at its top or in a function, but not for types only."""
    found, for_types = set(), set()
    for path in (ROOT / "pyro_osds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for_types.update(ast.walk(node))
            elif node in for_types:
                continue
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])

    return found - sys.stdlib_module_names - {"pyro_osds"}


def test_what_is_imported_is_required_or_optional():
    # opt_einsum is Pyro's own requirement.
    names = {"pyro": "pyro-ppl"}
    optional = {
        Requirement(text).name for extra in ("plot", "many") for text in project()["optional-dependencies"][extra]
    }
    needed = {names.get(name, name) for name in imported()} - {"opt_einsum"}
    assert needed == set(requirements()) | optional


def test_bounds_hold_the_versions_that_tests_run_with():
    newest, oldest = (
        dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line and line[0] != "#")
        for name in ("constraints.txt", "constraints-oldest.txt")
    )
    for name, requirement in requirements().items():
        for pins in (newest, oldest):
            if name in pins:
                assert requirement.specifier.contains(pins[name]), (name, pins[name])
    # Private names of these two are used: the next minor version has not been tried.
    for name in ("torch", "pyro-ppl"):
        tried = Version(newest[name])
        assert not requirements()[name].specifier.contains(f"{tried.major}.{tried.minor + 1}.0"), name


def test_python_versions_are_those_that_the_workflow_tests():
    claimed = {text.split(" :: ")[-1] for text in project()["classifiers"] if re.search(r":: 3\.\d+$", text)}
    tested = set(
        re.findall(r'"(3\.\d+)"', re.search(r"matrix:\n.*?python: \[(.*?)\]", WORKFLOW.read_text(), re.DOTALL)[1])
    )
    assert claimed <= tested and min(claimed, key=Version) == project()["requires-python"].removeprefix(">=")


def test_the_workflow_asks_for_what_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (WORKFLOW, ROOT / ".github" / "pull_request_template.md", ROOT / "README.md"):
        text = path.read_text()
        commands = re.findall(r"(?:\$ |run: |`)make ([\w =-]+)", text)
        asked = {word for command in commands for word in command.split() if "=" not in word and word[0] != "-"}
        assert asked and asked <= targets, (path.name, asked - targets)
        for script in re.findall(r"docs/\w+\.(?:py|md)", text):
            assert (ROOT / script).is_file(), script


def test_readme_reads_well_without_a_repository():
    # On a package index there are no files beside it: no relative link, no picture; paths that it names exist.
    text = (ROOT / "README.md").read_text()
    assert not [link for link in re.findall(r"\]\((.*?)\)", text) if not link.startswith("https://")]
    assert "![" not in text
    for path in re.findall(r"`(docs/[\w/.]+)`", text):
        assert (ROOT / path).exists() or path.startswith("docs/_build"), path
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}
