"""Every generator against the definition of its task, read back sequence by sequence."""

import dataclasses
import math

import pytest
import torch

from ntm_kernels import tasks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sequences(batch):
    """(inputs, targets, mask) of each sequence, cut to its length; the padding must be zero."""
    for b, length in enumerate(batch.lengths.tolist()):
        assert not batch.inputs[length:, b].any()
        assert not batch.targets[length:, b].any()
        assert not batch.mask[length:, b].any()
        yield batch.inputs[:length, b], batch.targets[:length, b], batch.mask[:length, b]


def check_bits(values):
    assert set(values.unique().tolist()) <= {0.0, 1.0}


ALL = [
    tasks.make("copy"),
    tasks.make("copy", answer_channel=True, width=3, min_length=2, max_length=5),
    tasks.make("repeat_copy"),
    tasks.make("repeat_copy", unary=True, max_length=4, max_repeats=5),
    tasks.make("associative_recall"),
    tasks.make("associative_recall", answer_channel=True),
    tasks.make("associative_recall", width=2, item_length=1, min_items=2, max_items=2),
    tasks.make("ngrams", length=20),
    tasks.make("priority_sort"),
]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
class TestEveryTask:
    @pytest.mark.parametrize("same_length", [False, True])
    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_contract(self, task, batch_size, same_length):
        batch = task.sample(batch_size, generator(), same_length=same_length)
        steps = int(batch.lengths.max())
        assert batch.inputs.shape == (steps, batch_size, task.input_size)
        assert batch.targets.shape == (steps, batch_size, task.output_size)
        assert batch.mask.shape == (steps, batch_size)
        assert batch.inputs.dtype == batch.targets.dtype == torch.float32
        assert batch.mask.dtype == torch.bool
        check_bits(batch.targets)
        for inputs, targets, mask in sequences(batch):
            assert mask.any()
            assert mask[-1], "an answer ends its sequence"
            assert not targets[~mask].any()
            assert len(inputs) == len(mask)
        if same_length:
            assert (batch.lengths == steps).all()

    def test_the_generator_decides_everything(self, task):
        first, again = task.sample(5, generator(3)), task.sample(5, generator(3))
        other = task.sample(5, generator(4))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert first.inputs.shape != other.inputs.shape or not torch.equal(first[0], other[0])

    def test_fresh_sequences_follow_one_another(self, task):
        source = generator()
        first, second = task.sample(1, source), task.sample(1, source)
        for _ in range(3):
            assert first.inputs.shape != second.inputs.shape or not torch.equal(
                first.inputs, second.inputs
            )
            first, second = second, task.sample(1, source)

    def test_round_trip_through_json_values(self, task):
        assert tasks.from_dict(task.to_dict()) == task

    def test_suite_has_the_same_channels(self, task):
        for harder in (trial.task for trial in task.trials().values()):
            assert harder.input_size == task.input_size
            assert harder.output_size == task.output_size
            harder.sample(2, generator())

    def test_curriculum_ends_with_the_task_and_has_its_channels(self, task):
        *easier, last = task.curriculum()
        assert last is task
        assert task not in easier
        steps = [int(stage.sample(64, generator()).lengths.max()) for stage in (*easier, last)]
        assert steps == sorted(steps)
        for stage in easier:
            assert (stage.input_size, stage.output_size) == (task.input_size, task.output_size)

    def test_bad_requests(self, task):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            task.sample(0, generator())

    def test_sorted_chunks_hold_the_same_sequences(self, task):
        batch = task.sample(9, generator())
        chunks = batch.sorted_chunks(4)
        assert [chunk.inputs.shape[1] for chunk in chunks] == [4, 4, 1]
        lengths = torch.cat([chunk.lengths for chunk in chunks])
        assert torch.equal(lengths, batch.lengths.sort().values)
        whole = {tuple(i.flatten().tolist()) for i, _, _ in sequences(batch)}
        parts = {tuple(i.flatten().tolist()) for c in chunks for i, _, _ in sequences(c)}
        assert whole == parts


@pytest.mark.parametrize("answer_channel", [False, True])
def test_copy(answer_channel):
    task = tasks.make("copy", answer_channel=answer_channel)
    batch = task.sample(200, generator())
    seen = set()
    for inputs, targets, mask in sequences(batch):
        length = (len(inputs) - 1) // 2
        seen.add(length)
        assert len(inputs) == 2 * length + 1
        check_bits(inputs)
        assert torch.equal(targets[length + 1 :], inputs[:length, :8])
        assert inputs[:, 8].nonzero().flatten().tolist() == [length]
        assert not inputs[length, :8].any()
        assert not inputs[length + 1 :, :9].any()
        assert mask.nonzero().flatten().tolist() == list(range(length + 1, 2 * length + 1))
        if answer_channel:
            assert torch.equal(inputs[:, 9].bool(), mask)
    assert seen == set(range(1, 21))


