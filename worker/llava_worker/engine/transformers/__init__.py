"""The transformers engine: runs models that the native engine does not support, with transformers' own code.

build        checks the checkpoint, loads the model and its processor, and tests how it can be batched
processor    the checkpoint's image processor: the prompt's image tokens, and the model's image inputs
kv_cache     merging and splitting the KV caches of sequences
runner       forward passes: one prompt, or one token for each sequence of a group
engine       queueing, sampling and preemption
"""
