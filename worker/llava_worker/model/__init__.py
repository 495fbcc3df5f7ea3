"""The model: LLaVA as tensors in, tensors out. It knows no sequence, no scheduler and no queue.

config -> weights -> Llava( vision tower -> projector -> Llama decoder over an AttentionBackend )
"""
