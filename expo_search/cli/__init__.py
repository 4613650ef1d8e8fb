"""The command line: parses, calls `api`, prints.

May import: root, config, weights, checkpoint, inputs, engine, pool, stats, store, evaluation, search, bench, session,
results, exporting, api.
"""
