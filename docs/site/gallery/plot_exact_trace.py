"""
TODO exact_trace
=====================
"""
print(1)
