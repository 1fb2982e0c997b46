"""The published optimiser, re-implemented from its description

SGD on γ and δ with dense 2^n x 2^n matrices: momentum 0.9, 10,000 steps, a learning rate set by
hand, the last iterate returned. `transforms=True` computes the very same iterates with fast
transforms instead of dense matrices, so that the objective at n = 12 can be had in minutes.
"""
import torch

from layerwise_knowledge.interactions import and_interactions


def _matrix(n):
    return and_interactions(torch.eye(2**n)).T.contiguous()        # I_and = M v


class _Moebius(torch.autograd.Function):
    "M v along the last axis by n passes, and Mᵀ backwards"
    @staticmethod
    def _passes(v, sign, transpose=False):
        v = v.clone()
        for i in range(v.shape[-1].bit_length() - 1):
            pair = v.view(*v.shape[:-1], -1, 2, 1 << i)
            if transpose:
                pair[..., 0, :] -= pair[..., 1, :]
            else:
                pair[..., 1, :] -= pair[..., 0, :]
        return v

    @staticmethod
    def forward(ctx, v):
        return _Moebius._passes(v, -1)

    @staticmethod
    def backward(ctx, g):
        return _Moebius._passes(g, -1, transpose=True)


def published(
    v,                    # (B, 2**n) scores
    kappa,                # (B,) bound on |δ|
    lr=1e-4,              # learning rate for a table of range 1, a number or one per table
    steps=10_000,
    transforms=False,     # same iterates by fast transforms
):                        # objective (B,) of the last iterate
    "Σ|I_and| + |I_or| that the published optimiser ends with"
    scale = (v.amax(-1) - v.amin(-1))[:, None]
    v, k = (v/scale).float(), kappa.float()[:, None]/scale.float()
    if transforms:
        mobius = _Moebius.apply
    else:
        M = _matrix(v.shape[-1].bit_length() - 1)
        mobius = lambda s: s @ M.T
    gamma, delta = torch.zeros_like(v, requires_grad=True), torch.zeros_like(v, requires_grad=True)
    rate = torch.as_tensor(lr, dtype=v.dtype).reshape(-1, 1)
    heavy = [torch.zeros_like(v), torch.zeros_like(v)]
    for _ in range(steps):
        half = (v - torch.minimum(torch.maximum(delta, -k), k))/2
        i_and, i_or = mobius(half + gamma), mobius((half - gamma).flip(-1))
        loss = i_and[:, 1:].abs().sum(-1) + i_or[:, 1:].abs().sum(-1)
        slopes = torch.autograd.grad(loss.sum(), (gamma, delta))
        for p, g, h in zip((gamma, delta), slopes, heavy):
            h.mul_(.9).add_(g)
            p.data -= rate*h
    return loss.detach().double()*scale[:, 0].double()