def test_copy_suite_lengths():
    suite = tasks.make("copy").suite()
    for length in (20, 30, 50, 80, 120):
        batch = suite[f"length {length}"].sample(2, generator())
        assert batch.lengths.tolist() == [2 * length + 1] * 2


def test_bits_are_fair_coins():
    batch = tasks.make("copy", min_length=20).sample(500, generator())
    share = batch.targets[batch.mask].mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(500 * 20 * 8)


def test_repeat_copy():
    task = tasks.make("repeat_copy")
    batch = task.sample(400, generator())
    seen, shown = set(), []
    for inputs, targets, mask in sequences(batch):
        length = int(inputs[:, 8].nonzero())
        repeats = round(float(inputs[length + 1, 9]) * math.sqrt(99 / 12) + 5.5)
        shown.append(float(inputs[length + 1, 9]))
        seen.add((length, repeats))
        assert len(inputs) == length + 2 + repeats * length + 1
        vectors = inputs[:length, :8]
        check_bits(vectors)
        assert inputs[:, 9].nonzero().flatten().tolist() == [length + 1]
        assert not inputs[length:, :8].any()
        answer = targets[length + 2 :]
        assert mask.nonzero().flatten().tolist() == list(range(length + 2, len(inputs)))
        assert torch.equal(answer[:-1, :8], vectors.repeat(repeats, 1))
        assert not answer[:-1, 8].any()
        assert answer[-1].tolist() == [0.0] * 8 + [1.0]
    assert {length for length, _ in seen} == set(range(1, 11))
    assert {repeats for _, repeats in seen} == set(range(1, 11))
    every = task.normalise(torch.arange(1, 11))
    assert abs(every.mean()) < 1e-6
    assert abs(every.std(correction=0) - 1) < 1e-6


def test_repeat_copy_is_normalised_over_training_also_beyond_it():
    suite = tasks.make("repeat_copy").trials()
    batch = suite["length 10, 20 repeats"].task.sample(1, generator())
    assert batch.inputs[11, 0, 9].item() == pytest.approx((20 - 5.5) / math.sqrt(99 / 12))
    assert suite["length 20, 10 repeats"].task.sample(1, generator()).lengths.item() == 223


def test_repeat_copy_counted_out():
    """With ``unary`` the repeats are as many steps; all else is as in the paper's task."""
    task = tasks.make("repeat_copy", max_length=4, max_repeats=5)
    paper = task.sample(50, generator())
    unary = dataclasses.replace(task, unary=True).sample(50, generator())
    for before, now in zip(sequences(paper), sequences(unary), strict=True):
        length = int(before[0][:, 8].nonzero())
        repeats = (len(before[0]) - length - 3) // length
        shown = now[0][length + 1 : length + 1 + repeats]
        assert shown.tolist() == [[0.0] * 9 + [1.0]] * repeats
        for part, of_paper in zip(now, before, strict=True):
            assert torch.equal(part[: length + 1], of_paper[: length + 1])
            assert torch.equal(part[length + 1 + repeats :], of_paper[length + 2 :])


def test_associative_recall_with_an_answer_channel():
    task = tasks.make("associative_recall")
    batch = dataclasses.replace(task, answer_channel=True).sample(20, generator())
    paper = task.sample(20, generator())
    assert torch.equal(batch.inputs[:, :, :8], paper.inputs)
    assert torch.equal(batch.inputs[:, :, 8], paper.mask.float())
    assert torch.equal(batch.targets, paper.targets)


@pytest.mark.parametrize(
    ("task", "name", "largest"),
    [
        (tasks.make("copy"), "max_length", [2, 4, 8, 16, 20]),
        (tasks.make("copy", min_length=5, max_length=8), "max_length", [8]),
        (tasks.make("repeat_copy", max_length=5, max_repeats=4), "max_length", [3, 4, 5]),
        (tasks.make("repeat_copy", max_length=5, max_repeats=4), "max_repeats", [3, 4, 4]),
        (tasks.make("repeat_copy", max_length=2, max_repeats=2), "max_length", [2]),
        (tasks.make("associative_recall"), "max_items", [2, 3, 4, 5, 6]),
        (tasks.make("ngrams"), "context", [4, 5]),
        (tasks.make("ngrams"), "length", [80, 200]),
        (tasks.make("ngrams", context=4), "context", [4, 4]),
        (tasks.make("ngrams", length=2, context=1), "length", [2]),
        (tasks.make("priority_sort"), "num_items", [10, 20]),
        (tasks.make("priority_sort"), "num_answers", [8, 16]),
        (tasks.make("priority_sort", num_items=5, num_answers=1), "num_items", [5]),
    ],
)
def test_stages(task, name, largest):
    assert [getattr(stage, name) for stage in task.curriculum()] == largest


