"""Patterns: what they match, what they say when they match nothing, and the table of sites."""

import pytest
import torch
from nets import plain
from torch import nn

import dither
from dither.attach.find import find_sites
from dither.errors import DitherError


class Net(nn.Module):
    """Named layers, a convolution, an attention, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.layer1, self.layer2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(8, 8)

    def forward(self, x):  # [B, 1, 4, 6]
        h = self.conv1(x).flatten(2).transpose(1, 2).repeat(1, 1, 4)  # [B, 8, 8]
        h = self.layer2(self.layer1(h).relu())
        return self.attention(h, h, h)[0]


X = torch.randn(2, 1, 4, 6)


def names(what):
    return list(find_sites(Net(), what))


class Turned(nn.Module):
    """A layer with the weight the other way round, which is no nn.Linear."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    ("layer", "inside"),
    [(Turned(), ""), (nn.LSTM(3, 2), ""), (nn.MultiheadAttention(4, 2), "in-projection")],
    ids=["own", "LSTM", "attention"],
)
def test_layers_that_are_no_default_site_say_how_to_name_them(layer, inside):
    found = find_sites(nn.ModuleDict({"a": layer, "b": nn.Linear(2, 2)}), dither.Additive(0.1))
    assert list(found) == ["b:in"]
    assert inside in found.skipped["a"]
    assert "the pattern 'a:in' puts noise " in str(found)


def test_normalisations_and_embeddings_are_passed_over_in_silence():
    layers = {"a": nn.LayerNorm((2, 3)), "b": nn.Linear(2, 2), "c": nn.Embedding(5, 2)}
    assert not find_sites(nn.ModuleDict(layers), dither.Additive(0.1)).skipped


def test_where_no_layer_is_a_site_the_sentence_names_those_that_could_be():
    with pytest.raises(DitherError, match=r"the pattern 'input' puts noise there"):
        find_sites(Turned(), dither.Additive(0.1))
    with pytest.raises(DitherError, match=r"name modules by pattern"):
        find_sites(nn.ReLU(), dither.Additive(0.1))


def test_an_injection_kept_on_the_model_is_beside_it():
    model = Net()
    model.noise = dither.inject(model, {"layer1": dither.Node(0.1)})
    assert "noise.nodes.layer1:out" in dict(model.named_parameters())
    assert list(find_sites(model, dither.Weight(0.1))) == [n for n, _ in Net().named_parameters()]
    assert not [
        n for n in find_sites(model, {"*:out": dither.Additive(0.1)}) if n.startswith("noise")
    ]
    model.noise.remove()


def test_default_sites():
    assert names(dither.Additive(0.1)) == ["conv1:in", "layer1:in", "layer2:in", "unused:in"]
    assert names(dither.Node(0.1)) == ["conv1:in", "layer1:out", "layer2:out", "unused:out"]
    assert names(dither.Weight(0.1)) == [n for n, _ in Net().named_parameters()]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("layer?", ["layer1:in", "layer2:in"]),
        ("layer*:out", ["layer1:out", "layer2:out"]),
        ("layer[2]", ["layer2:in"]),
        ("input", ["input"]),
        (":out", ["output"]),
        ("output", ["output"]),
        ("attention.out_proj", ["attention.out_proj:in"]),
        ("*1", ["conv1:in", "layer1:in"]),
    ],
)
def test_globs_and_sides(pattern, matched):
    assert names({pattern: dither.Additive(0.1)}) == matched


def test_sides_of_each_noise():
    assert names({"conv1": dither.Node(1.0), "layer1": dither.Node(1.0)}) == [
        "conv1:in",
        "layer1:out",
    ]
    assert names({"layer1:in": dither.Node(1.0)}) == ["layer1:in"]
    assert (
        names({"*.weight": dither.Weight(0.1), "layer1.b*": dither.Weight(0.2)})[-1]
        == "layer1.bias"
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"layr1": dither.Additive(0.1)}, "'layr1' matches no module of Net; near: 'layer1'"),
        ({"conv": dither.Additive(0.1)}, "'conv' matches no module of Net; near: 'conv1'"),
        ({"zzz": dither.Additive(0.1)}, "'zzz' matches no module of Net; it has 'conv1', 'layer1'"),
        ({"layer1.wieght": dither.Weight(0.1)}, "no parameter of Net; near: 'layer1.weight'"),
        (
            {"layer?": dither.Additive(0.1), "*1:in": dither.Additive(0.2)},
            r"'layer1:in' is claimed by both 'layer\?' and '\*1:in'",
        ),
        ({"layer1": 0.1}, "pattern 'layer1' needs a noise such as .* got 0.1"),
        (dither.Additive, "inject .*the class Additive"),
        (0.1, "inject needs a noise"),
        ({}, "empty mapping: give .pattern: noise"),
    ],
)
def test_what_matches_nothing_says_so(what, message):
    with pytest.raises(dither.DitherError, match=message):
        names(what)


def test_a_model_without_default_sites_says_so():
    with pytest.raises(dither.DitherError, match=r"no site for Additive σ 0\.1 gaussian in ReLU"):
        dither.inject(nn.ReLU(), dither.Additive(0.1))


def test_the_table():
    noise = dither.inject(
        Net(), {"conv1": dither.Node(2.0), "layer?": dither.Additive(0.1)}, example=X
    )
    assert str(noise.sites) == (
        "site       of      noise                    shape\n"
        "conv1:in   Conv2d  Node σ 2 gaussian        2×1×4×6\n"
        "layer1:in  Linear  Additive σ 0.1 gaussian  2×8×8\n"
        "layer2:in  Linear  Additive σ 0.1 gaussian  2×8×8"
    )


def test_the_table_tells_what_is_no_site_and_what_was_never_called():
    model = Net()
    noise = dither.inject(model, dither.Additive(0.1))
    assert str(noise.sites).count("not called yet") == 4
    model(X)
    lines = str(noise.sites).splitlines()
    assert [line.split()[0] for line in lines if "not called yet" in line] == ["unused:in"]
    assert lines[-1] == (
        "not a site: attention.out_proj: 'attention' (MultiheadAttention) uses its weight and "
        "never calls it"
    )
    assert "attention.out_proj.weight" in dither.inject(model, dither.Weight(0.1)).sites
    assert "noise on 4 sites of Net" in repr(noise)


def test_a_node_on_a_convolution_needs_an_example():
    with pytest.raises(dither.DitherError, match=r"'conv1:in' .* Conv2d: pass a batch"):
        dither.inject(Net(), {"conv1": dither.Node(1.0)})
    model = Net()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    noise = dither.inject(model, {"conv1": dither.Node(1.0)}, example=X)
    assert [m.training for m in model.modules()] == modes
    assert [tuple(p.shape) for p in noise.parameters()] == [(1, 1, 4, 6)]
    assert noise.step == 0
    assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize("example", [X, (X,), {"x": X}], ids=["tensor", "tuple", "mapping"])
def test_an_example_of_any_kind(example):
    assert dither.inject(Net(), {"conv1": dither.Node(1.0)}, example=example).sites["conv1:in"].seen


def test_sharded_weights_are_refused():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = nn.Sequential(FullyShardedDataParallel(plain()))
    for noise in (dither.Weight(0.1), dither.Additive(0.1)):
        with pytest.raises(
            dither.DitherError, match="can't reach sharded weights: '0' is under FSDP"
        ):
            dither.inject(model, noise)
