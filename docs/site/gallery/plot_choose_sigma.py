"""
TODO choose_sigma
=====================
"""
print(1)
