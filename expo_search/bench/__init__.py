"""A study's alphas on tasks that no reward model sees: answered by the live engine, compared with alpha = 0.

May import: root, config, inputs, stats, store, evaluation.
"""
