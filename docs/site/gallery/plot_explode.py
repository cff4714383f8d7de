"""
TODO explode
=====================
"""
print(1)
