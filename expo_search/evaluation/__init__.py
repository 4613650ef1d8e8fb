"""alpha -> `Evaluation`: answers, rewards, what they say against alpha = 0.

May import: root, config, inputs, stats, store.
"""
