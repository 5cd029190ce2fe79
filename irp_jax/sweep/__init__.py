"""Many runs: which of them are done, by which process, and how their commands start and stop."""
