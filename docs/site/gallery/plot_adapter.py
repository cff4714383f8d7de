"""
TODO adapter
=====================
"""
print(1)
