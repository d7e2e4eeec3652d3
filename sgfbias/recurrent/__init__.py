"""To which length does a recurrent network hold, and why not further?

A linear recurrent network `s_t = A s_{t-1} + B x_t`, `y_t = C s_t` moves by gradient
flow or descent on its risk over sequences of length k. Infinitely many networks fit the
first k lags of the teacher exactly; the start decides what lies beyond. The functions
for one's own cells measure the same: the loss at other lengths, and the memory that
explains it.
"""

from sgfbias.recurrent.gain import Memory as Memory
from sgfbias.recurrent.gain import lyapunov as lyapunov
from sgfbias.recurrent.gain import memory as memory
from sgfbias.recurrent.horizon import TailPenalty as TailPenalty
from sgfbias.recurrent.horizon import tail as tail
from sgfbias.recurrent.lengths import Curve as Curve
from sgfbias.recurrent.lengths import extrapolate as extrapolate
from sgfbias.recurrent.linear import LinearRNN as LinearRNN
from sgfbias.recurrent.mixed import Masked as Masked
from sgfbias.recurrent.mixed import MixedLengths as MixedLengths
from sgfbias.recurrent.report import Spectrum as Spectrum
from sgfbias.recurrent.report import hankel_values as hankel_values
from sgfbias.recurrent.report import spectrum as spectrum
from sgfbias.recurrent.risk import PopulationRisk as PopulationRisk
from sgfbias.recurrent.sequences import Sequences as Sequences
from sgfbias.recurrent.sequences import read_sequences as read_sequences
from sgfbias.recurrent.theory import bad_interpolator as bad_interpolator
from sgfbias.recurrent.theory import conserved as conserved
from sgfbias.recurrent.theory import late_error as late_error
from sgfbias.recurrent.theory import norm_rates as norm_rates
from sgfbias.recurrent.theory import scalar_rates as scalar_rates
from sgfbias.recurrent.theory import sufficient_length as sufficient_length
from sgfbias.recurrent.theory import two_lag_interpolator as two_lag_interpolator
from sgfbias.recurrent.unroll import Unroll as Unroll
