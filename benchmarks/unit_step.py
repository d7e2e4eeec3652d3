"""A step-size controller to run this package's terms by Diffrax's own loop."""

import diffrax as dfx


class UnitStep(dfx.AbstractStepSizeController):
    """Solver times 0, 1, 2, ... exactly.

    Diffrax's `ConstantStepSize` places step k at the fraction k/m of the interval, which is off the integers in the last digit: the width
    of a step, and so a seed's numbers, would depend on where the run was cut.
    """

    def wrap(self, direction):
        """No direction: time runs forwards."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The end of the first step, and no state."""
        return t0 + 1, None

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """Keep every step; the next one ends one later."""
        return True, t1, t1 + 1, False, None, dfx.RESULTS.successful
