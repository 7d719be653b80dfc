"""Training of the paper's tasks: ``python -m ntm_kernels train copy``."""
