"""What eq. 14 prints as R for classification is not R: how wrong is it, and does it matter?

Camuto et al. 2020, eq. 9, 13, 14.

Theorem 1 gives (eq. 9), with the Jacobians J_i of the logits and H = diag(p) − ppᵀ,

    R = ½σ² Σ_sites E tr(JᵀHJ) = ½σ² Σ_sites E [Σ_i p_i‖J_i‖² − ‖Σ_i p_i J_i‖²];

eq. 14 keeps H's diagonal alone, Σ_i p_i(1 − p_i)‖J_i‖², and so is off by Σ_{i≠j} p_i p_j J_i·J_j.
(a) Both, on trained nets, over R. (b) One function of the input added to all logits changes no
probability: the loss and eq. 9 stay, eq. 14 is a parabola. (c) Test loss of nets trained without
noise, with it, on eq. 9, on eq. 14. (d) How far their answers are from those of nets trained with
noise from the same start: mean over test images of ½Σ_i |p_i − p_i'|.
"""

import numpy as np
from scipy.special import softmax

from dither.lab import Array, Claim, Figure, Run, Table, Verdict, rule
from dither.lab.rule import decide, exact, near
from dither.papers import style
from dither.papers.camuto2020 import nets
from dither.papers.camuto2020.nets import (
    ALL,
    EQ14,
    FEW,
    METHODS,
    SHIFTS,
    SHORT,
    short,
    unlearnt,
)

COLOURS = METHODS | {EQ14: style.RED}
SETTINGS = (ALL, FEW)
CLASSES = 10
FLOOR = 0.1  # of a distance, by which another has to be nearer


def runs(scale: nets.Scale) -> dict[str, Run]:
    return nets.nets(scale, methods=tuple(COLOURS))


def answers(t: Table, label: str) -> Array:
    """Probabilities of the images whose logits were kept, [S, images, C]."""
    outputs = [f"output/{i}/{c}" for i in range(nets.ANSWERS) for c in range(CLASSES)]
    z = np.stack([t.last(label, q) for q in outputs], 1)
    return softmax(z.reshape(len(t.seeds), nets.ANSWERS, CLASSES), -1)


def distance(t: Table, one: str, other: str) -> Array:
    """Mean total variation between the answers of two nets, [S]."""
    return np.abs(answers(t, one) - answers(t, other)).sum(-1).mean(-1) / 2


def printed(t: Table) -> Verdict:
    """Eq. 14 as printed: it equals eq. 9 within 5 % on trained nets."""
    if short(t):
        return None, {"why": SHORT}
    ratio = {label: t.last(label, EQ14) / t.last(label, "eq. 9") for label in t.labels}
    asked = [near(f"eq. 14/eq. 9 − 1, {m}", r, 1, within=0.05) for m, r in ratio.items()]
    return decide(*asked, unless=unlearnt(t, t.labels))


def shifted(t: Table, label: str, form: str) -> Array:
    """The value over the unshifted one, [S, SHIFTS]."""
    values = np.stack([t.last(label, f"shifted {form}/{s:g}") for s in SHIFTS], 1)
    return values / values[:, [SHIFTS.index(0.0)]]


def common(t: Table) -> Verdict:
    """At a shift of the norm of a row, for every net: loss and eq. 9 change by < 0.1 %, eq. 14 by >
    10 %. The first two are identities, and the parabola of eq. 14 is given by the net: nothing is
    random.
    """
    at, labels = SHIFTS.index(1.0), t.labels
    moved = {
        form: np.concatenate([np.abs(shifted(t, m, form)[:, at] - 1) for m in labels])
        for form in ("loss", "eq. 9", EQ14)
    }
    asked = [exact(f"change of {form}", moved[form], high=1e-3) for form in ("loss", "eq. 9")]
    return decide(*asked, exact(f"change of {EQ14}", moved[EQ14], low=0.1))


def nearer(among: str):
    """The answers of eq. 9's nets are nearer to GNI's than those of eq. 14's nets."""

    def check(t: Table) -> Verdict:
        if short(t):
            return None, {"why": SHORT}
        gni = f"GNI, {among}"
        numbers = {
            f"{name} to GNI": distance(t, f"{m}, {among}", gni)
            for m, name in (("R", "eq. 9"), (EQ14, EQ14), ("none", "none"))
        }
        numbers["eq. 14 to eq. 9"] = distance(t, f"{EQ14}, {among}", f"R, {among}")
        asked = rule.nearer(
            "eq. 9 nearer than eq. 14", numbers["eq. 9 to GNI"], numbers["eq. 14 to GNI"], by=FLOOR
        )
        why = unlearnt(t, [f"{m}, {among}" for m in ("R", EQ14, "GNI")])
        return decide(asked, unless=why, numbers=numbers)

    return check


