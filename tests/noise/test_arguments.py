"""What a noise, a law or a schedule is made of is refused in a sentence where it can't be."""

import math

import pytest
import torch

import dither
from dither import schedule
from dither.noise import Additive, Multiplicative, Node, Weight, dropout
from dither.noise.noises import at

BAD = {
    "negative σ": (lambda: Additive(-0.1), "σ of Additive .*-0.1"),
    "nan σ": (lambda: Weight(math.nan), "σ of Weight .*nan"),
    "word σ": (lambda: Node("0.1"), "σ of Node .*'0.1'"),
    "bool σ": (lambda: Additive(True), "σ of Additive must be a number"),
    "scheduled σ": (lambda: at(Additive(lambda _: -1.0), 3), "σ of Additive .*-1.0"),
    "tensor σ": (lambda: Additive(torch.tensor(-1.0)), "of Additive .*≥ 0: got tensor"),
    "nan tensor σ": (lambda: Weight(torch.tensor(math.nan)), "σ of Weight must be finite and ≥ 0"),
    "two σ": (lambda: Additive(torch.tensor([0.1, 0.2])), r"one number: got \[2\]"),
    "law class": (lambda: Multiplicative(law=dropout), "law of Multiplicative .*Dropout: add"),
    "law word": (lambda: Additive(0.1, law="gaussian"), "law of Additive .*got 'gaussian'"),
    "dropout": (lambda: dropout(1.0), r"p of dropout .*\[0, 1\): got 1.0"),
    "nodes": (lambda: Node(1.0, nodes=0), "Node: nodes is a whole number ≥ 1: got 0"),
    "std": (lambda: Node(1.0, std=-1.0), "std of Node's vectors .*≥ 0: got -1.0"),
    "scheduled None": (lambda: at(Additive(lambda _: None), 3), "at step 3 must be a number.*None"),
    "start": (lambda: schedule.Linear(None, 1.0, 10), "Linear: start is a σ.*got None"),
    "end": (lambda: schedule.Cosine(0.0, -1.0, 10), "Cosine: end is a σ.*got -1.0"),
    "constant": (lambda: schedule.Constant("x"), "Constant: sigma is a σ.*got 'x'"),
    "share": (lambda: schedule.Balanced(float("inf")), "Balanced: ratio .*got inf"),
    "steps": (lambda: schedule.Linear(0.1, 0.2, 0), "Linear.*steps is a whole number ≥ 1: got 0"),
    "half steps": (
        lambda: schedule.Cosine(0.1, 0.2, 1.5),
        "Cosine.*steps is a whole number ≥ 1: got 1.5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_noise_that_cannot_be_is_a_sentence(name):
    call, sentence = BAD[name]
    with pytest.raises(dither.DitherError, match=sentence):
        call()
