"""The version of the package, for files that tell which one wrote them."""

__version__ = "0.2.0"
