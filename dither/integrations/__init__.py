"""Callbacks for others' training loops. They attach the noise, let its step be the optimiser's, and
remove it.
"""
