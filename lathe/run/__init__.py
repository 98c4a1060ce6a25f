"""What a training process needs around its loop: devices, other ranks, checkpoints, metrics."""