def useful(among: str):
    """Trained on either, the test loss ends nearer to that of the other than to the baseline's."""

    def check(t: Table) -> Verdict:
        if short(t):
            return None, {"why": SHORT}
        loss = {m: t.last(f"{m}, {among}", "loss/test") for m in COLOURS}
        close, far = np.abs(loss[EQ14] - loss["R"]), np.abs(loss[EQ14] - loss["none"])
        numbers = {f"test loss, {m.replace('R', 'eq. 9')}": v for m, v in loss.items()}
        for q, name in (("accuracy/test", "test accuracy"), ("eq. 9", "R by eq. 9")):
            numbers |= {
                f"{name}, {m.replace('R', 'eq. 9')}": t.last(f"{m}, {among}", q) for m in COLOURS
            }
        asked = rule.nearer("nearer to eq. 9's than to none's", close, far, by=FLOOR)
        why = unlearnt(t, [f"{m}, {among}" for m in COLOURS])
        return decide(asked, unless=why, numbers=numbers)

    return check


def plot(t: Table):
    picture, ((ratios, shift), (loss, far)) = style.grid(2, 2, height=3.0)
    for i, (method, colour) in enumerate(COLOURS.items()):
        name = "eq. 9" if method == "R" else method
        for j, among in enumerate(SETTINGS):
            label, at = f"{method}, {among}", [j + 0.18 * (i - 1.5)]
            ratio = t.last(label, EQ14) / t.last(label, "eq. 9")
            style.dots(ratios, at, ratio[:, None], colour, ms=6, label=None if j else name)
            change = t.last(label, "loss/test") / t.last(f"none, {among}", "loss/test")
            style.dots(loss, at, change[:, None], colour, ms=6)
            if method != "GNI":
                gap = distance(t, label, f"GNI, {among}")[:, None]
                style.dots(far, at, gap, colour, ms=6)
    for form, colour in (("eq. 9", style.ORANGE), (EQ14, style.RED), ("loss", style.BLACK)):
        dash = ":" if form == "loss" else "-"
        values = shifted(t, f"none, {ALL}", form)
        style.band(shift, SHIFTS, values, colour, ls=dash, label=form)
    ratios.axhline(1, color=style.GREY, lw=1, ls=":")
    ratios.set(ylabel="eq. 14 / eq. 9", title="(a)")
    shift.set(
        xlabel="function common to all logits", ylabel="over its value without",
        title="(b) net without noise", ylim=(0, 4),
    )  # fmt: skip
    loss.set(ylabel="test loss over none's", title="(c)")
    far.set(ylabel="answers: distance to GNI's", title="(d)", ylim=(0, None))
    for ax in (ratios, loss, far):
        ax.set_xticks(range(2), SETTINGS)
        ax.set_xlim(-0.5, 1.5)
    style.legend(ratios, loc="best", ncols=2)
    style.legend(shift, loc="upper center")
    return picture


figure = Figure(
    runs,
    plot,
    smoke=nets.SMOKE,
    quick=nets.QUICK,
    paper=nets.PAPER,
    claims=[
        Claim("eq. 14", "eq. 14 is Theorem 1's R, within 5 % on trained nets", printed),
        Claim(
            "eq. 14 ours",
            "a function added to all logits leaves loss and eq. 9 alone and moves eq. 14 by > 10 %",
            common,
        ),
        Claim(
            "eq. 14 training",
            "trained on eq. 14 the test loss ends nearer to eq. 9's than to the baseline's",
            useful(ALL),
        ),
        Claim(f"eq. 14 training ({FEW})", "the same, images fitted", useful(FEW)),
        Claim("eq. 14 noise", "trained on eq. 9, answers are nearer to GNI's", nearer(ALL)),
        Claim(f"eq. 14 noise ({FEW})", "the same, images fitted", nearer(FEW)),
    ],
    departures=[
        *nets.DEPARTURES,
        "not a figure of the paper; σ² = 0.1 at every layer's input, on whatever the net was "
        "trained; 1000 test images, 100 in (b), 50 in (d)",
    ],
    seeds=nets.SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 1.9, "paper": 2400},
)
