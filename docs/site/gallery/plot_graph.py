"""
A graph or a packed batch: when exact R is refused
==================================================

**Question: my samples share a tensor. What now?** Exact R pulls the gradients of all samples back
together. That is right only if a number of an activation belongs to one sample. In a graph, nodes
exchange messages, and in a packed batch, sequences share rows. dither checks this at each call.
Where it fails, dither refuses in a sentence, or takes the slow way.
"""

import textwrap

import matplotlib.pyplot as plt
import torch
from torch import nn

import dither

torch.manual_seed(0)
edges = torch.rand(30, 30) < 0.1
adjacency = (edges | edges.T | torch.eye(30, dtype=torch.bool)).float()
adjacency = adjacency / adjacency.sum(1, keepdim=True)  # each node takes the mean of its neighbours


class GraphNet(nn.Module):
    """Two rounds of messages. A sample is a node, and a node sees its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, h):
        h = torch.tanh(self.first(adjacency @ h))
        return self.second(adjacency @ h)


model = GraphNet()
x, y = torch.randn(30, 8), torch.randint(3, (30,))

# %%
# **Noise on activations is refused.** The activation of a node reaches the outputs of its
# neighbours. Gradients of several samples meet in it, and their sum is not what R needs.

noise = dither.inject(model, {"input": dither.Additive(0.3)})
try:
    dither.explicit(noise, x, y)
except dither.DitherError as error:
    print(textwrap.fill(str(error), 100))

# %%
# **First way out: measure.** ``expected`` needs no gradients at all. It is right wherever the
# model runs.

print("mean change of the loss:", dither.expected(noise, x, y, draws=2000, antithetic=True, seed=0))
noise.remove()

# %%
# **Noise on weights is right**, sample by sample. The parameters that the certificate does not
# accept are taken one sample after another: slower, and exact.

with dither.inject(model, dither.Weight(0.1)) as noise, torch.no_grad():
    loss, R, parts = dither.explicit(noise, x, y)
    truth = dither.expected(noise, x, y, draws=4000, antithetic=True, seed=0)
print(f"R {R:.5f}, measured {truth}")

figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
left = 0.0
for name, part in parts.items():
    axes.barh("R", part.item(), left=left, label=name)
    left += part.item()
axes.barh("measured", truth.value, xerr=2 * truth.sem, color="#999999")
axes.set(xlabel="mean change of the loss under weight noise")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
# **Second way out: make the sample what is independent.** Here whole graphs do not see each
# other. Put them into dimension 0 of the output: the model gives [graphs, nodes, classes], and
# the nodes are positions of a sample.

graphs, labels = torch.randn(12, 30, 8), torch.randint(3, (12, 30))
print(list(model(graphs).shape))
with dither.inject(model, {"input": dither.Additive(0.3)}) as noise, torch.no_grad():
    loss, R, _ = dither.explicit(noise, graphs, labels)
    full = dither.explicit(noise, graphs, labels, curvature="full", samples=200).R
    print(f"R {R:.5f}, all of second order {full:.5f}")
    print("measured:", dither.expected(noise, graphs, labels, draws=2000, antithetic=True, seed=0))

# %%
# **What to take from it.** A refusal is not a failure of your model: it says that a number would
# be wrong. Take ``expected``, put noise on the weights, or give dither samples that are
# independent. The page :doc:`/reliability` lists what was tried.
