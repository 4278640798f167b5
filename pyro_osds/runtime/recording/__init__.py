"""Tensor operations written down once, and run again without the Python that led to them."""
