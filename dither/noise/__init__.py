"""The noises, the laws they are drawn from, and what is needed to write one of one's own."""

from dither.noise.here import Here as Here
from dither.noise.here import gather as gather
from dither.noise.here import norm2 as norm2
from dither.noise.here import spread as spread
from dither.noise.laws import Dropout as Dropout
from dither.noise.laws import Gaussian as Gaussian
from dither.noise.laws import Law as Law
from dither.noise.laws import TwoGaussian as TwoGaussian
from dither.noise.laws import TwoPoint as TwoPoint
from dither.noise.laws import Uniform as Uniform
from dither.noise.laws import dropout as dropout
from dither.noise.laws import gaussian as gaussian
from dither.noise.laws import two_gaussian as two_gaussian
from dither.noise.laws import two_point as two_point
from dither.noise.laws import uniform as uniform
from dither.noise.noises import Additive as Additive
from dither.noise.noises import DropConnect as DropConnect
from dither.noise.noises import Multiplicative as Multiplicative
from dither.noise.noises import Neftune as Neftune
from dither.noise.noises import Node as Node
from dither.noise.noises import Relative as Relative
from dither.noise.noises import Sigma as Sigma
from dither.noise.noises import Weight as Weight
from dither.noise.noises import checked as checked
from dither.noise.shared import DropPath as DropPath
from dither.noise.shared import Locked as Locked
