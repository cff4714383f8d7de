"""Many columns pulled back at once, and per-sample gradient norms.

Torch only: no noise, no site, no loss.
"""
