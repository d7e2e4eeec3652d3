"""A small network on images of digits.

Its study asks whether the flow ends where SGD ends for a model that is not a diagonal
network.
"""

from sgfbias.digits.problem import draw_digits as draw_digits
from sgfbias.digits.problem import load_digits as load_digits
