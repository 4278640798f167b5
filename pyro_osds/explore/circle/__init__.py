"""Angles: a circle has no ends, and is cut where the posterior has least mass."""
