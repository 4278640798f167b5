"""What annealing may have lost: searches that fail where it does not."""
