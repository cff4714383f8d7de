"""
TODO compare
=====================
"""
print(1)
