"""theta(alpha), to the bit: the formula, its fingerprint, the kernels that write it fast.

May import: root.
"""
