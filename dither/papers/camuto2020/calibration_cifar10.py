"""Calibration with and without noise on CIFAR-10.   Camuto et al. 2020, Fig. F.7

Reliability diagrams of test images, and the expected calibration error with the error that a
perfectly calibrated net would show by chance (tick): CONV at paper scale, an MLP below.
"""

from dither.papers.camuto2020.colour import figure_of

figure = figure_of("cifar-10")
