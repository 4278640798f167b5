r"""What a model would observe: runs of it in which observed sites are drawn instead of given.

.. math::
    \tilde y \sim p(\tilde y \mid z), \qquad z \sim p(z \mid y) \ \text{(posterior predictive)}
    \quad\text{or}\quad z \sim p(z) \ \text{(prior predictive)}

Only sites are drawn. A ``pyro.factor`` and a ``poutine.scale`` change densities and say nothing about how data come
about, so they have no part in it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import broadcast_shape
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_osds.model.discrete.decode import decode
from pyro_osds.model.distributions.edge_draws import correlations
from pyro_osds.model.distributions.latents import quiet_draws
from pyro_osds.model.foreign.state import State
from pyro_osds.model.pyro_internals import Subsample, is_numerical, is_shown
from pyro_osds.model.target import ModelTarget
from pyro_osds.runtime.errors.lines import is_refusal, own_line
from pyro_osds.runtime.errors.told import first_line, is_told, named, told


class Predictive:
    """A fitted model as a source of observations.

    One run of the model for each draw: torch has no batched samplers for most distributions.

    Arguments:
        target: The posterior that latents come from.
        args: Positional arguments of the model, those of the fit or others.
        kwargs: Keyword arguments of the model.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     pyro.sample("y", dist.Poisson(rate), obs=y)
        >>> y = torch.tensor([2.0, 0.0, 3.0])
        >>> predictive = Predictive(ModelTarget(model, (y,)), (y,))
        >>> predictive.posterior({"rate": torch.ones(10)}, 10)["y"].shape
        torch.Size([10, 3])
    """

    def __init__(
        self, target: ModelTarget, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.target = target
        self._call = functools.partial(target.call, *args, **(kwargs or {}))

    def posterior(self, samples: Mapping[str, Tensor], num_draws: int, given_data: bool = False) -> dict[str, Tensor]:
        """Draws of everything that is not a continuous latent: observed sites, discrete latents, deterministic values.

        Discrete latents are drawn given the continuous ones; so observations are those of new rows, not of the same
        rows once more.

        Arguments:
            samples: Posterior draws of the continuous latents by site, ``(num_draws, *shape)``.
            num_draws: How many there are.
            given_data: Whether discrete latents are drawn given the observations, too.

        Returns:
            ``{site: (num_draws, *shape)}``, in the order of the model.

        Raises:
            ValueError: If a site cannot be drawn, or has another shape than its draws.
        """
        rows = [{name: value[i] for name, value in samples.items()} for i in range(num_draws)]
        needs_decoding = given_data or self.target.has_latents_below_discrete
        if needs_decoding and self.target.discrete_sites:
            rows = [row | self._discrete(row, given_data) for row in rows]
        drawn = {name: value for name, value in _predictive_runs(self._call, rows).items() if name not in samples}
        if not drawn:
            raise ValueError(
                "The model has no observed sites, so there is nothing to predict. Write its likelihood as "
                "pyro.sample(..., obs=...) rather than as pyro.factor."
            )

        return drawn

    def prior(self, num_draws: int) -> dict[str, Tensor]:
        """Draws of all sites from the prior, ``{site: (num_draws, *shape)}``."""
        return prior_predictive(self._call, num_draws)

    def _discrete(self, row: Mapping[str, Tensor], given_data: bool) -> dict[str, Tensor]:
        """One draw of the discrete latents given the continuous ones, by forward filtering and backward sampling."""
        model = self._call if given_data else _hidden(self._call)

        names, jointly = self.target.discrete_sites, self.target.jointly_summed

        return decode(model, row, names, self.target.nesting, jointly=jointly)


def unchanging(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    """A call of a model that leaves its arguments and buffers as they are, whatever it does to them.

    Arguments:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    return functools.partial(State(model, args, kwargs).call, args, kwargs)


def prior_predictive(call: Callable[[], Any], num_draws: int) -> dict[str, Tensor]:
    """Draws of all sites of a model from its prior, deterministic values among them.

    Arguments:
        call: Runs the model.
        num_draws: How many.

    Returns:
        ``{site: (num_draws, *shape)}``, in the order of the model.

    Raises:
        ValueError: If a site cannot be drawn.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     pyro.sample("y", dist.Poisson(rate), obs=torch.tensor(3.0))
        >>> {name: value.shape for name, value in prior_predictive(model, 10).items()}
        {'rate': torch.Size([10]), 'y': torch.Size([10])}
    """
    return _predictive_runs(call, [{}] * num_draws)


