"""The same noise injected twice, as by a notebook's cell that ran twice."""

import pytest
import torch
from nets import NOISES, hooks, plain

import dither
from dither import measures

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NOISES)
def test_an_equal_noise_at_a_site_is_told_and_the_advice_undoes_it(name):
    model = plain()
    dither.inject(model, NOISES[name](), seed=0)
    alone = model(X)
    at = "0.weight" if name == "weight" else "0:out" if name == "node" else "0:in"
    more = 5 if name == "weight" else 2
    with pytest.warns(UserWarning, match=rf"{at}' and {more} more already, .*among noise\.beside"):
        noise = dither.inject(model, NOISES[name](), seed=0)
    assert len(noise.beside) == 1
    for n in noise.beside:
        n.remove()
    noise.remove()
    assert hooks(model) == 0
    noise = dither.inject(model, NOISES[name](), seed=0)  # in silence: a warning is an error here
    assert torch.equal(model(X), alone)


def test_different_noises_and_those_that_never_act_together_are_left_in_peace():
    model = plain()
    noises = [dither.Additive(0.1), dither.Additive(0.2), dither.Multiplicative(0.1)]
    noises += [dither.Additive(0.1, dither.uniform), dither.Weight(0.1), {"2": dither.Node(0.1)}]
    noises += [{"0:out": dither.Additive(0.1)}, dither.Additive(0.0), dither.Additive(0.0)]
    first, *_ = [dither.inject(model, what, seed=0) for what in noises]
    dither.inject(model, dither.Weight(0.1), draw="cycle", seed=0)
    dither.inject(model, dither.Weight(0.1), draw="cycle", by="layer", seed=0)
    first.pause()
    again = dither.inject(model, dither.Additive(0.1), seed=0)
    again.remove()
    first.resume()
    dither.inject(model.eval(), dither.Additive(0.1), when="always")
    with pytest.warns(UserWarning, match="already"):
        dither.inject(model.train(), dither.Additive(0.2), when="always")


def test_measures_that_inject_do_not_warn_of_the_users_noise():
    model, x, y = plain(), X, torch.arange(len(X)) % 3
    dither.inject(model, dither.Weight(1.0), seed=0)
    dither.inject(model, {"0": dither.Node(1.0)}, seed=0)
    dither.inject(model, {"0:in": dither.Additive(1.0)}, seed=0)
    measures.trace(model, "cross_entropy", [(x, y)], of="gauss_newton")
    measures.explosion.explosion(model, x, y, sigma=0.01, draws=4)
    measures.phases.predict(model, x, y, lr=0.1)
    measures.eigenvalues(model, "cross_entropy", (x, y), at="0:in")
