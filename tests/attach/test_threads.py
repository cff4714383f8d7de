"""Several threads through one noisy model: every output is that of one draw."""

import threading
import time

import pytest
import torch
from nets import shadows
from torch import nn

import dither
from dither.attach import threads

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Slow(nn.Module):
    """Lets other threads run between its two layers; may be interrupted there."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.interrupt = nn.Linear(4, 8), nn.Linear(8, 3), False

    def forward(self, x):
        h = torch.tanh(self.a(x))
        time.sleep(0.002)
        if self.interrupt:
            raise KeyboardInterrupt
        return self.b(h)


def together(count, work):
    """What `count` threads give, and what they raise."""
    found, raised = [], []

    def run():
        try:
            found.extend(work())
        except Exception as e:
            raised.append(e)

    running = [threading.Thread(target=run) for _ in range(count)]
    for t in running:
        t.start()
    for t in running:
        t.join(timeout=60)
    assert not any(t.is_alive() for t in running)
    return found, raised


NOISES = {
    "weight": dither.Weight(0.5),
    "additive": dither.Additive(0.5),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("count", [2, 4])
def test_every_output_is_of_one_draw_and_no_draw_is_taken_twice(name, count):
    torch.manual_seed(0)
    model, calls = Slow(), 8
    noise = dither.inject(model, NOISES[name], seed=0)
    serial = [model(X).detach() for _ in range(count * calls)]
    noise.step = 0
    found, raised = together(count, lambda: [model(X).detach() for _ in range(calls)])
    assert not raised
    assert len(found) == len(serial)
    for z in serial:  # in whatever order the threads came
        assert sum(torch.equal(z, other) for other in found) == 1
    assert not shadows(model)


def test_a_reading_is_not_disturbed_by_a_forward_in_another_thread():
    torch.manual_seed(0)
    model, y = Slow().double(), torch.randint(3, (5,))
    noise = dither.inject(model, dither.Additive(0.5), seed=0)
    right = dither.explicit(noise, X.double(), y).R.item()
    ready = threading.Event()

    def train():
        ready.set()
        return [model(X.double()).detach() for _ in range(20)]

    other = threading.Thread(target=train)
    other.start()
    ready.wait()
    for _ in range(5):
        assert dither.explicit(noise, X.double(), y).R.item() == pytest.approx(right, rel=1e-12)
    other.join(timeout=60)
    assert not other.is_alive()


def test_an_interrupted_forward_keeps_no_other_thread_waiting():
    """Ctrl-C runs no hook, so nothing releases the lock."""
    torch.manual_seed(0)
    model = Slow()
    noise = dither.inject(model, dither.Weight(0.5), seed=0)
    model.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        model(X)
    model.interrupt = False
    noise.step = 0
    started = time.monotonic()
    found, raised = together(1, lambda: [model(X).detach()])
    assert not raised
    assert time.monotonic() - started < 20 * threads.PAUSE + 5
    noise.step = 0
    assert torch.equal(found[0], model(X))
    assert not shadows(model)


def test_branches_in_threads_of_a_forward_do_not_wait_for_it():
    """Parts of the model called by threads that its own forward starts and waits for."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

        def forward(self, x):
            found, raised = together(1, lambda: [self.parts[0](x)])
            assert not raised
            return found[0] + self.parts[1](x)

    torch.manual_seed(0)
    model = Branches()
    clean = model(X)
    with dither.inject(model, dither.Weight(0.5), seed=0):
        assert not torch.equal(model(X), clean)
    assert torch.equal(model(X), clean)


def test_a_reading_keeps_its_turn_between_its_forwards():
    lock, entered = threads.OneAtATime(nn.Identity()), threading.Event()

    def forward():
        lock.enter()
        entered.set()
        lock.leave()

    other = threading.Thread(target=forward)
    with lock.reading():
        lock.enter()
        lock.leave()  # a forward of the reading's own
        other.start()
        assert not entered.wait(5 * threads.PAUSE)
    assert entered.wait(10)
    other.join(timeout=10)
    assert lock.owner is None


def test_a_forward_that_never_began_ends_nobodys_turn():
    """As where a hook before ours raises: torch still runs those that are after a forward."""
    lock = threads.OneAtATime(nn.Identity())
    lock.enter()
    other = threading.Thread(target=lock.leave)
    other.start()
    other.join(timeout=10)
    assert (lock.owner, lock.forwards) == (threading.get_ident(), 1)
    lock.leave()
    assert lock.owner is None
