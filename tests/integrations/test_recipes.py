"""The recipes of docs/site/libraries.md against a loop by hand: the same steps, the same draws."""

import contextlib
import copy
import pickle

import pytest
import torch
from loops import BATCH, LR, SEED, WHATS, X, Y, by_hand, clean, plain, same
from torch import nn

import dither

pytestmark = pytest.mark.filterwarnings("ignore")  # of others' packages
every_case = pytest.mark.parametrize("case", WHATS)
LOADED = torch.utils.data.TensorDataset(X, Y)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def same_R(noise, model):
    """R through the library's wrapper is that of the plain model."""
    alone = copy.deepcopy(model)
    with dither.inject(alone, dither.Additive(0.3)) as other:
        wanted = dither.explicit(other, X, Y).R
    torch.testing.assert_close(dither.explicit(noise, X, Y).R, wanted)


# -------------------------------------------------------------------------------------- fabric


@pytest.fixture
def fabric():
    lightning = pytest.importorskip("lightning.fabric", reason="lightning is not installed")
    return lightning.Fabric(accelerator="cpu", devices=1)


@every_case
@pytest.mark.parametrize("compiled", [False, True])
def test_fabric_is_the_loop_by_hand(case, compiled, fabric):
    what, how = WHATS[case]
    net, wanted = plain(), plain()
    steps = by_hand(wanted, what, 2, 3, **how)
    model = fabric.setup_module(torch.compile(net, backend="eager") if compiled else net)
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(LOADED, BATCH))
    noise = dither.inject(model, what, seed=SEED, **how)
    assert noise.model is net
    sgd = fabric.setup_optimizers(torch.optim.SGD([*model.parameters(), *noise.parameters()], LR))
    for _ in range(2):
        held = contextlib.ExitStack()
        for i, batch in enumerate(loader, 1):
            if not noise.held:
                held.enter_context(noise.hold())
            fabric.backward(cross_entropy(model, batch) / 3)
            if i % 3 == 0:
                sgd.step()
                sgd.zero_grad()
                held.close()
    assert noise.step == steps
    noise.remove()
    same(net, wanted)
    clean(net)
    torch._dynamo.reset()


def test_a_checkpoint_of_fabric_holds_the_noise(fabric, tmp_path):
    what = {"0": dither.Node(2.0)}
    first, second = (fabric.setup_module(plain().train()) for _ in range(2))
    one, two = dither.inject(first, what, seed=SEED), dither.inject(second, what)
    for _ in range(3):
        first(X)
    fabric.save(tmp_path / "a.ckpt", {"model": first, "noise": one})
    fabric.load(tmp_path / "a.ckpt", {"model": second, "noise": two})
    assert (two.step, two.seeds) == (3, (SEED,))
    assert torch.equal(first(X), second(X))


def test_R_of_a_model_of_fabric(fabric):
    """Fabric refuses a backward pass of its own model that it does not do itself."""
    net = plain()
    model = fabric.setup_module(net)
    noise = dither.inject(model, dither.Additive(0.3))
    same_R(noise, net)
    loss, R, _ = dither.explicit(noise, X, Y)
    fabric.backward(loss + R)
    assert all(p.grad is not None for p in net.parameters())


def test_R_under_data_parallel_fabric_runs_through_the_wrapper():
    """So that the gradients of R are averaged over the ranks."""
    wrappers = pytest.importorskip("lightning.fabric.wrappers", reason="lightning is not installed")

    class DistributedDataParallel(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    net = plain()
    parallel = DistributedDataParallel(net)
    model = wrappers._FabricModule(parallel, None, net)
    noise = dither.inject(model, dither.Additive(0.3))
    assert noise.model is net
    assert noise.wrapper is parallel


# ---------------------------------------------------------------------------------- accelerate


@pytest.fixture
def accelerate():
    package = pytest.importorskip("accelerate", reason="accelerate is not installed")
    package.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield package
    package.state.AcceleratorState._reset_state(reset_partial_state=True)


@every_case
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_is_the_loop_by_hand(case, precision, accelerate):
    what, how = WHATS[case]
    net, wanted = plain(), plain()
    if precision == "bf16":
        cast = torch.autocast("cpu", torch.bfloat16)(wanted.forward)
        wanted.forward = lambda x: cast(x).float()
    steps = by_hand(wanted, what, 2, 3, **how)
    accelerator = accelerate.Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=3
    )
    model = accelerator.prepare(net).train()
    noise = dither.inject(model, what, seed=SEED, **how)
    sgd, loader = accelerator.prepare(
        torch.optim.SGD([*model.parameters(), *noise.parameters()], LR),
        torch.utils.data.DataLoader(LOADED, BATCH),
    )
    for _ in range(2):
        held = contextlib.ExitStack()
        for batch in loader:
            if not noise.held:
                held.enter_context(noise.hold())
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model, batch))
                sgd.step()
                sgd.zero_grad()
            if accelerator.sync_gradients:
                held.close()
    assert noise.step == steps
    noise.remove()
    same(net, wanted)


