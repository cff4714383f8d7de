"""`inject`: randomness, clocks, ways of drawing, switches."""

import collections
import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from nets import ACTIVATIONS, NOISES, gradients, mlp, plain
from torch import nn

import dither

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
every_noise = pytest.mark.parametrize("name", NOISES)
DRAWS = ["each", "all", "cycle", "random"]


def deltas(noise, steps):
    """δ of every parameter by step: [{name: tensor}]; 0 where a step leaves one alone."""
    found = []
    for t in range(1, steps + 1):
        d = {n: noise.displacement(s, t) for n, s in noise.sites.items()}
        shape = {n: s.parameter for n, s in noise.sites.items()}
        found.append(
            {n: torch.zeros_like(shape[n]) if v is None else v.detach() for n, v in d.items()}
        )
    return found


# ----------------------------------------------------------------------------------- randomness


@every_noise
def test_draws_are_a_function_of_seed_and_step(name):
    def run(seed, steps=3):
        model = plain()
        model.load_state_dict(start)
        dither.inject(model, NOISES[name](), seed=seed)
        return torch.stack([model(X) for _ in range(steps)])

    start = plain().state_dict()
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert len({tuple(z.flatten().tolist()) for z in run(0)}) == 3


@every_noise
def test_manual_seed_governs_where_no_seed_is_given(name):
    def run():
        torch.manual_seed(7)
        model = plain()
        dither.inject(model, NOISES[name]())
        torch.randn(3)  # what the program draws meanwhile plays no part
        return model(X)

    assert torch.equal(run(), run())


def test_training_draws_nothing_from_the_default_generator():
    model = plain()
    dither.inject(model, {"0": dither.Additive(0.1), "2": dither.Node(1.0)}, seed=0)
    dither.inject(model, dither.Weight(0.1), seed=0)
    before = torch.get_rng_state()
    model(X).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_adding_a_site_leaves_the_draws_of_the_others_alone(name):
    def at_last(patterns):
        model, seen = plain(), []
        model[4].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        for m in (model[0], model[2]):
            nn.init.zeros_(m.weight)  # so that the earlier noise does not reach the last layer
        dither.inject(model, {p: NOISES[name]() for p in patterns}, seed=0)
        model[4].bias.data.zero_()
        model[4].weight.data.fill_(0.3)
        model[2].bias.data.fill_(1.0)
        return [model(X) for _ in range(2)]

    few, many = at_last(["4:in"]), at_last(["0:in", "2:in", "4:in"])
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b)


def test_adding_a_weight_site_leaves_the_others_alone():
    few = deltas(dither.inject(plain(), {"0.weight": dither.Weight(0.1)}, seed=0), 2)
    many = deltas(dither.inject(plain(), dither.Weight(0.1), seed=0), 2)
    assert torch.equal(few[1]["0.weight"], many[1]["0.weight"])
    assert not torch.equal(many[1]["0.weight"], many[0]["0.weight"])


def test_calls_of_one_site_in_a_step_draw_afresh():
    layer = nn.Identity()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return torch.stack([self.layer(x), self.layer(x)])

    model = Twice()
    dither.inject(model, {"layer:out": dither.Additive(1.0)}, seed=0)
    a, b = model(X)
    assert not torch.equal(a, b)


# ------------------------------------------------------------------------------------------ draw


@pytest.mark.parametrize("by", ["tensor", "layer"])
def test_a_cycle_spends_as_much_as_all(by):
    """E‖δ‖² over a cycle is σ²|θ|/M; two-point noise makes it exact."""
    sizes = {n: p.numel() for n, p in plain().named_parameters()}
    m = len(sizes) if by == "tensor" else 3
    for draw in ("all", "cycle"):
        noise = dither.inject(
            plain(), dither.Weight(0.1, dither.two_point), seed=0, draw=draw, by=by
        )
        for name, size in sizes.items():
            spent = sum(d[name].square().sum() for d in deltas(noise, 2 * m)) / (2 * m)
            torch.testing.assert_close(spent, torch.tensor(0.01 * size / m))


@pytest.mark.parametrize("by", ["tensor", "layer"])
def test_a_cycle_visits_each_once(by):
    noise = dither.inject(plain(), dither.Weight(0.1), seed=0, draw="cycle", by=by)
    m = 6 if by == "tensor" else 3
    for start in (0, m):
        visited = [[n for n, v in d.items() if v.any()] for d in deltas(noise, start + m)[start:]]
        assert sorted(n for v in visited for n in v) == sorted(noise.sites)
        assert all(len(v) == (1 if by == "tensor" else 2) for v in visited)
        assert len({n.split(".")[0] for v in visited[:1] for n in v}) == 1


