"""Receipts with nothing but how fast their jobs were."""

from esmflow.receipt import JobFigures, ModelUse, Receipt, SelfCheck


def receipt(
    model: str, flops_per_second: float, seconds: float, device: str = "cpu", precision: str = "fp32"
) -> Receipt:
    check = SelfCheck(sequences=0, largest_difference=0.0, least_cosine=1.0)
    return receipt_of({model: ModelUse(device, precision, "", 0, 0, check, flops_per_second * seconds, seconds)}, 1)


def receipt_of(models: dict[str, ModelUse], processes: int) -> Receipt:
    """A receipt with nothing but what models were used by so many processes."""
    figures = JobFigures(
        seconds=0.0,
        startup_seconds=0.0,
        computing_seconds=0.0,
        idle_share=0.0,
        processes=processes,
        process_restarts=0,
        model_loads=0,
        model_switches=0,
        peak_memory_bytes=0,
        packs=0,
        tokens=0,
        pack_fill=0.0,
        packs_split=0,
        waiting_seconds=0.0,
        residues_per_second=0.0,
    )
    return Receipt("earlier", [], 0, 0, [], [], models, figures, {})
