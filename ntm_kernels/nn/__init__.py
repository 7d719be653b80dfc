"""Modules: ``NTMCell`` like ``torch.nn.LSTMCell``, ``NTM`` like ``torch.nn.LSTM``."""

from ntm_kernels.nn.cell import NTMCell
from ntm_kernels.nn.controllers import CellController, FeedforwardController, LSTMController
from ntm_kernels.nn.init import stepping_read_heads_, walking_write_heads_
from ntm_kernels.nn.initial_state import InitialState
from ntm_kernels.nn.ntm import NTM
from ntm_kernels.nn.state import NTMState

__all__ = [
    "NTM",
    "CellController",
    "FeedforwardController",
    "InitialState",
    "LSTMController",
    "NTMCell",
    "NTMState",
    "stepping_read_heads_",
    "walking_write_heads_",
]
