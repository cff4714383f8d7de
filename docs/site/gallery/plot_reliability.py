"""
TODO reliability
=====================
"""
print(1)
