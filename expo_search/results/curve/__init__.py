"""The gain over alpha, drawn: one layout for the static, the interactive and the terminal picture.

May import: what results may.
"""
