"""A stored study -> verdict, tables, curve, report, note, dashboard.

May import: root, config, stats, store, evaluation, search, bench.
"""
