"""Names -> a local pair of checkpoints, prompts, and the chat template that joins them.

May import: root, config, checkpoint.
"""
