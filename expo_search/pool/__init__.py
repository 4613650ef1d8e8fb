"""Prompts -> answers and rewards, of many engines that Ray runs on one node or on many: a `Model` and a `Scorer`.

May import: root.
"""
