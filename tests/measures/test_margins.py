"""Margins against affine nets, a slow loop in float64, and DeepFool's own bounds."""

import pytest
import torch
from nets import Snapshot, hooks, plain
from torch import nn

import dither
from dither.errors import DitherError
from dither.measures import margins


def net() -> nn.Sequential:
    return plain(dtype=torch.float64)


def examples(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def test_output_margins_are_the_gap_to_the_best_other():
    z = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]])
    assert margins.outputs(z, torch.tensor([0, 2])).tolist() == [0.5, -3.0]


def test_input_margins_are_what_a_loop_says():
    model, (x, y) = net(), examples()
    found = margins.inputs(model, x, y)
    for i, (a, c) in enumerate(zip(x, y.tolist(), strict=True)):
        J, f = torch.autograd.functional.jacobian(model, a), model(a)
        each = {j: (f[c] - f[j]) / (J[c] - J[j]).norm() for j in range(3) if j != c}
        rival = min(each, key=each.get)
        torch.testing.assert_close(found.value[i], each[rival], rtol=1e-12, atol=0)
        assert found.rival[i] == rival


def test_of_an_affine_net_it_is_the_distance():
    """One step along the gradient of that margin lands on the boundary, and no shorter one does."""
    model, (x, y) = nn.Linear(4, 3).double(), examples()
    found = margins.inputs(model, x, y)
    for a, c, value, rival in zip(x, y, found.value, found.rival, strict=True):
        normal = model.weight[c] - model.weight[rival]
        on = model(a - value * normal / normal.norm())
        torch.testing.assert_close(on[c], on[rival])
    right = found.value > 0
    assert 0 < right.sum() < len(x)
    distance = margins.boundary(model, x, y)
    torch.testing.assert_close(distance[right], found.value[right], rtol=1e-6, atol=0)
    assert distance[~right].eq(0).all()
    assert ((model(x).argmax(1) == y) == right).all()


def test_the_boundary_is_where_the_answer_turns():
    model, (x, _) = net(), examples(40)
    y = model(x).argmax(1)
    distance = margins.boundary(model, x, y)
    assert distance.isfinite().all()
    # no point nearer than the true distance turns: that distance is at least m/(√2 Lipschitz)
    lipschitz = torch.stack([torch.linalg.matrix_norm(m.weight, 2) for m in model[::2]]).prod()
    least = margins.outputs(model(x), y) / (2**0.5 * lipschitz)
    assert (distance >= least).all()
    first = margins.inputs(model, x, y).value
    near = first < first.quantile(0.25)  # where first order is nearly all there is
    torch.testing.assert_close(distance[near], first[near], rtol=0.1, atol=0)
    assert margins.boundary(model, x, y, steps=0).isinf().all()


def test_R_on_the_input_is_a_sum_over_pairs_of_margins():
    """R = ½σ² E Σ_{i<j} p_i p_j (f_i − f_j)²/γ_ij²: docs/math.md, section 12."""
    model, (x, y) = net(), examples()
    with dither.inject(model, {"input": dither.Additive(0.3)}) as noise, torch.no_grad():
        R = dither.explicit(noise, x, y).R
    total = torch.zeros((), dtype=torch.float64)
    for a in x:
        J, p = torch.autograd.functional.jacobian(model, a), model(a).softmax(0)
        pairs = [(i, j) for i in range(3) for j in range(i)]
        total += sum(p[i] * p[j] * (J[i] - J[j]).square().sum() for i, j in pairs)
    torch.testing.assert_close(R, 0.09 / 2 * total / len(x), rtol=1e-10, atol=0)


class Two(nn.Module):
    def forward(self, x):
        return torch.cat([x.clamp(max=0), torch.ones_like(x)], 1)


def test_without_a_gradient_the_boundary_is_nowhere():
    x = torch.tensor([[1.0]])
    assert margins.inputs(Two(), x, torch.tensor([1])).value.item() == torch.inf
    assert margins.inputs(Two(), x, torch.tensor([0])).value.item() == -torch.inf


def test_batches_larger_than_a_chunk_are_the_same(monkeypatch):
    model, (x, y) = net(), examples()
    whole, far = margins.inputs(model, x, y).value, margins.boundary(model, x, y)
    monkeypatch.setattr(margins, "CHUNK", 5)
    torch.testing.assert_close(margins.inputs(model, x, y).value, whole)
    torch.testing.assert_close(margins.boundary(model, x, y), far)


