"""Noise on a model and off it again: sites, hooks, shadows, draws, clock."""
