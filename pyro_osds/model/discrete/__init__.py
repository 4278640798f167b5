"""Discrete latents: which values they have, summed out by elimination or jointly, and drawn back."""
