"""The ops, each declared once; ``library`` makes them ``torch.ops.ntm``."""

from typing import Any

from ntm_kernels.ops.address import ADDRESS, AddressInputs, AddressOutputs
from ntm_kernels.ops.declare import Field, NoOptions, NothingSaved, Op, record
from ntm_kernels.ops.read import READ, ReadInputs, ReadOutputs
from ntm_kernels.ops.sequence import SEQUENCE, SequenceInputs, SequenceOptions, SequenceOutputs
from ntm_kernels.ops.sizes import Sizes
from ntm_kernels.ops.step import STEP, StepInputs, StepOptions, StepOutputs
from ntm_kernels.ops.write import WRITE, WriteInputs, WriteOutputs

__all__ = [
    "ADDRESS",
    "OPS",
    "READ",
    "SEQUENCE",
    "STEP",
    "WRITE",
    "AddressInputs",
    "AddressOutputs",
    "Field",
    "NoOptions",
    "NothingSaved",
    "Op",
    "ReadInputs",
    "ReadOutputs",
    "SequenceInputs",
    "SequenceOptions",
    "SequenceOutputs",
    "Sizes",
    "StepInputs",
    "StepOptions",
    "StepOutputs",
    "WriteInputs",
    "WriteOutputs",
    "record",
]

OPS: dict[str, Op[Any, Any, Any]] = {op.name: op for op in (ADDRESS, READ, WRITE, STEP, SEQUENCE)}
