"""
TODO instead_of_sam
=====================
"""
print(1)
