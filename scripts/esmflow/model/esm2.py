"""What ESM-2 has of its own: rotary positions (Lin et al. 2023, doi:10.1126/science.ade2574; `esm/model/esm2.py`)."""

from esmflow.architecture import Architecture
from esmflow.model.fair_esm import fair_esm_layers
from esmflow.model.parts import Tensors
from esmflow.model.rotary import Rotary


class Esm2(Rotary):
    """fair-esm's layers with rotary positions.

    The frequencies are the checkpoint's own: fair-esm's are rounded to fp16 and belong to the model.
    """

    share = 1.0

    def __init__(self, tensors: Tensors, architecture: Architecture) -> None:
        super().__init__(tensors.take("layers.0.self_attn.rot_emb.inv_freq"))
        self.layers = fair_esm_layers(tensors, architecture, rotary=True)
        self.norm_after = tensors.norm("emb_layer_norm_after")
