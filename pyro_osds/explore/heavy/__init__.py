"""Heavy tails: a density that falls like a power is seen in coordinates in which it falls like an exponential."""
