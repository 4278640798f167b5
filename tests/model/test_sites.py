"""The flat layout: values by site and one vector, there and back, and values that do not fit."""

import pytest
import torch

from pyro_osds.model.sites import LatentSite, flatten, split

# A scalar, a matrix of another type, and a simplex of three values in two coordinates.
SITES = (
    LatentSite("scalar", 0, 1, torch.Size([]), torch.Size([]), torch.float32),
    LatentSite("matrix", 1, 7, torch.Size([2, 3]), torch.Size([2, 3]), torch.float64),
    LatentSite("simplex", 7, 9, torch.Size([2]), torch.Size([3]), torch.float32),
)
LIKE = torch.empty(0, dtype=torch.float64)


def values(*leading):
    return {s.name: torch.randn((*leading, *s.unconstrained_shape), dtype=s.dtype) for s in SITES}


def test_split_cuts_in_order():
    # Row-major, with each site's own shape and type.
    by_site = split(SITES, torch.arange(9.0))
    assert {name: value.tolist() for name, value in by_site.items()} == {
        "scalar": 0.0,
        "matrix": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        "simplex": [7.0, 8.0],
    }
    assert [value.dtype for value in by_site.values()] == [torch.float32, torch.float64, torch.float32]


def test_split_of_a_batch_under_vmap():
    # What the ladder does: one vector per run, gradients included.
    z = torch.randn(4, 9, requires_grad=True)
    by_site = torch.func.vmap(lambda row: split(SITES, row))(z)
    assert by_site["matrix"].shape == (4, 2, 3) and by_site["scalar"].shape == (4,)
    (gradient,) = torch.autograd.grad(by_site["matrix"].sum(), z)
    assert gradient.tolist() == [[0.0] + [1.0] * 6 + [0.0] * 2] * 4


def test_flatten_is_the_inverse_of_split():
    # There and back again, both ways.
    z = torch.arange(9.0, dtype=torch.float64)
    assert torch.equal(flatten(SITES, split(SITES, z), LIKE), z[None])
    given = values()
    for name, value in split(SITES, flatten(SITES, given, LIKE)[0]).items():
        assert torch.equal(value, given[name]), name


def test_flatten_several_starts():
    # One row for each start; the order of the mapping does not matter, the type is that of the points.
    given = values(5)
    z = flatten(SITES, dict(reversed(given.items())), LIKE)
    assert z.shape == (5, 9) and z.dtype == torch.float64
    for i in range(5):
        one = {name: value[i] for name, value in given.items()}
        assert torch.equal(z[i : i + 1], flatten(SITES, one, LIKE))


def test_as_many_starts_as_rows():
    # A square value is one start, as its whole shape fits.
    site = LatentSite("x", 0, 2, torch.Size([2]), torch.Size([2]), torch.float32)
    assert flatten([site], {"x": torch.zeros(2)}, LIKE).shape == (1, 2)
    assert flatten([site], {"x": torch.zeros(2, 2)}, LIKE).shape == (2, 2)


def test_python_numbers_are_values():
    # As for any argument of a distribution.
    assert flatten(SITES[:1], {"scalar": 2.5}, LIKE).tolist() == [[2.5]]


def test_missing_and_unknown_sites():
    # Both are named, and so are the sites that there are.
    given = values()
    given["matrx"] = given.pop("matrix")
    with pytest.raises(ValueError, match=r"lacks .*\['matrix'\] .* unknown ones \['matrx'\].*'scalar', 'matrix'"):
        flatten(SITES, given, LIKE)


@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 1, 2, 3), ()])
def test_wrong_shapes(shape):
    # The same number of values is not enough; nor are two leading dimensions.
    with pytest.raises(ValueError, match=r"initial_params\['matrix'\] has shape .* unconstrained shape is \(2, 3\)"):
        flatten(SITES, values() | {"matrix": torch.zeros(shape)}, LIKE)


def test_constrained_values_are_no_unconstrained_ones():
    # A simplex of three values where two coordinates are asked for.
    with pytest.raises(ValueError, match=r"'simplex'\] has shape \(3,\); its unconstrained shape is \(2,\)"):
        flatten(SITES, values() | {"simplex": torch.full((3,), 1 / 3)}, LIKE)


def test_different_numbers_of_starts():
    # Some sites with several starts, some with one.
    with pytest.raises(ValueError, match=r"same number of starts at every site; got \[1, 4\]"):
        flatten(SITES, values(4) | {"simplex": torch.zeros(2)}, LIKE)
