"""Numbers in, numbers out: pictures, words, states and actions in the form that a model reads and back.

No models.
"""
