"""The command line: parses, calls `api`, prints.

May import: root, config, weights, checkpoint, inputs, engine, stats, store, evaluation, search, bench, session,
results, exporting, api.
"""