def test_random_visits_all_alike():
    """N = 1200 steps, M = 6: the χ² of the visits, alarm one in a million (χ²₅ = 35.9)."""
    noise = dither.inject(plain(), dither.Weight(0.1), seed=0, draw="random")
    count = collections.Counter()
    for t in range(1, 1201):
        chosen = [n for n, s in noise.sites.items() if noise.scale(s, t)]
        assert len(chosen) == 1
        count[chosen[0]] += 1
    assert sum((count[n] - 200) ** 2 / 200 for n in noise.sites) < 35.9


def test_each_gives_every_tensor_its_sigma():
    noise = dither.inject(plain(), dither.Weight(0.1, dither.two_point), seed=0)
    for d in deltas(noise, 2):
        for v in d.values():
            torch.testing.assert_close(v.abs(), torch.full_like(v, 0.1))


@pytest.mark.parametrize("draw", DRAWS)
def test_share_is_the_mean_of_scale_squared(draw):
    noise = dither.inject(plain(), dither.Weight(0.1), seed=0, draw=draw)
    for site in noise.sites.values():
        mean = sum(noise.scale(site, t) ** 2 for t in range(1, 601)) / 600
        assert mean == pytest.approx(noise.share(site), abs=0 if draw == "each" else 0.08)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(draw="some"), "draw is one of .*: got 'some'"),
        (dict(by="row"), "by is one of .*: got 'row'"),
        (dict(when="never"), "when is one of .*: got 'never'"),
    ],
)
def test_unknown_words_are_refused(options, message):
    with pytest.raises(dither.DitherError, match=message):
        dither.inject(plain(), dither.Weight(0.1), **options)


# ---------------------------------------------------------------------------- the clock, and hold


