"""Dealing shards to worker jobs, which all take about as long."""

import hashlib
import heapq
import math
from collections.abc import Callable, Mapping, Sequence

from esmflow.job import Job, Shard
from esmflow.plan.estimate import Rate
from esmflow.plan.sizes import Sizes
from esmflow.planned_model import PlannedModel
from esmflow.results import TableName


def deal_all(shards: Sequence[Sequence[Shard]], rates: Mapping[str, Rate], sizes: Sizes) -> list[list[Shard]]:
    """The shards of each job, from those of each model. rates: of each model, by name."""

    def seconds(shard: Shard) -> float:
        return shard.cost / rates[shard.model].of_process

    # A job that has less to do than a full shard is not worth the loading of its model.
    work = sum(seconds(shard) for of_model in shards for shard in of_model)
    most = min(sizes.max_jobs, math.ceil(work / (60 * sizes.target_minutes)))
    if not sizes.mix_models:
        counts = share(shards, most, seconds)
        return [hand for of_model, jobs in zip(shards, counts, strict=True) for hand in deal(of_model, jobs, seconds)]
    together = [shard for of_model in shards for shard in of_model]
    order = {of_model[0].model: number for number, of_model in enumerate(shards) if of_model}
    hands = deal(together, min(most, len(together)), seconds)
    return [sorted(hand, key=lambda shard: order[shard.model]) for hand in hands]


def share(shards: Sequence[Sequence[Shard]], most: int, seconds: Callable[[Shard], float]) -> list[int]:
    """The number of jobs for each model: one each, the rest one by one to the model with the longest jobs."""
    jobs = [min(len(of_model), 1) for of_model in shards]
    work = [sum(map(seconds, of_model)) for of_model in shards]
    while sum(jobs) < most:
        growable = [model for model, of_model in enumerate(shards) if len(of_model) > jobs[model]]
        if not growable:
            break
        jobs[max(growable, key=lambda model: work[model] / jobs[model])] += 1
    return jobs


def deal(shards: Sequence[Shard], jobs: int, seconds: Callable[[Shard], float]) -> list[list[Shard]]:
    """Deal shards to so many jobs, longest processing time first (Graham 1969, doi:10.1137/0117039)."""
    loads = [(0.0, number) for number in range(jobs)]
    hands: list[list[Shard]] = [[] for _ in range(jobs)]
    for shard in sorted(shards, key=lambda shard: (-seconds(shard), shard.name)):
        load, number = heapq.heappop(loads)
        hands[number].append(shard)
        heapq.heappush(loads, (load + seconds(shard), number))
    return hands


def make_job(shards: Sequence[Shard], models: Sequence[PlannedModel], samples: Mapping[str, set[str]]) -> Job:
    """The job that has these shards. Its name follows from its content.

    samples: for each shard, those that have a sequence in it.
    """
    names = {shard.model for shard in shards}
    content = " ".join([*sorted(names), *sorted(shard.name for shard in shards)])
    serves = {
        str(TableName(sample, shard.model, stem))
        for shard in shards
        for sample in samples[shard.name]
        for output in shard.outputs
        for stem in output.serves
    }
    return Job(
        hashlib.sha256(content.encode()).hexdigest()[:12],
        {model.name: model for model in models if model.name in names},
        sorted(serves),
        list(shards),
    )
