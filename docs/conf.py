"""How Sphinx builds the pages: `make docs`, or `make docs-quick` without running the examples."""

import builtins
from pathlib import Path

from tqdm import tqdm

import pyro_osds

HERE = Path(__file__).parent

project = "pyro_osds"
author = copyright = "The pyro_osds founders"
version = release = pyro_osds.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

napoleon_numpy_docstring = False
napoleon_custom_sections = [("Main arguments", "params_style"), ("Other Arguments", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # types stand in the signatures, shapes in the text
autodoc_typehints_format = "short"
maximum_signature_line_length = 100  # longer ones have a line for each argument
autodoc_default_options = {"members": True, "show-inheritance": False}
autosummary_generate = True

html_theme = "furo"
html_title = f"pyro_osds {release}"


# ---- the gallery ----

# These take minutes, so their pages show code only; all others run when the pages are built.
NOT_EXECUTED = ("distributed", "german_credit", "hidden_markov", "neutra", "nile", "one_giant_leap")


_shown = tqdm.__init__
# A page has no use for a progress bar, and the examples ask for theirs.
tqdm.__init__ = lambda self, *args, **options: _shown(self, *args, **{**options, "disable": True})


def prepare(gallery_conf, example):
    """Sphinx-Gallery runs a script without ``__file__``, by which the examples find their data."""
    builtins.__file__ = example


def arguments(gallery_conf, script_vars):
    """Pictures are taken from memory; what an example saves beside that goes to the build, not into its folder."""
    source = Path(script_vars["src_file"])
    pictures = HERE / "_build" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)

    return ["--plot", str(pictures / f"{source.stem}.png")] if '"--plot"' in source.read_text() else []


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/(?!{'|'.join(NOT_EXECUTED)})\w+\.py$",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": (prepare,),
    "reset_argv": arguments,
    "capture_repr": (),
    "download_all_examples": False,
    "remove_config_comments": True,
    "write_computation_times": False,
}
# The functions above cannot be pickled, so every build reads all pages.
suppress_warnings = ["config.cache"]
