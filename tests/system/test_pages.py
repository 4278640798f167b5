"""Pages that a newcomer copies from run as they stand, and what they show is what comes out."""

import importlib.util
import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_within_standard_error
from scipy.integrate import quad
from scipy.stats import halfcauchy, multivariate_normal

DOCS = Path(__file__).parents[2] / "docs"
QUICKSTART = DOCS / "quickstart.md"
SPEC = importlib.util.spec_from_file_location("run_page", DOCS / "run_page.py")
RUN_PAGE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(RUN_PAGE)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The names of the page after it has run, and what it printed."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(tmp_path_factory.mktemp("quickstart"))
        names = RUN_PAGE.run(QUICKSTART)
        assert Path("quickstart.png").stat().st_size > 10_000

    return names, printed.getvalue()


def normal_log_density(y, sigma, spread):
    """Eight schools with their effects and the mean integrated out: one normal."""
    covariance = np.diag(sigma**2 + spread**2) + 25.0

    return multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)


def exact(names):
    """Log evidences by other means: one normal density, and one integral over the spread of the schools."""
    y, sigma = names["effect"].double().numpy(), names["error"].double().numpy()
    pooled = normal_log_density(y, sigma, 0.0)

    def density(t):  # spread = 5 t / (1 - t)
        spread = 5.0 * t / (1.0 - t)
        return np.exp(normal_log_density(y, sigma, spread)) * halfcauchy.pdf(spread, scale=5.0) * 5.0 / (1.0 - t) ** 2

    return {"pooled": pooled, "hierarchical": np.log(quad(density, 0.0, 1.0, epsabs=0.0, epsrel=1e-10)[0])}


@pytest.mark.slow
def test_quickstart_gives_the_evidences_of_quadrature(quickstart):
    names, _ = quickstart
    truth = exact(names)
    # What the page says of the truth.
    assert f"quadrature gives {truth['hierarchical']:.4f}" in QUICKSTART.read_text()
    for name, osds in names["runs"].items():
        assert osds.evidence.reliable and osds.evidence.draws_reliable
        # The standard error of constant weights is that of rounding.
        assert_within_standard_error(osds.log_evidence, truth[name], max(osds.log_evidence_se, 1e-4))


@pytest.mark.slow
def test_quickstart_shows_the_summary_and_explains_each_line_of_it(quickstart):
    names, printed = quickstart
    text = QUICKSTART.read_text()
    shown = re.search(r"<!-- summary: begin -->\n```text\n(.*?)```", text, re.DOTALL)[1]
    printed = printed[: printed.index("torch.Size")]
    labels = [line[:13].strip() for line in printed.splitlines()[2:] if line[:1].isalpha()]
    labels = [label for label in labels if not label.startswith(("mu", "tau", "theta"))]
    assert {"log evidence", "verdict", "seconds"} <= set(labels)
    for label in labels:
        assert any(line.startswith(f"{label} ") for line in shown.splitlines()), f"the page does not show {label!r}"
        assert f"| `{label}` |" in text, f"the page does not explain {label!r}"
    # The digits of the page are those of some run: the same estimate, to its standard error.
    value, error = (float(x) for x in re.search(r"log evidence (\S+) \+- (\S+)", shown).groups())
    assert_within_standard_error(value, names["osds"].log_evidence, np.hypot(error, names["osds"].log_evidence_se))


@pytest.mark.slow
def test_quickstart_shows_the_comparison(quickstart):
    names, _ = quickstart
    table, text = names["table"], QUICKSTART.read_text()
    assert list(table.index) == ["pooled", "hierarchical"]
    for name, row in table.iterrows():
        value, probability = re.search(rf"^{name} +(\S+) +\S+ +\S+ +(\S+) +True$", text, re.MULTILINE).groups()
        assert float(value) == pytest.approx(row["log_evidence"], abs=0.006)
        assert float(probability) == pytest.approx(row["posterior_prob"], abs=0.002)


def test_pages_are_run_block_by_block(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\nx = 1\n```\n\n```console\n$ false\n```\n\n```python\ny = x + 1\n```\n")
    assert RUN_PAGE.run(page)["y"] == 2
    # A traceback tells the line of the page.
    page.write_text("# A\n\n```python\nx = 1\n```\n\n```python\ny = 1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        RUN_PAGE.run(page)
    assert caught.traceback[-1].lineno == 7
    page.write_text("# A\n")
    with pytest.raises(ValueError, match="no block of Python"):
        RUN_PAGE.run(page)
    page.write_text("# A\n\n```python\nx = 1\n")
    with pytest.raises(ValueError, match="in line 3 has no end"):
        RUN_PAGE.run(page)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```py\nx = 1\n```\n", 1),
        ("* In a list:\n\n  ```python\n  x = 1\n  if x:\n      x = 2\n  ```\n", 2),
        ('~~~python\nx = """\n```\n"""\n~~~\n', "\n```\n"),
        ("```python title\nx = 1\n```\n", 1),
        ("```python\r\nx = 1\r\n```\r\n", 1),
        # A block that shows how a block is written is not one of Python.
        ("````\n```python\nx = 1\n```\n````\n\n```python\nx = 3\n```\n", 3),
    ],
)
def test_blocks_however_they_are_fenced(tmp_path, text, expected):
    page = tmp_path / "page.md"
    page.write_bytes(text.encode())
    assert RUN_PAGE.run(page)["x"] == expected
    assert len(RUN_PAGE.blocks(page)) == 1


