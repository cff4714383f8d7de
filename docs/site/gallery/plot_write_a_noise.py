"""
TODO write_a_noise
=====================
"""
print(1)
