"""Tiny random models of the family: options, weights, float64 forward pass, FP8, names, configs.

`tools/make_tiny_model.py` is the entry: it writes them as checkpoints.
"""
