"""Each example runs from start to end with --smoke-test, as a user would call it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    # The exit code is 0 and something was printed.
    done = subprocess.run(
        [sys.executable, str(example), "--smoke-test"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "log_evidence" in done.stdout or "log evidence" in done.stdout
