"""The claims of Levi et al. 2022."""

from dither.lab.original import Original

F2, F3, F6, F8 = (f"levi2022/fig{n}" for n in (2, 3, 6, 8))
LARGE = "Forty seeds at the decisive scale: the gain over the decay phase is on its floor."
CONV = "Eleven seeds at the decisive scale (3 core-hours): only nodes on every layer come near."
BOTH = "FC of 512³ and a CNN of 32 and 64 filters (8 core-hours): `--scale decisive`."
ATTACKED = "1 000 attacked images for FC of 512³ and the CNN (8 core-hours): `--scale decisive`."
DIGITS = "20 000 images of MNIST and the 2 007 test digits of USPS, 5 seeds (3 core-hours)."
PHASES = "1024 units for 600 steps, 5 seeds and more."
ALIKE = "All methods of Fig. 7 and 8 with 5 seeds (3.4 core-hours)."
TOY = "Five seeds of App. B's model, half an hour: `dither reproduce levi2022/toy --scale paper`."
ROWS = (
    ("L1", "FC: in-NINR in the catapult phase has the best accuracy at large corruption.",
     "Fig. 2, left", (f"{F2}: L1 scan",), LARGE),
    ("L2", "CNN: the same.", "Fig. 2, right", (f"{F2}: L2",), CONV),
    ("L3", "NINR in the decay phase is at least as good there as L2, dropout and none.", "Fig. 2",
     (f"{F2}: L3", f"{F2}: L3'", f"{F2}: L3 CNN", f"{F2}: L3' CNN"), BOTH),
    ("L4", "Training on corrupted data (CDT .4) costs clean accuracy; decay NINR does not.",
     "Fig. 2; Table 2", (f"{F2}: L4", f"{F2}: L4 CNN"), BOTH),
    ("L5", "Decoupled phase: the node's weights hardly move; at the figure's σ = 0 it cannot fail.",
     "Fig. 3", (f"{F3}: L5 (logits)",), "Nothing: it cannot fail."),
    ("L6", "Decay phase: the node's weights decay.", "Fig. 3", (f"{F3}: L6 (logits)",),
     PHASES),
    ("L7", "Catapult phase: loss and weights rise, then the loss recovers.", "Fig. 3",
     (f"{F3}: L7 (logits)",), PHASES),
    ("L8", "Divergent phase: the loss never recovers.", "Fig. 3", (f"{F3}: L8 (logits)",),
     PHASES),
    ("L9", "MNIST → USPS, CNN: catapult NINR is above all others.", "Table 1",
     ("levi2022/table1: L9",), DIGITS),
    ("L10", "MNIST → USPS, FC: dropout is first.", "Table 1", ("levi2022/table1: L10",),
     "Fifteen seeds at the decisive scale (3 core-hours): five do not settle its lead by a point."),
    ("L11", "Decay NINR keeps clean accuracy.", "Table 2",
     ("levi2022/table2: L11", "levi2022/table2: L11 CNN"), BOTH),
    ("L12", "CDT lowers clean accuracy.", "Table 2",
     ("levi2022/table2: L12 anew", "levi2022/table2: L12 CNN"),
     "Seeds 5 to 14 of the FC, half an hour: `dither reproduce levi2022/table2 --scale decisive "
     "--only 'FC none' --only 'FC CDT*'`."),
    ("L13", "FGSM: dropout is best.", "Fig. 6", (f"{F6}: L13", f"{F6}: L13 CNN"),
     ATTACKED),
    ("L14", "PGD: NINR is best.", "Fig. 6", (f"{F6}: L14", f"{F6}: L14 CNN"),
     ATTACKED),
    ("L15", "NINR is above L2 and none under both attacks.", "Fig. 6",
     (f"{F6}: L15", f"{F6}: L15 CNN"), ATTACKED),
    ("L16", "Other laws of the node's noise give the same curves.", "Fig. 7",
     ("levi2022/fig7: L16", "levi2022/fig7: L16 CNN"), ALIKE),
    ("L17", "NINR helps with Adam and RMSprop too.", "Fig. 8; Table 3",
     tuple(f"{F8}: L17 {net} {name} {phase}" for net in ("FC", "CNN")
           for name in ("Adam", "RMSprop") for phase in ("decay", "catapult")), ALIKE),
    ("L18", "VGG on CIFAR-10: decay NINR is more robust and keeps clean accuracy.", "Fig. 9",
     ("levi2022/fig9: L18", "levi2022/fig9: L18 clean"),
     "The whole of CIFAR-10 at full width, for its clean accuracy (14 days on a processor)."),
    ("L19", "Eq. 13 describes the network's dynamics.", "App. B", ("levi2022/toy: L19",), TOY),
    ("L20", "The phases are bounded by 2/(η max(w₁², w_NI²)).", "App. B", ("levi2022/toy: L20",),
     TOY),
)  # fmt: skip
LIMITS = {
    "L18": "Its robustness holds by far, 30 points. Clean accuracy falls by 3.2 points with half "
    "of the filters and 20 000 images; of the whole net and all images this is not known.",
    "L16": "At one σ the uniform law has a third of the Gaussian's variance; with the Gaussian's "
    "variance, σ times √3, its curves are within 3 points ('L16 variance FC').",
}
ORIGINAL = tuple(
    Original(*row, counts=row[0] != "L5", limits=LIMITS.get(row[0], "")) for row in ROWS
)
