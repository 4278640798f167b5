"""A trained flow at work: weighted draws, the verdicts on them, and what a run does while a verdict is bad."""
