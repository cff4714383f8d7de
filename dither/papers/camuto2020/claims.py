"""The claims of Camuto et al. 2020."""

from dither.lab.original import Original

F2, F3, F4, F5 = (f"camuto2020/fig{n}" for n in (2, 3, 4, 5))
CIFAR = (
    "Ten networks on CIFAR-10 beside Boston, looked at every 5 steps of the first 100 (1.2 "
    "core-hours)."
)
UNIT = "2 × 32 nets on images in [0, 1], 5 seeds (2.5 core-hours, with C4)."
SINES = "256 units and 60 000 steps, 10 seeds (8 core-hours)."
FITTED = "Nets that fit their images, noise of variance .1, .25 and 1, 5 seeds (1.5 core-hours)."
ORIGINAL = (
    Original("C1", "For all batches and variances R is greater than E[C]; E[C] is negative in most "
             "networks, so this can hardly fail.", "Fig. 2a, b; §3",
             (f"{F2}: C1 Boston", f"{F2}: C1 norm Boston", f"{F2}: C1 CIFAR-10",
              f"{F2}: C1 norm CIFAR-10"), CIFAR),
    Original("C2", "R is always positive; it is a mean of squares, so this cannot fail.",
             "§3; eq. 11, 14", (f"{F2}: C2 Boston",), "Nothing: it cannot fail.", counts=False),
    Original("C3", "R remains dominant in early training: |E[C]|/R is below 1 at all steps.",
             "Fig. 2c, d", (f"{F2}: C3 Boston", f"{F2}: C3 CIFAR-10"), CIFAR),
    Original("C4", "Models trained with R and with noise have similar test loss.", "Fig. 3a; §3",
             (f"{F3}: C4 CONV", f"{F3}: C4 MLP"),
             limits="The rate is 50 times the paper's; at 10 times R is as near to the baseline as "
             "to noise. Of the CONV two trainings with other draws differ as much as R and noise."),
    Original("C5", "Both have similar parameter Hessians throughout training, lower than the "
             "baseline's.", "Fig. 3b; §3, §4", (f"{F3}: C5", f"{F3}: C5 throughout"), UNIT),
    Original("C6", "They have almost identical trajectories through the loss landscape.", "§3",
             (f"{F3}: C6",), UNIT),
    Original("C7", "Without noise every frequency is learnt.", "Fig. 4a", (f"{F4}: C7",), SINES),
    Original("C8", "Networks trained with noise learn functions with lower frequencies than those "
             "without.", "Fig. 4b; §4", (f"{F4}: C8 (std 0.1)",),
             "A few seeds more than ten: the interval reaches just beyond the floor."),
    Original("C9", "Networks trained on R learn the spectrum of those trained with noise.",
             "Fig. 4c", (f"{F4}: C9 (std 0.1)",), SINES),
    Original("C10", "With noise ‖W̃_k‖₂ falls as the layer index k grows.", "Fig. 5b; §4",
             (f"{F5}: C10 (std 0.1)",), SINES),
    Original("C11", "This order is clearly absent without noise.", "Fig. 5a; §4", (f"{F5}: C11",),
             SINES),
    Original("C12", "With noise Tr(W_k) falls as the layer index k grows.", "Fig. 5d; §4",
             (f"{F5}: C12 (std 0.1)",), SINES),
    Original("C13", "Noise gives large classification margins.", "abstract; §4; App. D",
             ("camuto2020/margins: C13",), FITTED),
    Original("C14", "Noise gives better calibrated classifiers.", "abstract; §4; Fig. F.7",
             ("camuto2020/calibration: C14", "camuto2020/calibration_svhn: C14",
              "camuto2020/calibration_cifar10: C14"),
             "Nets that fit SVHN and CIFAR-10, 5 seeds; SVHN is to be had nowhere here."),
    Original("C15", "Noise gives lower capacity measures.", "§4; App. E",
             ("camuto2020/capacity: C15",), FITTED),
)  # fmt: skip
