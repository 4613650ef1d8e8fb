"""Evaluations -> the next alpha, until the best one is known.

May import: root, config, weights, inputs, stats, store, evaluation.
"""