@every_noise
@pytest.mark.parametrize("draw", DRAWS)
def test_a_resumed_run_equals_the_uninterrupted_one(name, draw):
    if NOISES[name]().side != "parameter" and draw != "each":
        return  # refused: there is nothing to take turns

    def start():
        torch.manual_seed(0)
        model = mlp()
        noise = dither.inject(model, NOISES[name](), draw=draw)
        optimiser = torch.optim.Adam([*model.parameters(), *noise.parameters()], lr=0.01)
        return model, noise, optimiser

    def go(parts, steps):
        model, noise, optimiser = parts
        for _ in range(steps):
            optimiser.zero_grad()
            with noise.hold():
                for half in X.chunk(2):
                    model(half).square().sum().backward()
            optimiser.step()

    whole, half = start(), start()
    go(whole, 6)
    go(half, 3)
    buffer = io.BytesIO()
    torch.save([p.state_dict() for p in half], buffer)
    buffer.seek(0)
    resumed = start()
    torch.manual_seed(99)
    resumed[1].draws = replace(resumed[1].draws, seeds=(123,))  # the saved one must win
    for part, state in zip(resumed, torch.load(buffer), strict=True):
        part.load_state_dict(state)
    go(resumed, 3)
    for a, b in zip(whole[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole[1].parameters(), resumed[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_parameters_are_exactly_the_nodes():
    model = plain()
    noise = dither.inject(
        model, {"0": dither.Node(1.0), "2": dither.Additive(0.1), "4": dither.Node(1.0)}
    )
    assert [tuple(p.shape) for p in noise.parameters()] == [(1, 8), (1, 3)]
    assert not {id(p) for p in noise.parameters()} & {id(p) for p in model.parameters()}
    assert not any("node" in k for k in model.state_dict())
    assert len(list(dither.inject(model, dither.Weight(0.1)).parameters())) == 0
    model(X).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in noise.parameters())


def test_hold_keeps_the_weight_draw_and_refreshes_the_activations():
    model = plain()
    weights = dither.inject(model, dither.Weight(0.1), seed=0)
    with weights.hold():
        a, b = model(X), model(X)
    c = model(X)
    assert torch.equal(a, b)
    assert not torch.equal(b, c)
    assert weights.step == 2
    weights.remove()
    activations = dither.inject(model, dither.Additive(0.1), seed=0)
    with activations.hold(), activations.hold():
        a, b = model(X), model(X)
    c = model(X)
    assert len({tuple(z.flatten().tolist()) for z in (a, b, c)}) == 3
    assert activations.step == 2


@pytest.mark.parametrize("draw", DRAWS)
def test_a_held_accumulation_is_the_full_batch_gradient(draw):
    model = plain(dtype=torch.float64)
    noise = dither.inject(model, dither.Weight(0.3), seed=0, draw=draw)
    x = X.double()
    for _ in range(2):
        model.zero_grad()
        before = noise.state_dict()
        model(x).square().sum().backward()
        full = gradients(model)
        noise.load_state_dict(before)
        model.zero_grad()
        with noise.hold():
            for part in x.chunk(3):
                model(part).square().sum().backward()
        for a, b in zip(gradients(model), full, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_noise
def test_forwards_in_eval_or_paused_do_not_move_the_clock(name):
    one, two = plain(), plain()
    two.load_state_dict(one.state_dict())
    clean = one(X)
    a, b = (dither.inject(m, NOISES[name](), seed=0) for m in (one, two))
    one(X)
    two(X)
    two.eval()
    assert torch.equal(two(X), clean)
    two.train()
    b.pause()
    assert torch.equal(two(X), clean)
    b.resume()
    assert torch.equal(one(X), two(X))
    assert a.step == b.step == 2


@every_noise
def test_when_always(name):
    model = plain().eval()
    clean = model(X)
    with dither.inject(model, NOISES[name](), seed=0, when="always"):
        a, b = model(X), model(X)
    assert not torch.equal(a, clean)
    assert not torch.equal(a, b)
    assert torch.equal(model(X), clean)


@every_noise
def test_a_part_in_eval_gets_no_noise_and_the_rest_does(name):
    model = plain()
    clean = model(X)
    with dither.inject(model, NOISES[name](), seed=0):
        for m in model.children():
            m.eval()
        assert torch.equal(model(X), clean)
        model.eval()
        model[2].train()  # a head trained on a frozen trunk
        a, b = model(X), model(X)
    assert not torch.equal(a, clean)
    assert not torch.equal(a, b)


# ------------------------------------------------------------------------- two on one site


@pytest.mark.filterwarnings("ignore:inject. .* already, from an earlier")
@pytest.mark.parametrize("site", ["input", "0.weight"])
def test_two_injections_with_one_seed_draw_independently(site):
    """Var(ε + ε′) is 2 (4 if they were one draw): N = 40 000, alarm one in a million."""
    make = dither.Additive if site == "input" else dither.Weight
    model = nn.Sequential(nn.Linear(200, 200, bias=False)).double()
    x = torch.eye(200, dtype=torch.float64)
    if site == "input":
        model[0].weight.data = x.clone()
    clean = model(x).detach()
    alone = dither.inject(model, {site: make(1.0)}, seed=0)
    first = model(x).detach()
    alone.remove()
    for _ in range(2):
        dither.inject(model, {site: make(1.0)}, seed=0)
    delta = (model(x) - clean).detach()
    n = delta.numel()
    assert abs(delta.var() - 2) < 4.9 * 2 * (2 / n) ** 0.5
    correlation = torch.corrcoef(torch.stack([delta.flatten(), (first - clean).flatten()]))[0, 1]
    assert abs(correlation - 0.5**0.5) < 0.03  # one of the two is what it is alone


@pytest.mark.filterwarnings("ignore:inject. .* already, from an earlier")
def test_the_number_of_an_injection_is_its_own_and_kept():
    model = plain()
    a, b = (dither.inject(model, dither.Node(1.0), seed=0) for _ in range(2))
    assert not torch.equal(*(n.nodes["0:out"] for n in (a, b)))
    assert dither.inject(model, dither.Node(1.0), seed=1).draws.ordinals == (0,)
    a.remove()  # leaves b's draws alone, and its own number free
    assert b.draws.ordinals == (1,)
    assert dither.inject(model, dither.Node(1.0), seed=0).draws.ordinals == (0,)
    resumed = dither.inject(plain(), dither.Node(1.0), seed=0)
    resumed.load_state_dict(b.state_dict())
    assert resumed.draws.keys("x") == b.draws.keys("x") != a.draws.keys("x")


# ------------------------------------------------------------------------------------ copies


class Holder(nn.Module):
    """A model that keeps its noise as an attribute."""

    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_model_that_holds_its_noise_can_be_copied(how):
    model = Holder()
    what = {"net.0": dither.Node(1.0), "net.2": dither.Additive(1.0)}
    model.noise = dither.inject(model, what, seed=0)
    model.weights = dither.inject(model, {"net.*": dither.Weight(0.1)}, seed=0)
    model(X)
    copied = how(model)
    assert copied.noise.model is copied
    assert copied.noise.removed
    assert torch.equal(copied.noise.nodes["net/0:out"], model.noise.nodes["net/0:out"])
    assert torch.equal(copied(X), copied(X))
    assert copied.noise.step == 1
    copied.noise.remove()
    again = dither.inject(copied, what, seed=0)
    again.load_state_dict(model.noise.state_dict())
    assert not torch.equal(copied(X), copied(X))
    assert not torch.equal(model(X), model(X))
