"""Ridge: linear maps between the hosts' activations on unlabelled texts, site by site."""

from __future__ import annotations

from peftport.porting.fitted import Fitted, FittedMaps, FittedStrategy
from peftport.porting.maps import Moments, fit
from peftport.porting.strategies.base import strategies


class RidgeMaps(FittedMaps):
    """Least squares with a penalty whose strength held-out texts choose."""

    name = "ridge"

    def fit(self, train: Moments, held: Moments, *, intercept: bool) -> Fitted:
        affine, strength, error = fit(train, held, intercept=intercept)
        return affine, {"strength": strength, "held_out": error}


@strategies.register("ridge")
class Ridge(FittedStrategy):
    """Linear maps between both hosts' activations at every site, fitted on unlabelled texts.

    M = argmin |H_t M - H_s|^2 + lambda |M|^2 from target to source where parameters read, and
    from source to target where they write; lambda by held-out texts, never by labels.

    Source: stitching of residual streams, arXiv 2506.06609; here at every site of the module, with
    inputs, projections and the head's features each in their own space.
    """

    name = "ridge"
    reference_url = "https://arxiv.org/abs/2506.06609"
    maps_class = RidgeMaps