def test_a_checkpoint_of_accelerate_holds_the_noise(tmp_path, accelerate):
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(plain()).train()
    noise = dither.inject(model, {"0": dither.Node(2.0)}, seed=SEED)
    accelerator.register_for_checkpointing(noise)
    for _ in range(3):
        model(X)
    accelerator.save_state(tmp_path)
    then = model(X)
    with torch.no_grad():
        noise.nodes["0:out"].zero_()
    accelerator.load_state(tmp_path)
    assert noise.step == 3
    assert torch.equal(model(X), then)


# -------------------------------------------------------------------------------------- skorch


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(*plain())


class Placed(nn.Sequential):
    def __init__(self, sigma=0.5):
        first, *rest = plain()
        super().__init__(dither.nn.Additive(sigma, seed=SEED), first, *rest)


@pytest.fixture
def skorch():
    return pytest.importorskip("skorch", reason="skorch is not installed")


def callback(skorch):
    """The callback of the recipe."""

    class Noise(skorch.callbacks.Callback):
        def __init__(self, what, seed=None):
            self.what, self.seed = what, seed

        def on_train_begin(self, net, X=None, y=None, **_):
            self.noise_ = dither.inject(net.module_, self.what, seed=self.seed)

        def on_train_end(self, net, X=None, y=None, **_):
            self.noise_.remove()

    return Noise


def estimator(skorch, module, **more):
    return skorch.NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=LR, max_epochs=2,
        batch_size=BATCH, train_split=None, iterator_train__shuffle=False, verbose=0, **more,
    )  # fmt: skip


def fitted(net):
    return net.fit(X.numpy(), Y.numpy())


@pytest.mark.parametrize("what", [dither.Additive(0.5), dither.Weight(0.3)], ids=["h", "w"])
def test_a_callback_of_skorch_is_the_loop_by_hand(what, skorch):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    wanted = plain()
    by_hand(wanted, what, 2, 1)
    net = estimator(skorch, Plain, callbacks=[("noise", callback(skorch)(what, SEED))])
    net = fitted(base.clone(net))
    same(net.module_, wanted)
    clean(net.module_)
    assert dict(net.callbacks_)["noise"].noise_.step == 12
    fitted(net)  # a new module, with its own noise
    same(net.module_, wanted)


def test_a_placed_noise_in_skorch_is_the_same_training(skorch):
    """Also searched over, copied and pickled."""
    search = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    net = fitted(estimator(skorch, Placed))
    wanted = Placed().train()
    sgd = torch.optim.SGD(wanted.parameters(), LR)
    for _ in range(2):
        for batch in zip(X.split(BATCH), Y.split(BATCH), strict=True):
            sgd.zero_grad()
            cross_entropy(wanted, batch).backward()
            sgd.step()
    same(net.module_, wanted)
    assert net.module_[0].step == wanted[0].step == 12
    again = pickle.loads(pickle.dumps(estimator(skorch, Placed)))
    same(fitted(again).module_, wanted)
    found = search.GridSearchCV(again, {"module__sigma": [0.0, 50.0]}, cv=2, refit=False)
    found.fit(X.numpy(), Y.numpy())
    assert found.cv_results_["param_module__sigma"].tolist() == [0.0, 50.0]
