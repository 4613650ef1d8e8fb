"""A study's spec -> checked -> running.

May import: all of the above.
"""
