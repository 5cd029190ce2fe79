"""The benchmark of `bench train`: the time of a training step here and of the same in PyTorch."""
