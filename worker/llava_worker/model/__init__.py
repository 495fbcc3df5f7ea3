"""The LLaVA model. It operates on tensors and does not depend on sequences, the scheduler or the queue.

Modules import only from modules in lower rows:

    gpu (CUDA graphs), memory_estimate
    llava                              vision tower -> projector -> decoder
    decoder, vision_tower
    tensor_parallel
    attention                          backends and the paged KV cache
    quantization, loading              weight formats and precisions; checkpoint files
    layers, cpu                        linear, RoPE, ...; C++ kernels
    kernels, config, device_copy       torch and Triton kernels; config.json
"""
