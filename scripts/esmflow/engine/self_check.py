"""The self-check: a sample of what was embedded, embedded again alone and in float32."""

from collections.abc import Sequence

import numpy as np

from esmflow.engine.engine import Engine
from esmflow.engine.task import Embedded
from esmflow.errors import DeviceError
from esmflow.receipt import SelfCheck
from esmflow.representation import Output
from esmflow.treatment import Treatment

#: The cosine to float32 that each precision is to keep.
LEAST_COSINE = {"fp16": 0.9999, "bf16": 0.999}
#: The relative L2 error beyond which float32 is not itself.
_LARGEST_DIFFERENCE = 1e-4
_SHARE = 0.01


def self_check(
    engine: Engine, sequences: Sequence[bytes], outputs: Sequence[Output], treatment: Treatment, embedded: Embedded
) -> SelfCheck:
    """Compare a random sample, of 1 % of the cost at most, or of one sequence; none if none has vectors.

    Raises DeviceError if a value is further from its second computation than its precision explains: the device or
    its libraries are at fault.
    """
    model = engine.model
    costs = treatment.cost(model.architecture, np.array([len(residues) for residues in sequences]), 1)
    order = np.random.default_rng(0).permutation(np.flatnonzero([reason is None for reason in embedded.reasons]))
    sample = order[: max(int(np.searchsorted(costs[order].cumsum(), _SHARE * costs.sum(), "right")), 1)]
    if not len(sample):
        return SelfCheck(0, 0.0, 1.0)
    exact = engine.exact()
    # Layers that are fetched for each pack are to serve many sequences at once.
    alone = Engine(
        exact, tokens_per_pack=1 if exact.resident else engine.tokens_per_pack, threads=engine.threads, apart=True
    )
    again = alone.embed([sequences[row] for row in sample], outputs, treatment)
    alone.close()
    computed = [place for place, reason in enumerate(again.reasons) if reason is None]
    difference, cosine = 0.0, 1.0
    for output in outputs:
        for row, value in ((sample[place], again.values[output][place]) for place in computed):
            packed = embedded.values[output][row].ravel().astype(np.float64)
            single = value.ravel().astype(np.float64)
            # A single residue has a std of 0, of which there is nothing to compare.
            if size := np.linalg.norm(single):
                difference = max(difference, float(np.linalg.norm(packed - single) / size))
                cosine = min(cosine, float(packed @ single / size / max(np.linalg.norm(packed), 1e-30)))
    if difference > _LARGEST_DIFFERENCE and cosine < LEAST_COSINE.get(model.precision, 2):
        raise DeviceError(
            f"self-check on {model.device} failed: a vector differs from the same computed alone by "
            f"{difference:.1e} (cosine {cosine:.6f}); use another device, or 'precision: fp32'"
        )
    return SelfCheck(len(computed), difference, cosine)
