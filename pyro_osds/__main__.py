"""``python -m pyro_osds --version``: which versions are installed, for bug reports."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version

from pyro_osds.version import __version__

_SHOWN = ("torch", "pyro-ppl", "arviz", "zuko")


def versions() -> str:
    """The version of this package, of Python, and of what it stands on.

    Example:
        >>> versions().split()[0]
        'pyro_osds'
    """
    others = ", ".join(f"{name} {version(name)}" for name in _SHOWN)

    return f"pyro_osds {__version__} (Python {platform.python_version()}, {others})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pyro_osds", description="One-step diffusion samplers for Pyro")
    # Not argparse's own action for versions, which breaks the line wherever a terminal would.
    parser.add_argument("--version", action="store_true", help="print the versions of what is installed")
    if parser.parse_args().version:
        print(versions())
    else:
        parser.print_help()
