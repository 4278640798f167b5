"""OSDS as a kernel of Pyro's MCMC, for code that is built around ``MCMC(kernel, ...)``."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_osds.osds import OSDS
from pyro_osds.runtime.options import explains_options, unknown_attribute, unknown_option

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyro_osds.choices import KernelOptions

# A stretch of the chain: draws in a batch cost little, and few are thrown away at the end.
_DRAWS_AT_ONCE = 1000


class OSDSKernel(MCMCKernel):
    """A one-step diffusion sampler where ``NUTS(model)`` stood, unchanged around it.

    The first chain trains the flow (in each process, where ``MCMC`` runs chains in several); each chain is an
    independence Metropolis-Hastings chain of its own over fresh draws, so R-hat and the effective sample size show a
    flow that is wrong. Steps of warm-up cost next to nothing and are not needed: ``warmup_steps=0`` will do.

    Arguments:
        model: A Pyro model.
        options: As for :class:`OSDS`, except the numbers of samples and chains, which are ``MCMC``'s. ``transforms``
            belong here rather than to ``MCMC``, since the kernel hands out values on the constrained side.

    Raises:
        TypeError: If there is no such option.
        ValueError: If an option belongs to ``MCMC``, or is out of range.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))
        >>> kernel = OSDSKernel(model)
        >>> mcmc = MCMC(kernel, num_samples=300, warmup_steps=0, disable_progbar=True)
        >>> mcmc.run()
        >>> print(f"{mcmc.get_samples()['x'].mean():.0f}")
        1

        What ``MCMC`` does with it:

        >>> kernel.setup(0)  # trained already: a fresh chain
        >>> list(kernel.sample(kernel.initial_params)), list(kernel.logging())
        (['x'], ['log evidence'])
        >>> kernel.diagnostics()["reliable"]
        True
    """

    @explains_options("OSDSKernel", hint="numbers of samples and chains are MCMC's: MCMC(OSDSKernel(model), 1000).")
    def __init__(self, model: Callable[..., Any] | None = None, **options: Unpack[KernelOptions]) -> None:
        given = sorted({"num_samples", "num_chains"} & options.keys())
        if given:
            raise ValueError(f"{given} belong to MCMC: pass them there, not to OSDSKernel.")
        known = [name for name in inspect.signature(OSDS).parameters if name not in ("num_samples", "num_chains")]
        for name in options:
            if name not in known:
                raise unknown_option("OSDSKernel", name, known)
        if options.get("potential_fn") is None or "initial_params" in options:
            OSDS(model, **options)  # to have the options looked at before MCMC begins; it may bring initial_params
        self.model = model
        self.transforms: dict[str, Any] = {}
        self.osds: OSDS | None = None
        self._options = options
        self._initial_params: Mapping[str, Tensor] | Tensor | None = options.pop("initial_params", None)
        self._acceptance: list[float] = []
        self._queue: list[dict[str, Tensor]] = []

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Train, unless the same arguments have been trained on, and start a chain.

        Arguments:
            warmup_steps: What ``MCMC`` was given; nothing depends on it.
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.
        """
        if self.osds is None or not self.osds.is_trained_on(*args, **kwargs):
            options = {"disable_progbar": True, **self._options}
            self.osds = OSDS(
                self.model,
                num_samples=_DRAWS_AT_ONCE,
                num_chains=1,
                initial_params=self._initial_params,
                **options,
            )
            self.osds.run(*args, **kwargs)
        self._acceptance, self._queue = [], []

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Values of the first draw, by site; on the constrained side, as all values that the kernel hands out."""
        if not self._queue:
            self._refill()

        return self._queue[-1]

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        self._initial_params = params

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The chain's next state, by site.

        Arguments:
            params: The last state. The next one does not depend on how it is given.
        """
        if not self._queue:
            self._refill()

        return self._queue.pop()

    def _refill(self) -> None:
        """A stretch of the chain from fresh draws; its first state is drawn by weight, so stretches may be joined."""
        osds = self._trained()
        osds.redraw()
        samples = osds.get_samples()
        # MCMC sets this attribute where the user wants to keep some sites only.
        names = getattr(self, "save_params", samples)
        states = [{name: samples[name][i] for name in names} for i in range(_DRAWS_AT_ONCE)]
        self._queue = states[::-1]
        self._acceptance.append(osds.diagnostics()["acceptance rate"]["chain 0"])

    def _trained(self) -> OSDS:
        """The sampler, once there is one.

        Raises:
            RuntimeError: Before ``setup``.
        """
        if self.osds is None:
            raise RuntimeError(
                "OSDSKernel has not been set up: MCMC does that, mcmc = MCMC(OSDSKernel(model), 1000), then "
                "mcmc.run(...) with the model's arguments."
            )

        return self.osds

    if not TYPE_CHECKING:  # for type checkers an attribute that does not exist is an error

        def __getattr__(self, name: str) -> Any:
            # What is a method of the sampler is one of MCMC's here.
            hint = ""
            if not name.startswith("_") and hasattr(OSDS, name):
                hint = f"it belongs to a sampler: MCMC(OSDSKernel(model), 1000).{name}, or OSDS(model).{name}"
            if hasattr(type(self), name):
                object.__getattribute__(self, name)  # a property that failed tells its own reason
            raise unknown_attribute(type(self), name, hint)

    def logging(self) -> OrderedDict[str, str]:
        """What the progress bar shows."""
        return OrderedDict([("log evidence", f"{self._trained().log_evidence:.3f}")])

    def diagnostics(self) -> dict[str, Any]:
        """Divergences (none), acceptance rate, and the log evidence with its standard error and verdict."""
        evidence = self._trained().evidence

        return {
            "divergences": [],
            "acceptance rate": sum(self._acceptance) / max(1, len(self._acceptance)),
            "log evidence": evidence.log_evidence,
            "log evidence se": evidence.std_error,
            "pareto k": evidence.pareto_k,
            "reliable": evidence.reliable,
        }
