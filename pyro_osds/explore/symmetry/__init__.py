"""Symmetries: of a posterior that is the same after a permutation or other signs, one copy of each mode is enough."""