def test_looking_changes_nothing_and_noise_is_off():
    model, (x, y) = net().train(), examples()
    before, clean = Snapshot.of(model), margins.inputs(model, x, y).value
    state = torch.random.get_rng_state()
    with dither.inject(model, dither.Additive(5.0), when="always", seed=0) as noise:
        torch.testing.assert_close(margins.inputs(model, x, y).value, clean, rtol=0, atol=0)
        margins.boundary(model, x, y)
        assert noise.step == 0
        assert not noise.paused
    before.assert_same(model)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert hooks(model) == 0
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (torch.ones(2, 4, dtype=torch.long), torch.zeros(2).long(), "must be a tensor of floats"),
        (torch.ones(2, 4).double(), torch.zeros(3).long(), "classes of the 2 examples"),
        (torch.ones(2, 4).double(), torch.full((2,), 3), r"margins: .*from 0 to 2"),
        (torch.ones(2, 4).double(), torch.zeros(2), r"margins: .*from 0 to 2"),
        (torch.ones(2, 4).double(), torch.zeros(2, 1).long(), r"\[2\]: got \[2, 1\]"),
        (torch.ones(2, 4).double(), torch.zeros(2).bool(), "margins: .*got torch.bool"),
        (torch.ones(0, 4).double(), torch.zeros(0).long(), "one example or more"),
    ],
)
def test_bad_input_is_a_sentence(x, y, match):
    for measure in (margins.inputs, margins.boundary):
        with pytest.raises(DitherError, match=match):
            measure(net(), x, y)


def test_output_margins_of_nothing_or_of_yes_and_no_are_sentences():
    with pytest.raises(DitherError, match="one example or more"):
        margins.outputs(torch.zeros(0, 3), torch.zeros(0).long())
    with pytest.raises(DitherError, match=r"torch\.bool"):
        margins.outputs(torch.zeros(2, 2), torch.zeros(2).bool())


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_short_whole_numbers_are_class_numbers(kind):
    model, (x, y) = net(), examples()
    for measure in (margins.inputs, margins.boundary):
        for a, b in zip(measure(model, x, y.to(kind)), measure(model, x, y), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    found = margins.outputs(model(x), y.to(kind))
    torch.testing.assert_close(found, margins.outputs(model(x), y), rtol=0, atol=0)


def test_it_works_in_inference_mode():
    model, (x, y) = net(), examples()
    outside = margins.inputs(model, x, y).value, margins.boundary(model, x, y)
    with torch.inference_mode():
        for a, b in ((x, y), (x.clone(), y.clone())):
            inside = margins.inputs(model, a, b).value, margins.boundary(model, a, b)
            torch.testing.assert_close(inside, outside, rtol=0, atol=0)
        made = net()
    with pytest.raises(DitherError, match=r"made under torch.inference_mode"):
        margins.inputs(made, x, y)


def test_outputs_in_float64_of_inputs_in_float32():
    class Up(nn.Linear):
        def forward(self, x):
            return super().forward(x).double()

    model, (x, y) = Up(4, 3), examples()
    found = margins.inputs(model, x.float(), y).value
    assert found.dtype == torch.float64
    plain = margins.inputs(nn.Linear.double(model), x, y).value
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    right = found > 0
    distance = margins.boundary(model.float(), x.float(), y)
    torch.testing.assert_close(distance[right].double(), found[right], rtol=1e-3, atol=1e-5)


def test_what_is_no_number_has_no_margin():
    model, (x, y) = net(), examples()
    clean = margins.inputs(model, x, y).value, margins.boundary(model, x, y)
    x[3, 1] = torch.nan
    found = margins.inputs(model, x, y).value, margins.boundary(model, x, y)
    for now, before in zip(found, clean, strict=True):
        assert now[3].isnan()
        rest = torch.arange(len(x)) != 3
        torch.testing.assert_close(now[rest], before[rest], rtol=1e-12, atol=0)
    assert margins.outputs(model(x), y).isnan().tolist() == (~rest).tolist()


@pytest.mark.parametrize(("slope", "dtype"), [(1e-25, torch.float32), (1e-200, torch.float64)])
def test_small_slopes_are_slopes(slope, dtype):
    """f = ± slope · x₀: the boundary is where x₀ = 0, at any slope."""

    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([slope * x[:, 0], -slope * x[:, 0]], 1)

    x, y = torch.tensor([[2.0, 0.0]], dtype=dtype), torch.tensor([0])
    assert margins.inputs(Flat(), x, y).value.item() == pytest.approx(2)
    assert margins.boundary(Flat(), x, y).item() == pytest.approx(2)


def test_outputs_that_are_cut_off_from_the_input_are_named():
    class Cut(nn.Linear):
        def forward(self, x):
            return x.detach()

    with pytest.raises(DitherError, match=r"margins: .*no gradient by x"):
        margins.inputs(Cut(4, 4), torch.ones(2, 4), torch.zeros(2).long())
