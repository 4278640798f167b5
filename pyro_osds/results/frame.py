"""Posterior draws as a table: a row for each draw, a column for each number at each site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


def to_dataframe(samples: Mapping[str, Tensor]) -> pd.DataFrame:
    """The table, with columns ``chain`` and ``draw`` first.

    Arguments:
        samples: Draws by site, ``(num_chains, num_samples, *shape)``.

    Returns:
        Columns of a site that is no single number are named as in ArviZ's tables: ``theta[0]``, ``cov[0, 1]``.

    Raises:
        ImportError: Without pandas.

    Example:
        >>> import torch
        >>> to_dataframe({"mu": torch.zeros(2, 3), "theta": torch.zeros(2, 3, 2)}).columns.tolist()
        ['chain', 'draw', 'mu', 'theta[0]', 'theta[1]']
    """
    try:
        import pandas as pd  # here, since it takes half a second
    except ImportError as error:
        raise ImportError(
            "to_dataframe needs pandas: pip install pandas. get_samples() gives the same draws as tensors."
        ) from error
    columns: dict[str, np.ndarray] = {}
    for name, value in samples.items():
        array = value.detach().cpu().numpy()
        num_chains, num_samples, *shape = array.shape
        if not columns:
            columns["chain"] = np.repeat(np.arange(num_chains), num_samples)
            columns["draw"] = np.tile(np.arange(num_samples), num_chains)
        flat = array.reshape(num_chains * num_samples, -1)
        for column, index in enumerate(np.ndindex(*shape)):
            label = f"{name}[{', '.join(map(str, index))}]" if shape else name
            # A site may have the name of one of the first two columns.
            columns[label if label not in ("chain", "draw") else f"{label}_"] = flat[:, column]

    return pd.DataFrame(columns)
