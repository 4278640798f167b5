"""Errors in the user's code: the line that they came from, and the sentence that tells them."""
