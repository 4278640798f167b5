"""Statistics of weights, of chains and of points, and the thresholds of the verdicts."""
