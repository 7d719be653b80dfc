"""The candidates of the tuning."""

from bench.tune_triton import CASES, candidates
from ntm_kernels.backends.triton.launch_table import TABLE


def test_each_differs_in_one_entry():
    table, *others = candidates("cuda")
    assert table.launcher.table == TABLE
    assert len({backend.name for backend in others}) == len(others)
    for backend in others:
        pairs = zip(backend.launcher.table, TABLE, strict=True)
        assert sum(one != other for one, other in pairs) <= 1, backend.name
    tried = {name for _, _, entries in CASES for name in entries}
    assert tried == {backend.name.partition("=")[0] for backend in others}
