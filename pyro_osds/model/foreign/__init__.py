"""What user code does besides following its latents: it changes tensors in place, keeps state, calls foreign code."""
