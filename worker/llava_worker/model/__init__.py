"""The model: LLaVA as tensors in, tensors out. It knows no sequences, scheduler or queue.

Modules import only from lower rows:

    gpu (CUDA graphs), memory_budget
    llava                              vision tower -> projector -> decoder
    decoder, vision_tower
    tensor_parallel
    attention                          backends over the paged KV cache
    quantization, loading              weight formats and precisions; a checkpoint's files
    layers, cpu                        linear, RoPE, ...; kernels in C++
    kernels, config, device_copy       kernels in torch and Triton; config.json
"""