# ---- where numbers come from ----


@pytest.fixture
def find_numbers(tmp_path, monkeypatch):
    """The script, with a repository of its own: one page, one file and one benchmark."""
    spec = importlib.util.spec_from_file_location("find_numbers", DOCS / "find_numbers.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "find_numbers", module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "results.jsonl").write_text(
        '{"error": -0.01234, "share": 0.25, "runs": [1200, 7]}\n{"error": 31.3113}\n'
    )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").touch()

    return module


def read(module, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)

    return module.tables(page)


def test_numbers_are_those_of_the_file_that_the_page_names(find_numbers, tmp_path):
    # Rounded, without their sign, with commas, as percentages; what is none of these is told with its line.
    rows = "| -0.012 | 25 % |\n| 31.31 | 1,200 |\n| 0.013 | 31.32 |\n"
    text = f"# A\n\n<!-- numbers: results.jsonl -->\n| a | b |\n|--:|--:|\n{rows}"
    (table,) = read(find_numbers, tmp_path, text)
    assert find_numbers.against_source(table) == [
        "page.md:8: 0.013: not in results.jsonl",
        "page.md:8: 31.32: not in results.jsonl",
    ]


def test_a_table_has_the_command_of_its_section(find_numbers, tmp_path):
    text = (
        "# A\n\n`python benchmarks/speed.py --quick`:\n\n| a |\n|--:|\n| 0.5 |\n\n## B\n\n| a |\n|--:|\n| 0.5 |\n\n"
        "`python benchmarks/gone.py`\n\n| a |\n|--:|\n| 0.5 |\n"
    )
    first, second, third = read(find_numbers, tmp_path, text)
    assert first.source == "python benchmarks/speed.py --quick" and not find_numbers.against_source(first)
    assert second.source == ""  # of another section
    assert "gone.py, which does not exist" in find_numbers.against_source(third)[0]


def test_a_source_is_a_file_a_command_or_a_reason(find_numbers, tmp_path):
    for source, expected in {"none": "without a reason", "none, a scale": None, "nowhere.md": "no file"}.items():
        (table,) = read(find_numbers, tmp_path, f"<!-- numbers: {source} -->\n| a |\n|--:|\n| 0.5 |\n")
        said = find_numbers.against_source(table)
        assert (expected in said[0]) if expected else not said


def test_a_generated_block_is_line_by_line_that_of_the_report(find_numbers, tmp_path):
    report = "3 runs.\n\n| a | b |\n| --: | --: |\n| 1.5 | 2.5 |\n| 3.5 | 4.5 |"
    rows = "3 runs.\n\n| a | b |\n| --: | --: |\n| 1.5 | 2.6 |\n| 3.5 | 2.5 |\n"
    text = f"<!-- search: begin -->\n{rows}<!-- search: end -->\n"
    said = [line for table in read(find_numbers, tmp_path, text) for line in find_numbers.against_report(table, report)]
    assert len(said) == 2 and said[0].startswith("page.md:6: 2.6") and said[1].startswith("page.md:7: '| 3.5 | 2.5 |'")


def test_names_versions_links_and_code_are_no_numbers(find_numbers):
    line = "| many-well 32-D | v0.2.0 | `draw(1.5)` | [a](b1.5.md) | arXiv 2512.05251 | 1e-5 | -31.31 ± 0.02 | k2.5 |"
    assert list(find_numbers.numbers(line)) == ["1e-5", "-31.31", "0.02"]


def test_a_block_without_stored_results_has_only_its_tables_told(find_numbers, tmp_path, monkeypatch):
    # Lines between the tables of such a block say nothing that could be checked.
    text = "<!-- search: begin -->\n3.5 of 4 runs.\n\n| a |\n|--:|\n| 0.5 |\n<!-- search: end -->\n"
    assert [list(table.lines) for table in read(find_numbers, tmp_path, text)] == [[2], [4, 5, 6]]
    monkeypatch.setattr(find_numbers, "RESULTS", tmp_path / "no results")
    assert not find_numbers.is_stored("search") and not find_numbers.is_stored("modules")
    assert [list(table.lines) for table in read(find_numbers, tmp_path, text)] == [[4, 5, 6]]


def test_every_block_that_a_benchmark_writes_stands_on_a_page(find_numbers):
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for block, command in find_numbers.REPORTS.items():
        assert pages.count(f"<!-- {block}: begin -->") == pages.count(f"<!-- {block}: end -->") == 1, block
        assert (DOCS.parent / "benchmarks" / command.split()[0]).exists(), command


@pytest.mark.slow
def test_every_table_of_the_pages_has_a_source_that_exists():
    done = subprocess.run([sys.executable, str(DOCS / "find_numbers.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
