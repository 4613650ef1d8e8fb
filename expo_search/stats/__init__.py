"""Numbers only: differences paired by prompt, the fit of the gain over alpha, repetition in a text.

May import: root.
"""
