"""Densities of sites in unconstrained coordinates, and forms of densities that keep their digits."""
