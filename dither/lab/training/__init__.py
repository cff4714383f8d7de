"""The training loop, its optimisers, its watches and its checkpoints."""
