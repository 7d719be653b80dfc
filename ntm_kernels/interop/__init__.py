"""Weights of other people's models: in as an :class:`ntm_kernels.NTM`, and out again."""

from ntm_kernels.interop.lstm import load_lstm, lstm_cell_of, lstm_of
from ntm_kernels.interop.pytorch_ntm import from_pytorch_ntm

__all__ = ["from_pytorch_ntm", "load_lstm", "lstm_cell_of", "lstm_of"]
