"""How Sphinx builds the pages: `make docs`, or `make docs-quick` without running the examples."""

import http.client
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

import pyro_osds

HERE = Path(__file__).resolve().parent

project = "pyro_osds"
author = copyright = "The pyro_osds founders"
version = release = pyro_osds.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
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


# ---- names of other packages ----

PAGES_OF_OTHERS = {
    "python": "https://docs.python.org/3",
    "numpy": "https://numpy.org/doc/stable",
    "torch": "https://docs.pytorch.org/docs/stable",
    "pyro": "https://docs.pyro.ai/en/stable",
    "arviz": "https://python.arviz.org/en/stable",
    "pandas": "https://pandas.pydata.org/docs",
    "xarray": "https://docs.xarray.dev/en/stable",
}


def fetched(name, folder=HERE / "_build" / "inventories"):
    """The list of names of another package, fetched once; None without a network, where its names are no links."""
    path, begin = folder / f"{name}.inv", b"# Sphinx inventory"
    if path.exists() and path.read_bytes().startswith(begin):
        return str(path)
    try:
        with urllib.request.urlopen(f"{PAGES_OF_OTHERS[name]}/objects.inv", timeout=10) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    if not content.startswith(begin):  # a page that asks to log in, for instance
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

    return str(path)


# Sphinx itself would warn of each list that it cannot fetch, and a warning ends the build.
with ThreadPoolExecutor() as pool:
    inventories = dict(zip(PAGES_OF_OTHERS, pool.map(fetched, PAGES_OF_OTHERS), strict=True))
intersphinx_mapping = {name: (PAGES_OF_OTHERS[name], path) for name, path in inventories.items() if path}


# ---- the gallery ----

# These take minutes, so their pages show code only; all others run when the pages are built.
NOT_EXECUTED = ("distributed", "german_credit", "hidden_markov", "neutra", "nile", "one_giant_leap", "radon")


_shown = tqdm.__init__
# A page has no use for a progress bar, and the examples ask for theirs.
tqdm.__init__ = lambda self, *args, **options: _shown(self, *args, **{**options, "disable": True})


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/(?!{'|'.join(NOT_EXECUTED)})\w+\.py$",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "download_all_examples": False,
    "remove_config_comments": True,
    "write_computation_times": False,
    "notebook_images": True,  # pictures go into the notebook, which is read elsewhere
}
# The functions above cannot be pickled, so every build reads all pages.
suppress_warnings = ["config.cache"]
