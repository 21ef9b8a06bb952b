"""Kernels of our own, where XLA's are the bottleneck: a decoding step on a CPU."""
