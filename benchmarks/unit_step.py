"""A step-size controller that runs this package's terms in Diffrax's own loop."""

import diffrax as dfx


class UnitStep(dfx.AbstractStepSizeController):
    """Step at solver times 0, 1, 2, ... exactly.

    Diffrax's `ConstantStepSize` puts step k at the fraction k/m of the interval, which
    differs from the integers in the last digit. The width of a step, and with it a
    seed's numbers, would then depend on where the run was cut.
    """

    def wrap(self, direction):
        """Return this controller, since time runs forwards."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """Return the end of the first step; the controller has no state."""
        return t0 + 1, None

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        """Accept the step; the next one is one unit long."""
        return True, t1, t1 + 1, False, None, dfx.RESULTS.successful
