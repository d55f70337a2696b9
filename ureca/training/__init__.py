"""Training: which samples there are, how they are packed, what is trained, and the loss. Free of Ray and DeepSpeed."""
