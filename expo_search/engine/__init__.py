"""alpha -> a model that answers: a vLLM engine that is started once.

May import: root, config, weights, checkpoint, inputs, engine.worker.
"""