def _predictive_runs(call: Callable[[], Any], rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Run the model once for each row of given latents; what was drawn, stacked, with deterministic values."""
    drawn = list(_runs(call, rows))
    first = {name: value.shape for name, value in drawn[0].items()}
    for values in drawn:
        shapes = {name: value.shape for name, value in values.items()}
        if shapes != first:
            name = sorted(set(shapes.items()) ^ set(first.items()))[0][0]
            raise ValueError(
                f"Site {name!r} differs from draw to draw, in shape {_shape(first.get(name))} and "
                f"{_shape(shapes.get(name))}: such draws are no array. Make the site unconditional, of one size."
            )

    return {name: torch.stack([values[name] for values in drawn]) for name in first}


def _runs(call: Callable[[], Any], rows: Sequence[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    with poutine.block(), torch.no_grad(), pyro.validation_enabled(False), warnings.catch_warnings():
        quiet_draws()
        for row in rows:
            run = PredictiveRun(row)
            try:
                with run:
                    call()
            except Exception as error:
                new = _explained(error, run)
                if new is error:
                    raise
                raise new from error
            yield run.values


def _explained(error: Exception, run: PredictiveRun) -> Exception:
    """The error to raise for a model that failed at one of some draws."""
    if isinstance(error, RuntimeError) and is_numerical(error):
        return ValueError(
            f"The model failed at one of the draws: {first_line(error)}. Check it for values that overflow, or add a "
            "jitter to the matrix."
        )
    line = own_line(error)
    if is_told(error) or is_refusal(error) or isinstance(error, Warning) or not line:
        return error
    after = f"after site {next(reversed(run.values))!r}" if run.values else "before its first site"

    return told(error, f"The model failed at one of the draws, {after}, in {line}: {named(error)}.")


class PredictiveRun(Messenger):
    """Gives latents their values and draws everything else, observed or not.

    As the outermost handler it sees each site after plates and the user's own handlers, so values that
    ``poutine.condition`` observes are drawn, too, and those that ``poutine.do`` fixes are kept.

    Arguments:
        given: Values by site.
    """

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = given
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if _is_computed(msg):
            return
        # The model may go on to change what it gets, and draws are somebody else's.
        msg["value"] = self._given(msg).clone() if msg["name"] in self.given else _draw(msg)
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], (Subsample, Unit)):
            value = msg["value"]
            self.values[msg["name"]] = value.clone() if isinstance(value, Tensor) else value

    def _given(self, msg: Any) -> Tensor:
        name, shape = msg["name"], msg["fn"].shape()
        value = self.given[name]
        if value.shape != shape:
            try:
                return value.reshape(value.shape[max(0, value.dim() - len(shape)) :]).expand(shape)
            except RuntimeError as error:
                raise ValueError(
                    f"Latent site {name!r} has shape {tuple(shape)} with these arguments and {tuple(value.shape)} in "
                    "the posterior draws. Predict for arguments with the same groups, or make this site a part of "
                    "the model that new arguments leave alone."
                ) from error

        return value


def _draw(msg: Any) -> Tensor:
    fn = msg["fn"]
    try:
        if msg["is_observed"] and isinstance(msg["value"], Tensor):
            # Where one distribution stands for all values that were observed, each of them is drawn.
            batch = msg["value"].shape[: max(0, msg["value"].dim() - fn.event_dim)]
            fn = fn.expand(broadcast_shape(batch, fn.batch_shape)) if batch != fn.batch_shape else fn
        exact = correlations(fn)
        return fn(*msg["args"], **msg["kwargs"]) if exact is None else exact
    except (NotImplementedError, RuntimeError, ValueError, AssertionError) as error:
        why = type(error).__name__ + (f": {first_line(error)}" if str(error).strip() else "")
        raise ValueError(
            f"Site {msg['name']!r} cannot be drawn from its distribution {type(fn).__name__} ({why}). Give it a "
            "distribution that has a sampler and a proper density (a hidden Markov one needs duration=); for "
            "new inputs, pass observations of their length or None."
        ) from error


def _is_computed(msg: Any) -> bool:
    """Whether a site's value is no draw: indices of a plate, a factor's nothing, what the model computes."""
    return isinstance(msg["fn"], (Subsample, Unit)) or is_shown(msg)


class _Hide(Messenger):
    """Observations count for nothing."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["mask"] = False


def _hidden(call: Callable[[], Any]) -> Any:
    def model() -> Any:
        with _Hide():
            return call()

    return model


def _shape(shape: Collection[int] | None) -> str:
    return "none at all" if shape is None else str(tuple(shape))
