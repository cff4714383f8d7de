"""Runs: jobs, the workers that compute them, and the store of results."""
