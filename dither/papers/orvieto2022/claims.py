"""The claims of Orvieto et al. 2022."""

from dither.lab.original import Original

ROWS = (
    ("O1", "Noise on a diagonal net gives the Lasso.", "§2.3; eq. 8", ("lasso: O1",), ""),
    ("O2", "Noise on linear layers gives the nuclear norm.", "§2.4; eq. 9, 10", ("nuclear: O2",),
     ""),
    ("O3", "Blocks of units give group sparsity.", "App. C.3", ("group_lasso: O3",), ""),
    ("O4", "Noise on wwᵀ gives a penalty of the trace.", "§2.5", ("psd: O4",), ""),
    ("O5", "R_σ − L is of the order of σ².", "Theorem 1", ("lasso: O5",), ""),
    ("O6", "What R leaves out is of a higher order in σ.", "Theorem 1, 2", ("lasso: O6",), ""),
    ("O7", "On separable data the direction solves a max–min problem.", "App. B",
     ("logistic: O7",), "Steps along the gradient over the loss, to the control's limit."),
    ("O8", "Full noise: R_σ − R_eff grows linearly with the width.", "Fig. 1; §3.2",
     ("fig1: O8",), ""),
    ("O9", "Layer-wise noise: it does not grow.", "Fig. 1; §3.2", ("fig1: O9",), ""),
    ("O10", "50 units: both noises minimise the regularised loss.", "Fig. 2", ("fig2: O10",), ""),
    ("O11", "300 units: layer-wise noise alone does.", "Fig. 2", ("fig2: O11",), ""),
    ("O12", "3 × 5000: layer-wise noise raises test accuracy over GD, full noise does not.",
     "Fig. 3", ("fig3: O12",),
     "At 1000 units layer-wise noise's gain is as large as the point that is asked: some nine "
     "seeds (2 core-hours more), or wider nets."),
    ("O13", "Narrow nets: both noises lower the trace and raise accuracy, layer-wise more.",
     "Fig. 4, 7, 9", ("fig7: O13 (MLP1)", "fig9: O13 (MLP3 at .05)"),
     "Ten seeds of MLP1, five of MLP3 at σ = .05 (4 core-hours)."),
    ("O14", "Wide nets: layer-wise noise helps, full noise hurts.", "Fig. 4, 8, 10",
     ("fig8: O14 (MLP2)", "fig10: O14 (MLP4)"),
     "MLP4's five layers with 2000 units, twice MLP3's (5 core-hours)."),
    ("O15", "Layer-wise noise has the lowest trace.", "Fig. 4, 9, 10",
     ("fig9: O15 end (MLP3 at .05)", "fig10: O15 end (MLP4)"),
     "MLP4's five layers with 2000 units, twice MLP3's (5 core-hours); of MLP3's trace the end is "
     "on its floor, at equal training loss the claim holds."),
    ("O16", "Toy CNN: both noises are steadier than SGD.", "Fig. 5, 11", ("fig11: O16",),
     "CIFAR-10 for 60 epochs at 30 times the rate, 5 seeds (1.5 core-hours)."),
    ("O17", "Wide CNN: layer-wise noise beats full noise in test loss.", "Fig. 5, 12",
     ("fig12: O17",), "CIFAR-10 for 40 epochs, 5 seeds (5 core-hours)."),
    ("O18", "ResNet: layer-wise noise is at least SGD where full noise falls below it.", "Fig. 6",
     ("fig6: O18",), "A ResNet of width 16 on 15 000 images of CIFAR-10, 5 seeds (9 core-hours)."),
    ("O19", "ResNet: with full noise the trace rises sharply from σ = .1 on.", "Fig. 6",
     ("fig6: O19",), "A ResNet of width 16 on 15 000 images of CIFAR-10, 5 seeds (9 core-hours)."),
)  # fmt: skip
LIMITS = {
    "O13": "How long the paper trained is not known: 2000 steps leave MLP3's noises undertrained, "
    "and at four times the rate both are above GD.",
    "O14": "The net has 2000 units: full noise has 7.5 times the weights' variance; in the "
    "paper's net of 5000, 19 times.",
    "O16": "The rate is 30 times the paper's, chosen so that SGD's test loss rises again.",
}
ORIGINAL = tuple(
    Original(
        id, text, place, tuple(f"orvieto2022/{claim}" for claim in by), settle,
        limits=LIMITS.get(id, ""),
    )
    for id, text, place, by, settle in ROWS
)  # fmt: skip
