"""
NEFTune, and what it penalises
==============================

**Question: what does noise on the embeddings do in fine-tuning?** NEFTune adds uniform noise of
size α/√(T d) to the embeddings of T tokens of width d. It is used because it helps. What does it
ask of the model? Small slopes g of the output on the embeddings: it penalises α²‖g‖²/(3 T d). This
script computes that for a small language model, character by character.
"""

from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from torch import nn

import dither

T, D = 48, 64

# %%
# The text is the documentation that Python carries with it. A small transformer learns to read
# its characters. Then it is fine-tuned on two of the pages, which it has not seen, and tested on
# eight others.

names = sorted(topics)
few, test = names[5:7], names[10::9]
pages = [n for n in names if n not in few and n not in test]
parts = ["\n".join(topics[n] for n in some) for some in (pages, few, test)]
letters = sorted(set(parts[0]))
index = {c: i for i, c in enumerate(letters)}
base, tuning, held = (torch.tensor([index.get(c, 0) for c in part]) for part in parts)
tuning, held = tuning[:4000], held[:40_000]


class Reader(nn.Module):
    """Two blocks of causal attention over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(letters), D)
        self.place = nn.Parameter(0.1 * torch.randn(T, D))
        layer = nn.TransformerEncoderLayer(D, 4, 2 * D, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(D, len(letters))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(T))

    def forward(self, ids):
        h = self.embed(ids) + self.place[: ids.shape[1]]
        return self.head(self.blocks(h, mask=self.mask, is_causal=True))


def batch(text: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pieces of T characters, and the next characters."""
    at = torch.randint(len(text) - T, (size, 1)) + torch.arange(T)
    return text[at], text[at + 1]


def loss_of(model: nn.Module, ids: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Nats a character."""
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), following.flatten())


def train(model: nn.Module, text: torch.Tensor, steps: int, lr: float) -> None:
    """Adam on random pieces."""
    optimiser = torch.optim.Adam(model.train().parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(model, *batch(text, 16)).backward()
        optimiser.step()
    model.eval()


torch.manual_seed(0)
model = Reader()
train(model, base, 220, 4e-3)
ids, following = batch(held, 64)
print(f"{loss_of(model, ids, following):.3f} nats a character on pages that it has not seen")

# %%
# **What α costs.** One sampled R gives it for every α, because R goes with α². The measured
# change of the loss says up to where that holds.

alphas = [2.5, 5.0, 10.0, 20.0, 40.0]
with dither.inject(model, {"embed": dither.Neftune(1.0)}) as noise, torch.no_grad():
    print(noise)
    R = dither.explicit(noise, ids, following, samples=16).R.item()
measured = []
for alpha in alphas:
    with dither.inject(model, {"embed": dither.Neftune(alpha)}) as noise:
        change = dither.expected(noise, ids, following, draws=8, antithetic=True, seed=0)
    measured.append(change)
    print(f"α {alpha:4}: R {alpha**2 * R:.4f}, measured {change}")

# %%
# **Where it is penalised.** ‖g‖² of each token is R of noise on that token alone. For one line of
# the text: the darker a character, the more the prediction depends on its embedding.

line, columns = ids[:1], 200
h = model.embed(line).detach().requires_grad_()
hook = model.embed.register_forward_hook(lambda *_: h)
z = model(line)
hook.remove()
p = z.detach().softmax(-1)
slopes = torch.zeros(T)
for _ in range(columns):  # random columns of a root of the Hessian: S = √p∘r − p ⟨√p, r⟩
    r = torch.randint(2, p.shape) * 2.0 - 1
    S = p.sqrt() * r - p * (p.sqrt() * r).sum(-1, keepdim=True)
    (g,) = torch.autograd.grad(z, h, S / T**0.5, retain_graph=True)
    slopes += g[0].square().sum(-1) / columns

figure, (top, left) = plt.subplots(
    2, 1, figsize=(9, 4.8), height_ratios=(1, 3), layout="constrained"
)
share = slopes / slopes.sum()
top.imshow(share[None], aspect="auto", cmap="Blues")
for place, i in enumerate(line[0]):
    dark = bool(share[place] > 0.6 * share.max())
    top.text(place, 0, letters[i].replace("\n", "¶"), ha="center", va="center",
             family="monospace", color="white" if dark else "black")  # fmt: skip
top.set(yticks=[], xticks=[], title="share of R, character by character")
grid = torch.logspace(0.3, 1.7, 50)
left.loglog(grid, R * grid**2, color="#c44e52", label="R")
left.errorbar(alphas, [m.value for m in measured], [2 * m.sem for m in measured], fmt="o",
              color="#4c72b0", label="measured")  # fmt: skip
left.set(xlabel="α", ylabel="change of the loss, nats a character")
left.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
left.set_xticks([], minor=True)
left.legend(frameon=False)
plt.show()

# %%
# **Does it help?** Fine-tune on the two pages until the model has fitted much of them, with α = 0
# and with α = 20, from the same point and with the same batches. Three seeds. "R" is that of α = 1:
# it says how steep the model is.

start = {name: value.clone() for name, value in model.state_dict().items()}
for alpha in (0.0, 20.0):
    seen, new, slope = [], [], []
    for seed in range(3):
        model.load_state_dict(start)
        torch.manual_seed(seed)
        with dither.inject(model, {"embed": dither.Neftune(alpha)}, seed=seed):
            train(model, tuning, 60, 4e-3)
        with torch.no_grad():
            seen.append(loss_of(model, *batch(tuning, 100)))
            new.append(loss_of(model, ids, following))
            with dither.inject(model, {"embed": dither.Neftune(1.0)}) as noise:
                slope.append(dither.explicit(noise, ids, following, samples=4).R)
    told = [f"{torch.stack(v).mean():.3g} ± {torch.stack(v).std():.1g}" for v in (seen, new, slope)]
    print(f"α {alpha:4}: tuning pages {told[0]}, other pages {told[1]}, R {told[2]}")

# %%
# **What to take from it.** NEFTune asks for small slopes in the embeddings, and gets them: R of the
# tuned model is smaller. Whether pages that were not seen gain is another question, and three
# seeds do not answer it. Compute R before you choose α: on this model, the usual α = 5 changes the
# loss by next to nothing.
