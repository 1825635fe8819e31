"""Batches: what is in them, in which order, and in how many shapes."""

import numpy as np
import pytest

from eqxbert.text.tasks.features import Features, TrainBatches


def features(lengths, *, max_length: int = 41, choices: int | None = None) -> Features:
    """Rows of these lengths, in which each token says whose it is."""
    rows = [np.full(length, 100 + i, np.int32) for i, length in enumerate(lengths)]
    types = [np.arange(length, dtype=np.int32) % 2 for length in lengths]
    number = len(lengths) // (choices or 1)
    labels = {
        "labels": [row + 100 for row in rows],
        "start_positions": np.arange(number, dtype=np.int32),
        "numbers": np.stack([np.arange(number), -np.arange(number)], axis=-1).astype(np.float32),
    }
    if choices:
        del labels["labels"]
    return Features(rows, types, labels, max_length, pad_id=7, choices=choices)


def random_features(number: int = 101, seed: int = 0) -> Features:
    return features(np.random.default_rng(seed).integers(3, 42, number).tolist())


def test_a_batch_holds_the_rows_and_their_labels():
    batch = features([3, 5, 9]).batch(np.array([2, 0]))
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "input_ids": ((2, 12), "int32"),
        "attention_mask": ((2, 12), "int32"),
        "token_type_ids": ((2, 12), "int32"),
        "labels": ((2, 12), "int32"),
        "start_positions": ((2,), "int32"),
        "numbers": ((2, 2), "float32"),
    }
    assert batch["input_ids"].tolist() == [[102] * 9 + [7] * 3, [100] * 3 + [7] * 9]
    assert batch["attention_mask"].tolist() == [[1] * 9 + [0] * 3, [1] * 3 + [0] * 9]
    assert batch["token_type_ids"].tolist() == [
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0],
        [0, 1, 0] + [0] * 9,
    ]
    assert batch["labels"].tolist() == [[202] * 9 + [-100] * 3, [200] * 3 + [-100] * 9]
    assert batch["start_positions"].tolist() == [2, 0]
    assert batch["numbers"].tolist() == [[2, -2], [0, 0]]


