"""Callbacks for Lightning and Transformers. They attach the noise, keep its step equal to the
optimiser's, save it with checkpoints, and remove it.
"""
