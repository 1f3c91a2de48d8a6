"""What the language model's head says of the residues themselves: log-probabilities, marginals and entropy.

Marginals: Meier et al. 2021, doi:10.1101/2021.07.09.450648, equations 1 and 3. Logarithms are natural, and taken in
float64, for a model that is sure of a residue to have an entropy that is not rounding alone.
"""

import math
from functools import cached_property

import torch

from esmflow.alphabet import AMINO_ACID_TOKENS


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Of the 20 amino acids, by the softmax over the whole vocabulary: [n, vocabulary] to float64 [n, 20]."""
    return torch.log_softmax(logits.double(), dim=-1)[:, AMINO_ACID_TOKENS]


class Likelihoods:
    """Of all tokens of a pack.

    logits: float32 [total tokens, vocabulary]; tokens: int64 [total tokens], the tokens as they are.
    """

    def __init__(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        self._tokens, self._log_p = tokens, log_probabilities(logits)

    @property
    def entropy(self) -> torch.Tensor:
        """That of the distribution over the 20 amino acids, which are made to add up to one: float32 [total tokens]."""
        among_them = torch.log_softmax(self._log_p, dim=-1)
        return -(among_them.exp() * among_them).sum(dim=-1).float()

    @cached_property
    def _is_letter(self) -> torch.Tensor:
        """Which of the 20 amino acids each residue is, if it is one of them: bool [total tokens, 20]."""
        return self._tokens[:, None] == torch.tensor(AMINO_ACID_TOKENS, device=self._tokens.device)

    @property
    def summands(self) -> torch.Tensor:
        """What perplexity and mean entropy are made of: float64 [total tokens, 3].

        log p(residue as it is), or 0 if that is none of the 20; 1, or 0 likewise; entropy.
        """
        own = (self._log_p * self._is_letter).sum(dim=-1)
        return torch.stack([own, self._is_letter.any(dim=-1).double(), self.entropy.double()], dim=1)

    @property
    def marginals(self) -> torch.Tensor:
        """log p(amino acid) - log p(residue as it is): float32 [total tokens, 20].

        X and the like are no amino acid of the 20; in the place of theirs stands the logarithm of the mean of all p.
        """
        mean = self._log_p.logsumexp(dim=-1) - math.log(len(AMINO_ACID_TOKENS))
        own = torch.where(self._is_letter.any(dim=-1), (self._log_p * self._is_letter).sum(dim=-1), mean)
        return (self._log_p - own[:, None]).float()
