"""What the C++ kernels save for their backward, by op."""

import hashlib
from typing import Annotated, NamedTuple

from torch import Tensor

from ntm_kernels.ops import OPS, Field, record
from ntm_kernels.ops.declare import fields


@record
class SequenceSaved(NamedTuple):
    """Z is a padded N: see ``row_stride``."""

    checkpoints: Annotated[Tensor, Field("Q B M Z")]  # transposed
    weightings: Annotated[Tensor, Field("T B H N")]
    interface: Annotated[Tensor, Field("T B P")]  # raw
    gates: Annotated[Tensor | None, Field("L T B G", when="is_lstm")]  # activated
    cells: Annotated[Tensor | None, Field("L T B C", when="is_lstm")]
    lower_hidden: Annotated[Tensor | None, Field("U T B C", when="is_deep")]  # below the top layer


def row_stride(memory_size: int) -> int:
    """Elements from one row of a transposed memory to the next, as in csrc/sizes.h."""
    return (memory_size + 15) // 16 // 2 * 32 + 16


SAVED: dict[str, type[NamedTuple]] = {"sequence": SequenceSaved}


def digest() -> str:
    """A hash of all records. The compiled library has the hash of the sources that it was built
    from. If the two differ, the library would take one tensor for another, so it is not used."""
    declared = [
        f"{op.schema(run='bool save_for_backward')} {op.backward_schema('')} "
        f"{fields(op.inputs)} {fields(op.outputs)}"
        for op in OPS.values()
    ]
    saved = [f"{op}: {fields(kept)}" for op, kept in SAVED.items()]
    return hashlib.sha256("\n".join(declared + saved).encode()).hexdigest()[:16]
