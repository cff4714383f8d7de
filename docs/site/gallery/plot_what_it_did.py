"""
What did the noise do to my network?
====================================

**Question: the test accuracy is the same. What has changed?** Noise changes more than accuracy.
``dither.measures`` looks at a trained network from several sides: how far its inputs are from
the decision boundary, how it stands corruption and attacks, how large its weights are, and how
honest its confidence is.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither import measures

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:400], order[400:]


def trained(what: object) -> nn.Module:
    """With a noise, or without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    model.append(nn.Linear(128, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    noise = dither.inject(model, what, seed=0) if what else None
    for _ in range(100):
        for some in train[torch.randperm(len(train))].split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x[some]), y[some]).backward()
            optimiser.step()
    if noise:
        noise.remove()
    return model.eval()


# %%
# Three networks from the same first weights: without noise, with noise on every activation, and
# with dropout that is the same for all of a unit's weights.

ways = {
    "none": None,
    "activations": dither.Additive(0.2),
    "DropConnect": {"*.weight": dither.DropConnect(law=dither.dropout(0.2))},
}
nets = {name: trained(what) for name, what in ways.items()}
LEVELS, STRENGTHS = [0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 0.05, 0.1, 0.15, 0.2]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for (name, net), colour in zip(nets.items(), ("#555555", "#4c72b0", "#dd8452"), strict=True):
    z = net(x[test]).detach()
    margin = measures.margins.inputs(net, x[test], y[test]).value
    size = measures.capacity.capacity(net, x[train], y[train]).normalised()["spectral"]
    slopes = measures.jacobian.layers(net, x[test])
    steep = torch.stack([layer.spectral() for layer in slopes.values()]).prod()
    told = measures.calibration.reliability(z.softmax(-1), y[test], bins=10)
    right = (z.argmax(1) == y[test]).double().mean()
    print(f"{name:12} accuracy {right:.3f}, median margin {margin.median():.3f}, "
          f"slopes' product {steep:.1f}, capacity {size:.1f}, "
          f"calibration error {told.error:.3f} (chance {told.chance:.3f})")  # fmt: skip
    noisy = measures.robustness.corruption(net, x[test], y[test], LEVELS, draws=3)
    axes[0].plot(LEVELS, [100 * noisy[s].value for s in LEVELS], "o-", color=colour, label=name)
    hit = measures.robustness.attack(
        net, x[test], y[test], strengths=STRENGTHS, bounds=(0.0, 1.0), target="margin"
    ).accuracy
    axes[1].plot(STRENGTHS, [100 * hit[e].value for e in STRENGTHS], "o-", color=colour)
    axes[2].hist(margin, 40, (-0.5, 1.5), histtype="step", color=colour)
axes[0].set(xlabel="corruption s", ylabel="test accuracy, %")
axes[1].set(xlabel="strength of the attack (FGSM)")
axes[2].set(xlabel="distance to the boundary, first order", ylabel="test images")
axes[0].legend(frameon=False)
plt.show()

# %%
# **What to take from it.** Look at several measures: a noise may change one of them and leave the
# others. One seed shows how to look. For a verdict take several seeds, as in
# :ref:`sphx_glr_examples_plot_compare.py`.
