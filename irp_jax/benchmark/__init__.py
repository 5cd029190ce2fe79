"""What `bench train` times: a training step here, and the same step in PyTorch."""