def test_associative_recall():
    batch = tasks.make("associative_recall").sample(600, generator())
    counts, asked = set(), set()
    for inputs, targets, mask in sequences(batch):
        bits, item_marks, query_marks = inputs[:, :6], inputs[:, 6], inputs[:, 7]
        check_bits(inputs)
        starts = item_marks.nonzero().flatten().tolist()
        count = len(starts)
        assert starts == [4 * i for i in range(count)]
        end = 4 * count
        assert query_marks.nonzero().flatten().tolist() == [end, end + 4]
        assert len(inputs) == end + 8
        assert not bits[starts].any()
        assert not bits[[end, end + 4]].any()
        assert not inputs[end + 5 :].any()
        items = [bits[s + 1 : s + 4] for s in starts]
        query, answer = bits[end + 1 : end + 4], targets[end + 5 :]
        assert mask.nonzero().flatten().tolist() == [end + 5, end + 6, end + 7]
        places = [i for i in range(count - 1) if torch.equal(items[i], query)]
        assert any(torch.equal(items[i + 1], answer) for i in places)
        counts.add(count)
        if len(places) == 1 and count == 6:
            asked.add(places[0])
    assert counts == {2, 3, 4, 5, 6}
    assert asked == {0, 1, 2, 3, 4}, "every item but the last is asked for"


def test_ngrams_inputs_are_the_previous_bits():
    batch = tasks.make("ngrams").sample(20, generator())
    assert batch.inputs.shape == batch.targets.shape == (200, 20, 1)
    assert torch.equal(batch.inputs[1:], batch.targets[:-1])
    assert not batch.inputs[0].any()
    assert batch.mask.all()


def test_ngrams_follow_a_table_from_beta_one_half():
    """With one bit of context the table can be read back from a long sequence."""
    task = tasks.make("ngrams", length=3000, context=1)
    bits = task.sample(400, generator()).targets[:, :, 0]
    after_zero = bits[1:] * (1 - bits[:-1])
    visits = (1 - bits[:-1]).sum(dim=0)
    often = visits > 300
    probability = after_zero.sum(dim=0)[often] / visits[often]
    # Beta(½, ½) has the distribution function 2/π asin √p; few visits to 0 where 1 sticks are
    # independent of the entry for 0.
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    expected = (quantiles * math.pi / 2).sin() ** 2
    cumulative = torch.tensor([(probability <= p).float().mean() for p in expected])
    assert ((cumulative - quantiles).abs() < 0.11).all()


def test_ngrams_context_is_the_last_five_bits():
    """Each sequence's bits are nearly decided by context where its table is extreme."""
    task = tasks.make("ngrams", length=4000)
    bits = task.sample(6, generator()).targets[:, :, 0].long()
    for b in range(6):
        explained = {}
        for size in (4, 5, 6):
            ones = {}
            for t in range(size, 4000):
                ones.setdefault(tuple(bits[t - size : t, b].tolist()), []).append(int(bits[t, b]))
            cost = sum(
                -k * math.log2(k / len(seen))
                for seen in ones.values()
                for k in (sum(seen), len(seen) - sum(seen))
                if k
            )
            explained[size] = cost
        assert explained[5] < explained[4] - 50
        assert explained[6] > explained[5] - 50


def test_optimal_estimator_by_hand():
    bits = [1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1]
    for context in (1, 2, 5):
        got = tasks.optimal_probabilities(torch.tensor(bits).view(-1, 1).float(), context)
        for t in range(len(bits)):
            before = [
                bits[s] for s in range(context, t) if bits[s - context : s] == bits[t - context : t]
            ]
            expected = (sum(before) + 0.5) / (len(before) + 1) if t >= context else 0.5
            assert got[t, 0].item() == pytest.approx(expected, abs=1e-15)


def test_optimal_estimator_costs_133_bits():
    task = tasks.make("ngrams")
    source = generator()
    costs = torch.cat([task.optimal_bits(task.sample(1000, source)) for _ in range(4)])
    error = costs.std().item() / math.sqrt(len(costs))
    assert error < 0.7
    assert abs(costs.mean().item() - 133.0) < 3 * error


