"""What touches the machine: kernels in C++ that are built on first use, the allocator, memory.

Every kernel's caller has a plain PyTorch form beside it.
"""
