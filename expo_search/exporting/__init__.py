"""The best alpha -> a checkpoint: described, verified, uploaded, evaluated again.

May import: root, config, weights, checkpoint, inputs, engine, pool, stats, store, evaluation, search, bench, session,
results.
"""
