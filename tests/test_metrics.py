"""Sums on the device and the report on the host, against hand-computed cases and scikit-learn."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from jax_cifar.evaluation.metrics import add_sums, batch_metrics, mean_metrics, report

NAMES = tuple("abcdefgh")


def as_floats(sums):
    return {name: float(value) for name, value in sums.items()}


def random_case(images=300, classes=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1
    return logits, labels


def test_batch_sums_of_integer_labels():
    logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    sums = batch_metrics(logits, jnp.array([0, 2, 2]), jnp.array([0.5, 1.5, 3.0]))
    assert as_floats(sums) == {"loss": 5.0, "correct": 2.0, "count": 3.0}
    assert {value.dtype for value in sums.values()} == {jnp.dtype("float32")}


def test_soft_targets_count_by_the_share_of_the_predicted_class():
    logits = jnp.array([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    targets = jnp.array([[0.75, 0.25, 0.0], [0.6, 0.3, 0.1]])
    sums = batch_metrics(logits, targets, jnp.zeros(2))
    np.testing.assert_allclose(float(sums["correct"]), 0.75 + 0.3, rtol=1e-6)


def test_one_hot_targets_count_like_integers():
    logits, labels = random_case()
    losses = jnp.ones(len(labels))
    one_hot = jax.nn.one_hot(labels, 8)
    assert as_floats(batch_metrics(jnp.asarray(logits), jnp.asarray(labels), losses)) == as_floats(
        batch_metrics(jnp.asarray(logits), one_hot, losses)
    )


def test_of_equal_logits_the_first_class_is_predicted():
    sums = batch_metrics(jnp.zeros((2, 3)), jnp.array([0, 1]), jnp.zeros(2))
    assert float(sums["correct"]) == 1.0


def test_bfloat16_inputs_are_summed_in_float32():
    sums = batch_metrics(jnp.zeros((1000, 2), jnp.bfloat16), jnp.zeros(1000, int), jnp.ones(1000, jnp.bfloat16))
    assert as_floats(sums) == {"loss": 1000.0, "correct": 1000.0, "count": 1000.0}


def test_means_of_unequal_batches_are_means_over_images():
    losses = jnp.arange(10.0)
    logits = jnp.stack([losses, jnp.full(10, 6.5)], axis=1)
    parts = [
        batch_metrics(logits[start : start + 4], jnp.zeros(10, int)[start : start + 4], losses[start : start + 4])
        for start in (0, 4, 8)
    ]
    means = mean_metrics(add_sums(add_sums(*parts[:2]), parts[2]))
    assert means == pytest.approx({"loss": 4.5, "accuracy": 0.3})
    assert np.mean([mean_metrics(part)["loss"] for part in parts]) != pytest.approx(4.5)


def test_sums_of_other_names_are_not_added():
    with pytest.raises(ValueError, match="cannot be added"):
        add_sums({"loss": jnp.float32(1)}, {"count": jnp.float32(1)})


def test_report_of_a_case_computed_by_hand():
    log = np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.3, 0.2]], np.float32))
    result = report(log, np.array([0, 1, 1, 2]), ("cat", "dog", "emu"))
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(-math.log(0.7 * 0.3 * 0.5 * 0.2) / 4, rel=1e-6)
    np.testing.assert_array_equal(result.confusion, [[1, 0, 0], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(result.precision, [1 / 3, 1, 0])
    np.testing.assert_allclose(result.recall, [1, 1 / 2, 0])
    np.testing.assert_allclose(result.f1, [1 / 2, 2 / 3, 0])
    assert result.macro == pytest.approx({"precision": 4 / 9, "recall": 1 / 2, "f1": 7 / 18})
    assert (result.count, result.support.tolist(), result.top5) == (4, [1, 2, 1], 1.0)


def test_report_equals_scikit_learn():
    logits, labels = random_case()
    result, predicted = report(logits, labels, NAMES), logits.argmax(axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert result.loss == pytest.approx(sk.log_loss(labels, probabilities), rel=1e-6)
    assert result.accuracy == sk.accuracy_score(labels, predicted)
    assert result.top5 == sk.top_k_accuracy_score(labels, logits, k=5)
    assert result.macro["precision"] == sk.precision_score(labels, predicted, average="macro")
    assert result.macro["recall"] == sk.recall_score(labels, predicted, average="macro")
    assert result.macro["f1"] == sk.f1_score(labels, predicted, average="macro")
    np.testing.assert_array_equal(result.confusion, sk.confusion_matrix(labels, predicted))


def test_classes_that_are_neither_there_nor_predicted_count_for_nothing():
    logits, labels = random_case()
    some = labels < 2
    logits, labels = logits[some], labels[some]
    logits[:, 3:] = -9  # class 2 is predicted, others are not
    result, predicted = report(logits, labels, NAMES), logits.argmax(axis=1)
    assert set(predicted) == {0, 1, 2}
    options: dict[str, Any] = {"average": "macro", "zero_division": 0}
    for name, figure in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        assert result.macro[name] == figure(labels, predicted, **options)
    assert [line.count(" - ") > 0 for line in result.table().splitlines()[1:9]] == [False] * 3 + [True] * 5


def test_report_breaks_ties_in_favour_of_the_first_classes():
    labels = np.arange(8)
    result = report(np.zeros((8, 8), np.float32), labels, NAMES)
    assert (result.accuracy, result.top5) == (1 / 8, 5 / 8)
    np.testing.assert_array_equal(result.confusion[:, 0], np.ones(8))


def test_report_of_a_diverged_network_is_not_a_good_one():
    for value in (np.nan, np.inf):
        result = report(np.full((4, 3), value, np.float32), np.array([1, 2, 1, 2]), NAMES[:3])
        assert result.accuracy == 0.0
        assert math.isnan(result.loss)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["loss"] is None


def test_loss_of_large_logits_does_not_overflow():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    assert report(logits, np.array([0, 0]), NAMES[:2]).loss == 5e3


def test_report_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[4, 3\], labels and label_names ask for \[4, 2\]"):
        report(np.zeros((4, 3), np.float32), np.zeros(4, int), NAMES[:2])


def test_to_dict_is_plain_json_by_class_name():
    logits, labels = random_case()
    result = report(logits, labels, NAMES)
    values = json.loads(json.dumps(result.to_dict()))
    assert list(values["per_class"]) == list(NAMES)
    assert values["per_class"]["c"]["recall"] == result.recall[2]
    assert values["per_class"]["c"]["support"] == int((labels == 2).sum())
    assert values["confusion"] == result.confusion.tolist()


def test_table_shows_classes_macro_averages_and_figures():
    log = np.log(np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]], np.float32))
    assert report(log, np.array([0, 1, 1]), ("cat", "elephant")).table().splitlines() == [
        "class          precision  recall      F1   images",
        "cat                50.0%  100.0%   66.7%        1",
        "elephant          100.0%   50.0%   66.7%        2",
        "macro average      75.0%   75.0%   66.7%        3",
        "",
        "accuracy 66.67%   loss 0.4987   images 3",
    ]


def test_the_table_tells_the_top_five_of_more_than_five_classes():
    labels = np.array([0, 5])
    logits = np.array([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1]], np.float32)
    assert "accuracy 50.00%   top-5 50.00%   loss" in report(logits, labels, tuple("abcdef")).table()
    assert "top-5" not in report(logits[:1, :5], labels[:1], tuple("abcde")).table()
