"""
TODO graph
=====================
"""
print(1)
