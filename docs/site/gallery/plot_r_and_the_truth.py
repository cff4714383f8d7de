"""
R against the truth
===================

x
"""
import dither
print(dither.Additive(.1))
