"""A study file, or a preset with options laid over it -> `StudySpec`.

May import: root.
"""
