"""Runs: who computes them, where the results are kept."""
