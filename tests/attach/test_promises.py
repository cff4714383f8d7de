"""What `inject` promises of the user's model: it is never edited, and copies are clean."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from nets import NOISES, Snapshot, hooks, mlp, plain, shadows
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dither

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
every_noise = pytest.mark.parametrize("name", NOISES)


class Broken(nn.Module):
    """Raises what it is told to."""

    def __init__(self, error):
        super().__init__()
        self.inner, self.error = plain(), error

    def forward(self, x):
        h = self.inner(x)
        if self.error is not None:
            raise self.error
        return h


# ------------------------------------------------------------------------------- never edited


@every_noise
def test_nothing_is_edited_at_any_moment(name):
    model = mlp()
    before = Snapshot.of(model)
    seen = []

    def look(module, *_):
        before.assert_same(model, buffers=False)
        seen.append(module)

    for m in model.modules():
        m.register_forward_pre_hook(look)
        m.register_forward_hook(look)
    noise = dither.inject(model, NOISES[name](), seed=0)
    before.assert_same(model)
    z = model(X)
    assert len(seen) == 2 * len(list(model.modules()))
    before.assert_same(model, buffers=False)
    assert not shadows(model)
    z.square().sum().backward()
    before.assert_same(model, buffers=False)
    noise.remove()
    before.assert_same(model, buffers=False)


def test_attributes_are_the_parameters_between_forwards():
    model = plain()
    weight = model[0].weight
    noise = dither.inject(model, dither.Weight(0.1))
    inside = []
    model[0].register_forward_hook(lambda m, *_: inside.append(m.weight))
    z = model(X)
    assert model[0].weight is weight
    assert inside[0] is not weight
    assert not torch.equal(inside[0], weight)
    z.sum().backward()
    assert weight.grad is not None
    noise.remove()


@every_noise
def test_the_optimiser_updates_the_parameters_by_the_noisy_gradient(name):
    model = plain(dtype=torch.float64)
    noise = dither.inject(model, NOISES[name](), seed=0)
    before = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X.double()).square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    optimiser.step()
    for p, old, g in zip(model.parameters(), before, grads, strict=True):
        torch.testing.assert_close(p, old - 0.1 * g, rtol=0, atol=1e-15)
    noise.remove()


def test_the_weight_gradient_is_that_of_the_displaced_weights():
    model = plain(dtype=torch.float64)
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    used = {}
    for n, m in model.named_modules():
        if isinstance(m, nn.Linear):
            m.register_forward_hook(lambda m, *_, n=n: used.update({n: (m.weight, m.bias)}))
    model(X.double()).square().sum().backward()
    clean = copy.deepcopy(model)
    with torch.no_grad():
        for n, (w, b) in used.items():
            clean.get_submodule(n).weight.copy_(w)
            clean.get_submodule(n).bias.copy_(b)
    clean.zero_grad()
    clean(X.double()).square().sum().backward()
    for p, q in zip(model.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-13)
    assert noise.step == 1


@every_noise
def test_an_exception_inside_forward_leaves_no_trace(name):
    model = Broken(ValueError("broken"))
    before = Snapshot.of(model)
    noise = dither.inject(model, NOISES[name](), seed=0)
    with pytest.raises(ValueError, match="broken"):
        model(X)
    before.assert_same(model)
    assert not shadows(model)
    model.error = None
    model.eval()
    clean = copy.deepcopy(model)(X)
    assert torch.equal(model(X), clean)
    noise.remove()
    assert hooks(model) == 0


@every_noise
def test_ctrl_c_inside_forward_is_recovered_from(name):
    """No hook runs after it: parameters and state are right, the rest at the next forward."""
    model, same = Broken(KeyboardInterrupt()), Broken(None)
    same.load_state_dict(model.state_dict())
    before = Snapshot.of(model)
    noise, other = (dither.inject(m, NOISES[name](), seed=0) for m in (model, same))
    with pytest.raises(KeyboardInterrupt):
        model(X)
    before.assert_same(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.error = None
        Snapshot.of(copied)
        assert not shadows(copied)
        assert torch.equal(copied.eval()(X), copied.inner(X))
    model.error = None
    same(X)
    assert torch.equal(model(X), same(X))  # the second step of both
    assert not shadows(model)
    noise.remove()
    other.remove()
    assert torch.equal(model(X), same(X))


def test_two_weight_noises_recover_from_ctrl_c_together():
    model = Broken(KeyboardInterrupt())
    first = dither.inject(model, dither.Weight(0.1), seed=0)
    second = dither.inject(model, dither.Weight(0.2), seed=1)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    model.error = None
    z = model(X)
    assert not shadows(model)
    deltas = [n.displacement(n.sites["inner.0.weight"], 2) for n in (first, second)]
    inside = []
    model.inner[0].register_forward_hook(lambda m, *_: inside.append(m.weight))
    for n in (first, second):
        n.step = 1
    assert torch.equal(model(X), z)
    torch.testing.assert_close(inside[0], model.inner[0].weight + sum(deltas))


@every_noise
def test_output_is_bit_identical_after_remove_and_no_hook_is_left(name):
    model = plain()
    clean = model(X)
    noise = dither.inject(model, NOISES[name](), seed=0)
    assert not torch.equal(model(X), clean)
    noise.remove()
    assert torch.equal(model(X), clean)
    assert hooks(model) == 0
    noise.remove()  # harmless


@every_noise
def test_eval_is_bit_identical_while_attached(name):
    model = mlp().eval()
    clean = model(X)
    with dither.inject(model, NOISES[name](), seed=0):
        assert torch.equal(model(X), clean)
        model.train()(X)
        model.load_state_dict({k: v for k, v in model.state_dict().items()})
    again = mlp()
    again.load_state_dict(model.state_dict())
    with dither.inject(model, NOISES[name](), seed=0):
        assert torch.equal(model.eval()(X), again.eval()(X))


# ------------------------------------------------------------------------------------- copies


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": saved,
    "ema": lambda m: AveragedModel(m).module,
}


@every_noise
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_clean_and_the_original_keeps_its_noise(name, how):
    model = plain()
    clean = model(X)
    noise = dither.inject(model, NOISES[name](), seed=0)
    model(X)
    copied = COPIES[how](model)
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert torch.equal(copied(X), clean)
    assert not torch.equal(model(X), clean)
    assert noise.step == 2  # the copy did not move the clock
    with dither.inject(copied, NOISES[name](), seed=3):
        assert not torch.equal(copied(X), clean)
    assert torch.equal(copied(X), clean)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_taken_inside_a_forward_is_clean(how):
    model = plain()
    clean = model(X)
    dither.inject(model, dither.Weight(0.1), seed=0)
    probe = model[1].register_forward_hook(take := Taker(model, COPIES[how]))
    model(X)
    probe.remove()
    assert not shadows(take.copied)
    assert torch.equal(take.copied(X), clean)
    assert all(
        p is not q for p, q in zip(model.parameters(), take.copied.parameters(), strict=True)
    )


class Taker:
    """A hook that copies a model; itself copies as a harmless hook."""

    def __init__(self, model=None, how=None):
        self.model, self.how, self.copied = model, how, None

    def __call__(self, *_):
        if self.how is not None:
            self.copied = self.how(self.model)

    def __reduce__(self):
        return Taker, ()


def test_a_shallow_copy_shares_its_layers_and_their_noise():
    model = plain()
    clean = model(X)
    noise = dither.inject(model, dither.Additive(0.3), seed=0)
    shallow = copy.copy(model)
    assert not torch.equal(shallow(X), clean)
    noise.remove()
    assert torch.equal(shallow(X), clean)


def test_a_pickled_model_opens_without_dither(tmp_path):
    model = plain()
    dither.inject(model, {"*.weight": dither.Weight(0.1), "0": dither.Node(1.0)})
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; sys.modules['dither'] = None; "
        f"m = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        "print(m(torch.zeros(2, 4)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch.Size([2, 3])", done.stderr


def test_ema_copies_follow_the_clean_parameters():
    model = plain()
    dither.inject(model, dither.Weight(0.5), seed=0)
    ema = AveragedModel(model)
    model(X)
    ema.update_parameters(model)
    for p, q in zip(model.parameters(), ema.module.parameters(), strict=True):
        assert torch.equal(p, q)


# ------------------------------------------------------------------------ autocast and GradScaler


@every_noise
def test_autocast(name):
    model = plain()
    before = Snapshot.of(model)
    with dither.inject(model, NOISES[name](), seed=0), torch.autocast("cpu", torch.bfloat16):
        z = model(X)
        again = model(X)
    assert z.dtype == torch.bfloat16
    assert not torch.equal(z, again)
    z.float().sum().backward()
    before.assert_same(model)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@every_noise
def test_a_step_skipped_by_the_gradscaler_leaves_the_weights_clean(name):
    model = plain()
    noise = dither.inject(model, NOISES[name](), seed=0)
    optimiser = torch.optim.SGD([*model.parameters(), *noise.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = Snapshot.of(model)
    for bad in (True, False):
        optimiser.zero_grad()
        loss = model(X).square().sum()
        scaler.scale(loss * float("inf") if bad else loss).backward()
        scaler.step(optimiser)
        scaler.update()
        assert not shadows(model)
        if bad:
            before.assert_same(model)
    assert not torch.equal(model[0].weight, before.state["0.weight"])


def test_bfloat16_weights_do_not_drift():
    model = plain(dtype=torch.bfloat16)
    before = Snapshot.of(model)
    dither.inject(model, dither.Weight(0.1), seed=0)
    for _ in range(100):
        model(X.bfloat16())
    before.assert_same(model)
