"""What do scores for all layers cost beyond the bare forward pass of the same masked inputs?

    python benchmarks/one_pass.py [--networks mlp7 resnet20] [--samples 2] [--repeats 5]
                                  [--batch 256] [--threads 1] [--device cpu]

Bare: the masked inputs are there already and go through the network, nothing else.
All layers: `score_table` itself, so masking, hooks, the probes of all probed layers and the
log-odds are included. Both run in turn on the same inputs, so that a busy machine slows both; the
ratio is the median of the ratios of neighbouring runs, with their range in brackets, and the
seconds are the fastest. Weights are random: they do not change the time.
"""
import argparse
import statistics
import time

import torch
from torch import nn

from layerwise_knowledge.models import NETWORKS, PROBED, create
from layerwise_knowledge.players import PatchPlayers, masked_batches
from layerwise_knowledge.scores import features, score_table

LIMIT = 1.3
SHAPE, PATCH = (1, 28, 28), 3           # MNIST, n = 10
CELLS = [(2, 4), (2, 5), (3, 3), (3, 4), (4, 4), (4, 5), (5, 3), (5, 4), (6, 4), (6, 5)]


def set_up(network, samples, device):
    "Network, inputs, players, layers and probes of an MNIST experiment"
    model, layers = create(network, SHAPE, 10).to(device), list(PROBED[network])
    x = torch.rand(samples, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), features(model, layers) as f:
        model(x[:1].to(device))
    probes = {
        name: nn.Linear(f[name].flatten(1).shape[1], 10).to(device)
        for name in layers
        if name != "output"
    }
    return model, x, PatchPlayers(CELLS, SHAPE, PATCH), layers, probes


def seconds(work, device):
    "Wall time of one call"
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(network, samples, repeats, batch, device):
    "(seconds of the bare passes, seconds of the score table), one pair per repeat"
    model, x, players, layers, probes = set_up(network, samples, device)
    baseline, y = x.mean(0), torch.zeros(samples, dtype=torch.int64)
    inputs = [
        x_T for x_i in x for _, x_T in masked_batches(x_i.to(device), players, baseline, batch)
    ]

    @torch.inference_mode()
    def bare():
        for x_T in inputs:
            model(x_T)

    def all_layers():
        score_table(
            model, x, y, players, layers, probes, baseline, batch_size=batch, progress=False
        )

    bare()
    all_layers()
    return layers, [(seconds(bare, device), seconds(all_layers, device)) for _ in range(repeats)]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["mlp7", "resnet20"],
                        choices=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=2,
                        help="inputs to score, 1,024 subsets each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int,
                        help="CPU threads; on a busy machine 1 gives steadier numbers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def line(network, layers, pairs):
    "The fastest times of a network, and the median of the ratios"
    bare, table = (min(times) for times in zip(*pairs))
    ratios = sorted(t / b for b, t in pairs)
    ratio = statistics.median(ratios)
    verdict = "ok" if ratio <= LIMIT else f"ABOVE {LIMIT}"
    return (f"{network:>10} {len(layers):>7} {bare:>7.2f} s {table:>9.2f} s {ratio:>6.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})  {verdict}")


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; "
          f"{args.samples} x 1024 masked MNIST inputs, batches of {args.batch}")
    print(f"{'network':>10} {'layers':>7} {'bare':>9} {'all layers':>11} {'ratio':>6}")
    for network in args.networks:
        measured = measure(network, args.samples, args.repeats, args.batch, args.device)
        print(line(network, *measured))


if __name__ == "__main__":
    main()
