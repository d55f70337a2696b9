"""Training without Ray and DeepSpeed: samples, sampler, packing, loss and phases."""
