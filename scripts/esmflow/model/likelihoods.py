"""What the language model's head says of the residues themselves: log-probabilities, marginals and entropy.

Marginals: Meier et al. 2021, doi:10.1101/2021.07.09.450648, equations 1 and 3. Logarithms are natural, and taken in
float64, for a model that is sure of a residue to have an entropy that is not rounding alone.
"""

import math
from functools import cached_property

import torch

from esmflow.alphabet import AMINO_ACID_TOKENS


class Likelihoods:
    """Of all tokens of a pack.

    logits: float32 [total tokens, vocabulary]; tokens: int64 [total tokens], the tokens as they are.
    """

    def __init__(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        self._logits, self._tokens = logits, tokens

    @cached_property
    def log_probabilities(self) -> torch.Tensor:
        """Of the 20 amino acids, by the softmax over the whole vocabulary: float64 [total tokens, 20]."""
        return torch.log_softmax(self._logits.double(), dim=-1)[:, AMINO_ACID_TOKENS]

    @property
    def entropy(self) -> torch.Tensor:
        """That of the distribution over the 20 amino acids, which are made to add up to one: float32 [total tokens]."""
        among_them = torch.log_softmax(self.log_probabilities, dim=-1)
        return -(among_them.exp() * among_them).sum(dim=-1).float()

    @property
    def marginals(self) -> torch.Tensor:
        """log p(amino acid) - log p(residue as it is): float32 [total tokens, 20].

        X and the like are no amino acid of the 20; in the place of theirs stands the logarithm of the mean of all p.
        """
        mean = self.log_probabilities.logsumexp(dim=-1) - math.log(len(AMINO_ACID_TOKENS))
        among_them = self._tokens[:, None] == torch.tensor(AMINO_ACID_TOKENS, device=self._tokens.device)
        own = torch.where(among_them.any(dim=-1), (self.log_probabilities * among_them).sum(dim=-1), mean)
        return (self.log_probabilities - own[:, None]).float()
