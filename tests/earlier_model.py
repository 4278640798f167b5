import pyro
import pyro.distributions as dist
import torch

Y = torch.tensor([1.0, 0.0, 1.0, 1.0])


def coin(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("tosses", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)