def test_optimal_bits_are_the_cost_of_the_optimal_logits():
    task = tasks.make("ngrams", length=60)
    batch = task.sample(5, generator())
    logits = tasks.optimal_probabilities(batch.targets[:, :, 0]).logit().unsqueeze(-1).float()
    torch.testing.assert_close(
        tasks.bits(logits, batch).double(), task.optimal_bits(batch), rtol=1e-5, atol=1e-5
    )


def test_priority_sort_moves_whole_vectors():
    batch = tasks.make("priority_sort").sample(50, generator())
    assert batch.inputs.shape == (36, 50, 9)
    priorities = batch.inputs[:20, :, 8]
    assert -1 <= priorities.min() < -0.9
    assert 0.9 < priorities.max() <= 1
    for inputs, targets, mask in sequences(batch):
        assert not inputs[20:].any()
        assert mask.nonzero().flatten().tolist() == list(range(20, 36))
        shown = [(float(row[8]), row[:8].tolist()) for row in inputs[:20]]
        expected = [vector for _, vector in sorted(shown, key=lambda pair: -pair[0])][:16]
        assert targets[20:].tolist() == expected


class TestScores:
    def make(self):
        batch = tasks.make("copy", width=2, max_length=4).sample(6, generator())
        return batch, torch.randn(batch.targets.shape, generator=generator(9))

    def test_loss_and_bits_by_hand(self):
        batch, logits = self.make()
        probability = logits.double().sigmoid()
        correct = torch.where(batch.targets > 0, probability, 1 - probability)
        nats = -correct.log() * batch.mask.unsqueeze(-1)
        assert tasks.loss(logits, batch).item() == pytest.approx(
            nats.sum().item() / (batch.mask.sum().item() * 2), rel=1e-6
        )
        torch.testing.assert_close(
            tasks.bits(logits, batch).double(),
            nats.sum(dim=(0, 2)) / math.log(2),
            rtol=1e-6,
            atol=0,
        )

    def test_bits_have_the_precision_of_the_logits(self):
        batch, logits = self.make()
        probability = logits.double().sigmoid()
        correct = torch.where(batch.targets > 0, probability, 1 - probability)
        expected = -(correct.log2() * batch.mask.unsqueeze(-1)).sum(dim=(0, 2))
        found = tasks.bits(logits.double(), batch.to("cpu", torch.float64))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)

    def test_only_answer_steps_count(self):
        batch, logits = self.make()
        elsewhere = torch.where(batch.mask.unsqueeze(-1), logits, logits + 5)
        for score in (tasks.loss, tasks.bits, tasks.wrong, tasks.wrong_bits):
            assert torch.equal(score(logits, batch), score(elsewhere, batch))

    def test_wrong(self):
        batch, _ = self.make()
        right = 8 * batch.targets - 4
        assert not tasks.wrong(right, batch).any()
        step = int(batch.mask[:, 2].nonzero()[0])
        for value in (-right[step, 2, 1], torch.nan):
            one = right.clone()
            one[step, 2, 1] = value
            assert tasks.wrong(one, batch).tolist() == [b == 2 for b in range(6)]
            assert tasks.wrong_bits(one, batch).nonzero().tolist() == [[step, 2, 1]]

    def test_shapes_are_checked(self):
        batch, logits = self.make()
        for score in (tasks.loss, tasks.bits, tasks.wrong, tasks.wrong_bits):
            with pytest.raises(
                ValueError, match="logits must have the shape of the batch's targets"
            ):
                score(logits[:-1], batch)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("copy", {"width": 0}, "copy: width must be at least 1, got width=0"),
        ("copy", {"min_length": 5, "max_length": 4}, "1 <= min_length <= max_length is needed"),
        ("copy", {"height": 3}, "copy has no parameter height; it has width, min_length"),
        ("repeat_copy", {"min_repeats": 0}, "1 <= min_repeats <= max_repeats is needed"),
        ("repeat_copy", {"normalise_high": 1}, "1 <= normalise_low < normalise_high is needed"),
        ("associative_recall", {"min_items": 1}, "2 <= min_items <= max_items is needed"),
        ("ngrams", {"length": 5}, "length must be greater than context"),
        ("ngrams", {"context": 0}, "context must be in 1 ... 16"),
        ("priority_sort", {"num_answers": 21}, "1 <= num_answers <= num_items is needed"),
        ("sorting", {}, "task must be one of copy, repeat_copy, .*, got 'sorting'"),
    ],
)
def test_bad_parameters_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(name, **parameters)
