"""The README's examples run, one after the other; docs/addressing.md is in test_article."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_readme():
    blocks = EXAMPLES.findall(README.read_text())
    assert len(blocks) >= 3
    torch.manual_seed(0)
    names = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README, example {number}", "exec"), names)
