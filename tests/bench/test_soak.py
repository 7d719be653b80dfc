"""A soak sees every update, and names what is not finite in it."""

import math

import pytest
import torch

from bench import soak
from ntm_kernels.training.models import answer, build_model
from ntm_kernels.training.trainer import Trainer


def trainer(folder, updates=8):
    config = soak.settings("copy", "float32", updates)
    return Trainer(config, folder, report=lambda line: None)


@pytest.mark.parametrize("dtype", soak.UPDATES)
@pytest.mark.parametrize("task", soak.TASKS)
def test_every_task_is_soaked(tmp_path, capsys, task, dtype):
    words = ["--task", task, "--dtype", dtype, "--updates", "20", "--folder", str(tmp_path)]
    assert soak.main(words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{task}, {dtype}: 20 updates in ")
    assert (tmp_path / f"{task}-{dtype}" / soak.LINE).read_text() == f"{line}\n"
    assert soak.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line, "what has finished is not repeated"


def test_every_update_is_seen(tmp_path):
    run = trainer(tmp_path)
    with soak.Watch(run.model, tmp_path / soak.FAILURE) as watch:
        run.run()
    assert watch.updates == 8
    assert not (tmp_path / soak.FAILURE).exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_is_seen_before_it_is_clipped(tmp_path, value):
    run = trainer(tmp_path)
    seen = []

    def poison(gradient):
        seen.append(gradient)
        return torch.full_like(gradient, value) if len(seen) == 3 else None

    run.model.output.weight.register_hook(poison)
    with (
        soak.Watch(run.model, tmp_path / soak.FAILURE) as watch,
        pytest.raises(soak.SoakError, match=r"not finite: the gradient of output\.weight; "),
    ):
        run.run()
    assert watch.updates == 2
    saved = torch.load(tmp_path / soak.FAILURE)
    assert not saved["gradients"]["output.weight"].isfinite().any()

    again = build_model(run.config)
    again.load_state_dict(saved["weightings"])
    logits = answer(again, *saved["inputs"], run.config)
    assert logits.isfinite().all()


def test_a_weight_is_seen_with_what_it_spoils(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.model.output.bias[0] = math.nan
    spoilt = "the outputs or the final state, a weight, the gradient of output.bias"
    with (
        soak.Watch(run.model, tmp_path / soak.FAILURE),
        pytest.raises(soak.SoakError, match=f"not finite: {spoilt}"),
    ):
        run.run()


def test_the_final_state_is_seen(tmp_path):
    run = trainer(tmp_path)

    def spoil(model, inputs, results):
        output, state = results
        return output, state._replace(memory=state.memory * math.inf)

    run.model.register_forward_hook(spoil)
    with (
        soak.Watch(run.model, tmp_path / soak.FAILURE),
        pytest.raises(soak.SoakError, match="not finite: the outputs or the final state; "),
    ):
        run.run()


def test_hooks_are_gone_afterwards(tmp_path):
    run = trainer(tmp_path)
    with soak.Watch(run.model, tmp_path / soak.FAILURE) as watch:
        pass
    run.run()
    assert watch.updates == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_finite(dtype):
    good = torch.tensor([0.0, -3e38], dtype=dtype)
    assert soak.all_finite([good, torch.ones(2, 3)])
    for bad in (math.nan, math.inf, -math.inf):
        assert not soak.all_finite([good, torch.tensor([1.0, bad], dtype=dtype)])


def test_numbers_of_updates_are_checked(tmp_path, capsys):
    with pytest.raises(SystemExit):
        soak.main(["--updates", "0", "--folder", str(tmp_path)])
    assert "--updates must be at least 1" in capsys.readouterr().err
