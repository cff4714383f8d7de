"""Callbacks for others' training loops: they attach the noise, keep its step that of the
optimiser, and take it off.
"""
