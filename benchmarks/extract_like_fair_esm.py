"""What fair-esm's `esm-extract` does: the baseline of the end-to-end benchmark, and what an export is compared with.

fair-esm 2.0's wheel does not hold its extraction script. This one goes through the same steps with the package's own
parts (its loader, dataset, batches and batch converter), the defaults included: fp32, 4,096 tokens per padded batch,
sequences cut at 1,022 residues, logits computed and copied too, one .pt file per protein.
"""

import argparse
from pathlib import Path

import torch
from esm import FastaBatchedDataset, pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_location", help="a .pt file of fair-esm")
    parser.add_argument("fasta_file", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--toks_per_batch", type=int, default=4096)
    parser.add_argument("--repr_layers", type=int, nargs="+", default=[-1])
    parser.add_argument("--include", choices=["mean", "bos", "per_tok", "contacts"], nargs="+", required=True)
    parser.add_argument("--truncation_seq_length", type=int, default=1022)
    parser.add_argument("--nogpu", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes that load data")
    extract(parser.parse_args())


@torch.no_grad()
def extract(options: argparse.Namespace) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = pretrained.load_model_and_alphabet(options.model_location)
    model.eval()
    on_gpu = torch.cuda.is_available() and not options.nogpu
    if on_gpu:
        model = model.cuda()
    layers = [layer % (model.num_layers + 1) for layer in options.repr_layers]
    dataset = FastaBatchedDataset.from_file(options.fasta_file)
    batches = dataset.get_batch_indices(options.toks_per_batch, extra_toks_per_seq=1)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=alphabet.get_batch_converter(options.truncation_seq_length),
        num_workers=options.workers,
    )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for number, (labels, strings, tokens) in enumerate(loader, 1):
        print(f"batch {number} of {len(batches)}: {len(labels)} sequences")
        result = model(
            tokens.cuda() if on_gpu else tokens, repr_layers=layers, return_contacts="contacts" in options.include
        )
        result["logits"].to("cpu")
        hidden = {layer: values.to("cpu") for layer, values in result["representations"].items()}
        for row, (label, string) in enumerate(zip(labels, strings, strict=True)):
            residues = min(len(string), options.truncation_seq_length)
            # Without the clones, torch.save would write the whole batch.
            own = {"label": label}
            if "per_tok" in options.include:
                own["representations"] = {layer: x[row, 1 : residues + 1].clone() for layer, x in hidden.items()}
            if "mean" in options.include:
                own["mean_representations"] = {layer: x[row, 1 : residues + 1].mean(0) for layer, x in hidden.items()}
            if "bos" in options.include:
                own["bos_representations"] = {layer: x[row, 0].clone() for layer, x in hidden.items()}
            if "contacts" in options.include:
                own["contacts"] = result["contacts"][row, :residues, :residues].to("cpu", copy=True)
            path = options.output_dir / f"{label}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(own, path)


if __name__ == "__main__":
    main()
