"""Losses per sample, and the columns of the square root of their Hessian at the output."""

from dither.loss.anyloss import AnyLoss as AnyLoss
from dither.loss.losses import NAMES as NAMES
from dither.loss.losses import CrossEntropy as CrossEntropy
from dither.loss.losses import HalfSquare as HalfSquare
from dither.loss.losses import Logistic as Logistic
from dither.loss.losses import LogLikelihood as LogLikelihood
from dither.loss.losses import get as get
