"""Training: the methods and defenses, the compiled step, the guard, and the loop over epochs."""
