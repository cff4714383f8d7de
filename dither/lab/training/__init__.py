"""The training loop, its optimisers, and what is looked at on the way."""
