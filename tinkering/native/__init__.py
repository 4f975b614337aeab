"""Kernels in C++, built on first use; every caller has a plain PyTorch form beside them."""
