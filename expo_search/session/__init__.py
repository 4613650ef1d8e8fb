"""A study's spec -> checked -> running.

May import: root, config, weights, checkpoint, inputs, engine, pool, stats, store, evaluation, search, bench.
"""
