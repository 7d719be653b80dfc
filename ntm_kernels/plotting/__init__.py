"""Pictures of what the heads of an NTM did. They need matplotlib, and no display."""

from ntm_kernels.plotting.trace import plot_trace

__all__ = ["plot_trace"]
