"""Folders of safetensors: read, checked, built, extrapolated, written whole or not at all.

May import: root, weights.
"""