def test_choices_are_an_axis():
    rows = features([3, 5, 9, 4, 2, 2], choices=2)
    assert len(rows) == 3
    assert rows.lengths.tolist() == [5, 9, 2]
    batch = rows.batch(np.array([1, 2]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 12)
    assert batch["input_ids"][:, :, 0].tolist() == [[102, 103], [104, 105]]
    assert batch["attention_mask"].sum(axis=-1).tolist() == [[9, 4], [2, 2]]
    assert batch["start_positions"].tolist() == [1, 2]
    inputs = rows.inputs([2], rows=2, seq=2)
    assert inputs["input_ids"].tolist() == [[[104, 104], [105, 105]], [[7, 7], [7, 7]]]
    assert "start_positions" not in inputs


def test_rows_are_filled_up_with_empty_ones():
    inputs = features([3, 5]).inputs([1], rows=3, seq=6)
    assert inputs["input_ids"].tolist() == [[101] * 5 + [7], [7] * 6, [7] * 6]
    assert inputs["attention_mask"].sum(axis=-1).tolist() == [5, 0, 0]


def test_batches_are_padded_to_few_lengths_none_above_the_limit():
    batches = TrainBatches(random_features(), batch_size=4, seed=0)
    shapes = {batches(step)["input_ids"].shape for step in range(200)}
    assert shapes <= {(4, seq) for seq in (16, 20, 24, 32, 41)}
    for step in range(30):
        seq = batches(step)["input_ids"].shape[1]
        assert seq <= 1.5 * batches.features.lengths[batches.indices(step)].max()


@pytest.mark.parametrize("group_by_length", [False, True])
class TestOrder:
    def test_a_batch_is_a_function_of_the_step(self, group_by_length):
        rows = random_features()
        first = TrainBatches(rows, batch_size=4, seed=3, group_by_length=group_by_length)
        second = TrainBatches(rows, batch_size=4, seed=3, group_by_length=group_by_length)
        in_order = [first(step) for step in range(60)]
        for step in (59, 0, 30, 30, 7):
            again = second(step)
            assert again.keys() == in_order[step].keys()
            for name, values in again.items():
                np.testing.assert_array_equal(values, in_order[step][name])

    @pytest.mark.parametrize(("number", "batch_size"), [(100, 4), (101, 4), (3, 5), (450, 1)])
    def test_each_row_is_seen_once_an_epoch(self, number, batch_size, group_by_length):
        rows = random_features(number)
        batches = TrainBatches(rows, batch_size=batch_size, seed=0, group_by_length=group_by_length)
        assert len(batches) == -(-number // batch_size)
        group = min(50, len(batches)) if group_by_length else 1
        steps = 4 * group * number  # a number of whole epochs, and of whole groups
        steps -= steps % group
        seen = np.concatenate([batches.indices(step) for step in range(min(steps, 2000))])
        counts = np.bincount(seen, minlength=number)
        # Where sorting reaches into the next epoch, one of its rows may come before one of this.
        assert counts.max() - counts.min() <= (2 if group_by_length else 1)
        assert all(len(batches.indices(step)) == batch_size for step in range(10))

    def test_other_seeds_and_other_epochs_have_other_orders(self, group_by_length):
        rows = random_features(200)

        def order(seed: int, epoch: int) -> list[int]:
            batches = TrainBatches(rows, batch_size=4, seed=seed, group_by_length=group_by_length)
            steps = range(epoch * len(batches), (epoch + 1) * len(batches))
            return np.concatenate([batches.indices(step) for step in steps]).tolist()

        orders = [order(0, 0), order(0, 1), order(1, 0)]
        assert all(sorted(each) == list(range(200)) for each in orders)
        assert len({tuple(each) for each in orders}) == 3


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("group_by_length", [False, True])
def test_the_parts_of_all_hosts_are_the_batch(hosts, group_by_length):
    """Padded to one length, though the longest row is one host's."""
    options = {"batch_size": 8, "seed": 3, "group_by_length": group_by_length}
    whole = TrainBatches(random_features(), **options)
    parts = [
        TrainBatches(random_features(), **options, host=host, hosts=hosts) for host in range(hosts)
    ]
    for step in (0, 1, 17):
        batches = [part(step) for part in parts]
        for name, values in whole(step).items():
            joined = np.concatenate([batch[name] for batch in batches])
            np.testing.assert_array_equal(joined, values)
            assert len(batches[0][name]) == 8 // hosts


def test_grouping_by_length_saves_padding():
    rows = random_features(1000)

    def computed(group_by_length: bool) -> int:
        batches = TrainBatches(rows, batch_size=8, seed=0, group_by_length=group_by_length)
        return sum(batches(step)["input_ids"].size for step in range(len(batches)))

    tokens = rows.lengths.sum()
    assert computed(True) < 1.2 * tokens < 1.6 * tokens < computed(False)


def test_groups_do_not_begin_with_the_short_ones():
    batches = TrainBatches(random_features(1000), batch_size=8, seed=0, group_by_length=True)
    lengths = [batches.features.lengths[batches.indices(step)].max() for step in range(50)]
    assert sorted(lengths) != lengths
    assert abs(np.corrcoef(lengths, np.arange(50))[0, 1]) < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"hosts": 3}, "batch of 2 cannot be split evenly over 3 hosts"),
        ({"host": 2, "hosts": 2}, "host is 2, expected 0 to 1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TrainBatches(features([3]), **{"batch_size": 2, "seed": 0} | options)


def test_no_rows():
    with pytest.raises(ValueError, match="There are no examples"):
        TrainBatches(features([]), batch_size=2, seed=0)
    assert features([]).lengths.tolist() == []
