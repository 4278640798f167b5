"""Around a run: random numbers of its own, who is told how it goes, and files of where it stands."""
