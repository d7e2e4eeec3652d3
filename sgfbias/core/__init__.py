"""The engine: problem x network x dynamics -> trajectory.

The engine names no system (such as diagonal networks) and imports nothing else of the
package. Its modules, in the order in which they are best read:

- `problem`, `loss`: the data and the loss, that is the mean loss L and its per-example
  derivatives.
- `network`: what a network may declare besides its outputs.
- `coordinates`, `weights`: what moves. Coordinates have a position, and say how a
  cotangent on the outputs moves it. Every model has the coordinates of its own weights.
- `noise`: the distribution of the random part of the cotangent.
- `jacobian`: the Jacobian of the outputs in the parameters, as an operator.
- `taps`, `gram`, `kernel`, `tangent`: the inputs and outputs of the layers inside a
  model, and the tangent kernel that they give.
- `dynamics`: what the engine asks of all dynamics, each with a default.
- `flow`, `term`: the flows, and their Diffrax terms with drift and noise in one
  product.
- `descent`, `iteration`, `optax_keys`, `sampling`: the discrete algorithms, which share
  the flows' clock.
- `schedule`: step sizes that vary, and the clock that turns steps into flow time.
- `brownian`, `counter`: random numbers by absolute index, for seeds, Brownian
  increments and random streams.
- `starts`: a start of its own for every seed.
- `simulate`: the main function, which checks and completes its arguments, runs the
  dynamics and gives every seed a status.
- `run`: what `simulate` passes to one of the two ways of running, and what it gets
  back.
- `stepped`, `engine`, `tiles`: runs of fixed steps, in tiles of seeds and chunks of
  steps, by one compiled program.
- `adaptive`: runs by an adaptive ODE solver.
- `gain`: the control of its steps by what they gain, for models with kinks.
- `solver`: the package's own solvers, which take any Diffrax terms.
- `record`, `observe`: what is recorded, and when.
- `trajectory`: the result, which holds the recorded series, the final values, and a
  status with its reason for every seed.
- `fused`: the choice of a kernel that runs the whole time loop.
- `arguments`, `checks`: errors that say what was given, what was expected and what to
  do.
- `cached`: a cache of what tracing a function reveals.
- `progress`, `provenance`, `references`: the progress bar, the origin of a dataset, and
  the works to cite for it.
"""
