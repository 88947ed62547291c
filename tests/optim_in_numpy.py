"""The published updates of the optimizers in numpy, one tensor in float64 each, for tests."""

import numpy as np


def lars_in_numpy(w, grads, lrs, momentum, weight_decay, eta, adapt):
    """The update of google-research/simclr's lars_optimizer.py (classic momentum), one tensor, float64."""
    w, v = w.astype(np.float64), np.zeros(w.shape)
    for g, lr in zip(grads, lrs):
        g = g.astype(np.float64) + weight_decay * w
        trust = 1.0
        w_norm, g_norm = np.sqrt((w * w).sum()), np.sqrt((g * g).sum())
        if adapt and w_norm > 0 and g_norm > 0:
            trust = eta * w_norm / g_norm
        v = momentum * v + lr * trust * g
        w = w - v
    return w


def sgd_in_numpy(w, grads, lr, momentum, weight_decay):
    """Classic momentum as torch.optim documents it, the learning rate outside the buffer; one tensor."""
    v = np.zeros(w.shape)
    for g in grads:
        v = momentum * v + g + weight_decay * w
        w = w - lr * v
    return w


def adamw_in_numpy(w, grads, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2, one tensor."""
    m, v = np.zeros(w.shape), np.zeros(w.shape)
    for t, g in enumerate(grads, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w - lr * weight_decay * w
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w
