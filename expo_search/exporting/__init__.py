"""The best alpha -> a checkpoint, described, verified, uploaded, evaluated again.

May import: all of the above.
"""
