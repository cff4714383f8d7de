"""Whether gradients tell what the sites do to the output: what is cut is found, what is not is let
pass.
"""

import itertools

import pytest
import torch
from torch import nn

import dither
from dither.regulariser import gradient_check
from dither.regulariser.gradient_check import check_gradients

B = 8
Y = torch.arange(B) % 3


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Cut(nn.Module):
    """Behind a, all of a way is cut, half of it, or none."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(3, 6), nn.Linear(6, 3), how

    def forward(self, x):
        h = self.a(x)
        match self.how:
            case "detached":
                h = h.detach()
            case "half detached":
                h = h + h.detach()
            case "gradients off behind it":
                with torch.no_grad():
                    return self.b(h)
            case "used twice, once with gradients off":
                with torch.no_grad():
                    again = self.a(x)
                h = h + again
            case "a gradient without its graph":
                with torch.enable_grad():
                    h = h if h.requires_grad else h.requires_grad_()
                    (h,) = torch.autograd.grad((h**3).sum(), h)
            case "straight through":
                h = h + ((4 * h).round() / 4 - h).detach()
            case "steps":
                h = (h > 0).to(h) * h
        return self.b(h)


CUTS = [
    "detached", "half detached", "gradients off behind it", "a gradient without its graph",
    "used twice, once with gradients off", "straight through",
]  # fmt: skip
ASKS = [{}, {"samples": 1}, {"curvature": "full"}]


@pytest.mark.parametrize("ask", ASKS, ids=str)
@pytest.mark.parametrize("how", CUTS)
def test_a_way_that_is_cut_behind_a_site_is_found(how, ask):
    x = randn(B, 3)
    for site in ({"a:out": dither.Additive(0.1)}, {"a.weight": dither.Weight(0.1)}):
        with (
            dither.inject(Cut(how).double(), site) as noise,
            pytest.raises(
                dither.DitherError,
                match=r"R can't be taken at '.*(its gradients say|differentiates|gradients off)",
            ),
        ):
            dither.explicit(noise, x, Y, **ask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", ["nowhere", "steps"])
def test_what_is_cut_nowhere_is_not_refused(how, dtype):
    """Kinks and jumps are no cuts, in a hundred nets."""
    for seed in range(100):
        torch.manual_seed(seed)
        model = nn.Sequential(Cut(how), nn.ReLU(), nn.Linear(3, 3)).to(dtype)
        what = {"0.a:out": dither.Additive(0.1), "0.*": dither.Weight(0.1)}
        with dither.inject(model, what) as noise, torch.no_grad():
            dither.explicit(noise, randn(B, 3).to(dtype), Y)


def test_blank_images_and_biases_of_0_lie_at_a_kink():
    """All blank positions of a map have one value, the bias."""
    for seed in range(60):
        torch.manual_seed(seed)
        conv = nn.Conv2d(1, 16, 3, padding=1)
        nn.init.zeros_(conv.bias)
        model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(784, 10))
        x = torch.rand(4, 1, 14, 14) * (torch.rand(4, 1, 14, 14) > 0.8)
        with dither.inject(model, {"0.*": dither.Weight(0.1), "0": dither.Additive(0.1)}) as noise:
            check_gradients(noise, x, unit=True, graph=0)


def test_a_turned_gradient_is_let_pass():
    """R is of squares: gradient reversal changes nothing."""

    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.view_as(h)

        @staticmethod
        def backward(ctx, g):
            return -g

    class Net(Cut):
        def forward(self, x):
            return self.b(Reversed.apply(self.a(x)))

    x, found = randn(B, 3), []
    for make in (Net, Cut):
        torch.manual_seed(0)
        with dither.inject(make("nowhere").double(), {"a.weight": dither.Weight(0.1)}) as noise:
            found.append(dither.explicit(noise, x, Y).R.item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 0.1), (torch.float32, 0.3)])
def test_a_small_share_that_is_cut_is_found(dtype, share):
    class Net(Cut):
        def forward(self, x):
            h = self.a(x)
            return self.b((1 - share) * h + share * h.detach())

    torch.manual_seed(0)
    with (
        dither.inject(Net("").to(dtype), {"a:out": dither.Additive(0.1)}) as noise,
        pytest.raises(dither.DitherError, match=r"'a:out': .*its gradients say"),
    ):
        dither.explicit(noise, randn(B, 3).to(dtype), Y)


def exploded(seed):
    """A net after eight steps at a rate of 100, and its inputs: most of its units are dead."""
    torch.manual_seed(seed)
    layers = [nn.Linear(i, o) for i, o in ((20, 16), (16, 16), (16, 16), (16, 10))]
    net = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
    x, y = torch.rand(32, 20), torch.randint(10, (32,))
    sgd = torch.optim.SGD(net.parameters(), 100, momentum=0.9)
    for _ in range(8):
        sgd.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        sgd.step()
    return net, x


def test_an_exploded_net_is_not_refused(monkeypatch):
    """Beside its sites a few dead units come to life: all that moves it lies close to a kink."""
    draws = itertools.count()
    monkeypatch.setattr(gradient_check.secrets, "randbits", lambda bits: next(draws))
    for seed in range(100):
        net, x = exploded(seed)
        with dither.inject(net, dither.Weight(0.1)) as noise:
            check_gradients(noise, x, unit=True, graph=0)


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_way_that_is_cut_before_a_head_of_zeros_is_found(dtype, share):
    """An output of 0 is not astray. In single precision rounding may hide a cut."""

    class Net(Cut):
        def forward(self, x):
            h = self.a(x)
            return self.b((1 - share) * h + share * h.detach())

    found = 0
    for seed in range(40):
        torch.manual_seed(seed)
        net = Net("")
        nn.init.zeros_(net.b.weight)
        nn.init.zeros_(net.b.bias)
        with dither.inject(net.to(dtype), dither.Weight(0.1)) as noise:
            try:
                check_gradients(noise, randn(B, 3).to(dtype), unit=True, graph=0)
            except dither.DitherError as error:
                found += "at 'a." in str(error)
    assert found >= (40 if dtype == torch.float64 else 32)


def test_cut_experts_are_found_though_a_displacement_chooses_others():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            h = self.first(x)
            choice, out = self.gate(h).argmax(1), torch.zeros_like(h)
            for k, expert in enumerate(self.experts):
                if (choice == k).any():
                    v = expert(h[choice == k])
                    out = out.index_put((choice == k,), v + v.detach())
            return self.head(out)

    found = 0
    for seed in range(40):
        torch.manual_seed(seed)
        with dither.inject(Experts(), {"experts.*:out": dither.Additive(0.1)}) as noise:
            try:
                check_gradients(noise, torch.randn(64, 4), unit=True, graph=0)
            except dither.DitherError:
                found += 1
    assert found >= 30


def test_a_site_must_fail_nine_times_where_the_net_is_astray(monkeypatch):
    """Of rounds of both kinds, three straight ones suffice."""
    for rounds, wanted in (("sss", 3), ("aaaaaaaaas", 9), ("aasass", 6), ("ssaaaaaaaaa", 9)):
        asked = iter(rounds)
        kinds = []

        def cut(reader, x, versions, names, asked=asked, kinds=kinds):
            kinds.append(next(asked))
            return names, kinds[-1] == "a"

        monkeypatch.setattr(gradient_check, "_cut", cut)
        with (
            dither.inject(Cut("nowhere"), dither.Weight(0.1)) as noise,
            pytest.raises(dither.DitherError, match=r"R can't be taken at 'a\.weight'"),
        ):
            check_gradients(noise, torch.randn(B, 3), unit=True, graph=0)
        assert len(kinds) == wanted


class Sometimes(nn.Module):
    """A second way behind a, which is cut in train mode, where `stop` is set, or where it is asked;
    with dropout, and with a mean that runs in train mode.
    """

    def __init__(self, cut="never"):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.norm, self.drop = nn.LayerNorm(6), nn.Dropout(0.3)
        self.register_buffer("mean", torch.zeros(6))
        self.cut, self.stop, self.forwards = cut, False, 0

    def forward(self, x, stop=False):
        self.forwards += 1
        h = torch.tanh(self.a(x))
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        stop = stop or self.stop or (self.training and self.cut == "in train mode")
        return self.b(self.drop(self.norm(h))) + self.c(h.detach() if stop else h)


@pytest.fixture
def drawn(monkeypatch):
    """The check draws the same in each run."""
    draws = itertools.count()
    monkeypatch.setattr(gradient_check.secrets, "randbits", lambda bits: next(draws))
    torch.manual_seed(0)


SITES = [{"a:out": dither.Additive(0.1)}, {"a.weight": dither.Weight(0.1)}]
SAID = "its gradients say"


@pytest.mark.parametrize("ask", ASKS, ids=str)
@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.usefixtures("drawn")
def test_a_way_that_is_cut_in_train_mode_alone_is_found_there(site, ask):
    net, x = Sometimes("in train mode").double().eval(), randn(B, 3)
    with dither.inject(net, site) as noise:
        dither.explicit(noise, x, Y, **ask)
        net.train()
        for _ in range(2):
            with pytest.raises(dither.DitherError, match=SAID):
                dither.explicit(noise, x, Y, **ask)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_train_mode_is_asked_with_one_draw_and_leaves_nothing(site):
    """Running statistics move once, by the call itself, and no random number is drawn."""
    torch.manual_seed(0)
    net, x = Sometimes().double().train(), randn(B, 3)
    once = 0.1 * torch.tanh(net.a(x)).mean(0).detach()
    with dither.inject(net, site) as noise:
        held, before, state = net.mean, net.mean.clone(), torch.get_rng_state()
        check_gradients(noise, x, unit=True, graph=0)
        assert net.mean is held
        assert net.mean.equal(before)
        assert torch.equal(torch.get_rng_state(), state)
        assert net.training
        assert net.norm.training
        dither.explicit(noise, x, Y).R.backward()
        torch.testing.assert_close(net.mean, once)


@pytest.mark.parametrize("depth", [4, 20, 30])
def test_deep_batch_norm_in_train_mode_is_not_refused(depth):
    for seed in range(4):
        torch.manual_seed(seed)
        block = lambda: (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())  # noqa: E731
        parts = [part for _ in range(depth) for part in block()]
        net = nn.Sequential(*parts, nn.Linear(32, 3)).train()
        with dither.inject(net, dither.Additive(0.1)) as noise, torch.no_grad():
            dither.explicit(noise, torch.randn(32, 32), torch.arange(32) % 3, samples=1)


def test_a_forward_that_writes_to_parameters_is_not_repeated_in_train_mode():
    class Momentum(Sometimes):
        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    self.c.weight.add_(1.0)
            return super().forward(x)

    net, x = Momentum().double().eval(), randn(B, 3)
    with dither.inject(net, SITES[0]) as noise, torch.no_grad():
        dither.explicit(noise, x, Y, samples=1)
        before = net.c.weight.detach().clone()
        net.train()
        dither.explicit(noise, x, Y, samples=1)
        torch.testing.assert_close(net.c.weight, before + 1.0)


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("how", ["argument", "attribute"])
@pytest.mark.usefixtures("drawn")
def test_a_way_that_is_cut_after_a_good_call_is_found(how, site):
    net, x = Sometimes().double().eval(), randn(B, 3)
    with dither.inject(net, site) as noise:
        good = dither.explicit(noise, (x, False), Y).R
        net.stop = how == "attribute"
        for _ in range(2):  # what was refused is refused again
            with pytest.raises(dither.DitherError, match=SAID):
                dither.explicit(noise, (x, how == "argument"), Y)
        net.stop = False
        assert torch.equal(dither.explicit(noise, (x, False), Y).R, good)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_flag_is_found_in_train_mode_with_batch_norm_too(site):
    """Where train mode itself is not asked, eval mode is, of each graph."""
    net, x = Sometimes().double(), randn(B, 3)
    net.norm = nn.BatchNorm1d(6).double()
    net.train()
    with dither.inject(net, site) as noise:
        dither.explicit(noise, x, Y, samples=1)
        net.stop = True
        with pytest.raises(dither.DitherError, match=SAID):
            dither.explicit(noise, x, Y, samples=1)


def test_the_same_graph_is_asked_once_and_of_many_not_all():
    net, x = Sometimes().double().eval(), randn(B, 3)
    with dither.inject(net, SITES[0]) as noise:
        counts = []
        for graph in [0, 0, *range(1, 40)]:
            before = net.forwards
            check_gradients(noise, x, unit=True, graph=graph)
            counts.append(net.forwards - before)
    assert [n > 0 for n in counts] == [True, False] + [True] * 15 + [False] * 24
