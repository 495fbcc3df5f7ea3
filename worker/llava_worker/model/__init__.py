"""The LLaVA model. It operates on tensors and is independent of sequences, the scheduler and the queue.

Each module imports only from the rows below it:

    gpu (CUDA graphs), memory_estimate
    llava                              vision tower -> projector -> decoder
    decoder, vision_tower
    tensor_parallel
    attention                          backends over the paged KV cache
    quantization, loading              weight formats and precisions; checkpoint files
    layers, cpu                        linear, RoPE, ...; C++ kernels
    kernels, config, device_copy       torch and Triton kernels; config.json
"""
