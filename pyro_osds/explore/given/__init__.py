"""Draws from elsewhere in the place of an exploration: read, checked, fitted, and searched for what they miss."""
