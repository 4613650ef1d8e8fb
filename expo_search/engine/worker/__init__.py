"""What runs inside vLLM's own processes: sources, loading, switching in place.

May import: root, weights, checkpoint.
"""
