"""What is kept: a study, its answers and rewards, in one database beside Optuna's own tables.

May import: root.
"""
