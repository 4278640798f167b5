"""Before training: where the mass of the posterior lies, how much of it there is, and which modes it has."""
