"""The one-step flow: a base, coupling blocks with an exact log-determinant, and the diffusion that can teach them."""
