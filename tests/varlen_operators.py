"""torch's variable-length attention operators on a CPU, by plain attention of each record.

Under their own schemas, so that the program's calls and torch's own gradient formulas are the real
ones; only the kernels are not.
"""

import torch

NAMES = ("_flash_attention", "_efficient_attention")


def _records(q, k, v, ends, scale, left):
    """Queries, keys, values and probabilities (H, L, .) of each record.

    Args:
        left: Tokens before its own that a token sees; None: all.
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        own = [x[first:last].transpose(0, 1) for x in (q, k, v)]
        place = torch.arange(last - first)
        ahead = place[None, :] - place[:, None]
        hidden = ahead > 0 if left is None else (ahead > 0) | (ahead < -left)
        scores = scale * (own[0] @ own[1].mT)
        yield slice(first, last), *own, scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _attend(q, k, v, ends, scale, left):
    """Causal attention (N, H, D) of each record alone."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    parts = _records(q, k, v, ends, scale, left)
    return torch.cat([(seen @ own).transpose(0, 1) for _, _, _, own, seen in parts])


def _gradients(grad, q, k, v, ends, scale, left):
    """By hand: P = softmax(S), S = scale Q K'; dS = P (dP - sum(dP P)), dP = dO V'."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    repeats = q.shape[1] // k.shape[1]

    def summed(of_heads):
        """(H, L, D) to (L, G, D): heads that share keys add up."""
        return of_heads.transpose(0, 1).unflatten(1, (-1, repeats)).sum(2)

    for at, own_q, own_k, own_v, seen in _records(q, k, v, ends, scale, left):
        out = grad[at].transpose(0, 1)
        of_seen = out @ own_v.mT
        of_scores = seen * (of_seen - (of_seen * seen).sum(-1, keepdim=True))
        of_q[at] = (scale * of_scores @ own_k).transpose(0, 1)
        of_k[at] = summed(scale * of_scores.mT @ own_q)
        of_v[at] = summed(seen.mT @ out)
    return of_q, of_k, of_v


def flash(
    q, k, v, cum_q, cum_k, max_q, max_k, dropout, is_causal, debug, *, scale=None,
    window_size_left=None, window_size_right=None, **_,
):  # fmt: skip
    assert is_causal
    assert not dropout
    assert (cum_q.dtype, max_q) == (torch.int32, int(cum_q.diff().max()))
    assert window_size_right == (None if window_size_left is None else 0)
    empty = q.new_zeros(1)
    out = _attend(q, k, v, cum_q, scale, window_size_left)
    return out, q.new_zeros(q.shape[1], len(q)), empty.long(), empty.long(), empty


def flash_backward(
    grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout, is_causal, state, unused, *,
    scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    return _gradients(grad, q, k, v, cum_q, scale, window_size_left)


def efficient(
    q, k, v, bias, cum_q, cum_k, max_q, max_k, dropout, mask_type, with_lse=False, *, scale=None,
    seqlen_k=None, window_size=None,
):  # fmt: skip
    assert (mask_type, with_lse, bias, q.shape[2] == k.shape[2]) == (1, True, None, True)
    left = None if window_size is None else window_size - 1
    out = _attend(q[0], k[0], v[0], cum_q, scale, left)[None]
    seed = torch.zeros((), dtype=torch.long)
    return out, q.new_zeros(1, q.shape[2], q.shape[1]), seed, seed, max_q, max_k


def efficient_backward(
    grad, q, k, v, bias, out, cum_q, cum_k, max_q, max_k, lse, dropout, seed, offset, mask_type,
    bias_requires_grad, *, scale=None, num_splits_key=None, window_size=None,
    shared_storage_dqdkdv=False,
):  # fmt: skip
    left = None if window_size is None else window_size - 1
    return *(g[None] for g in _gradients(grad[0], q[0], k[0], v[0], cum_q, scale, left)), None


def on_a_cpu():
    """The library that holds them, as long as it lives."""
    library = torch.library.Library("aten", "IMPL")
    for name, forward, backward in (
        (NAMES[0], flash, flash_backward), (NAMES[1], efficient, efficient_backward),
    ):  # fmt: skip
        library.impl(f"{name}_forward", forward, "CPU")
        library.impl(f"{name}_backward", backward, "CPU")
    return library
