r"""Improves codes by changing two at once, where descent by single codes has stopped.

With correlated inputs, Two-Step Quantization's coordinate descent (Wang et al., CVPR 2018) stops
early: of two inputs that vary together, one has to rise while the other one falls.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bitjax.solvers.code_rules import Fitted, Problem, dot, gain_of
from bitjax.solvers.code_sweep import from_scratch


@partial(jax.jit, static_argnames=("precision",))
def improve_pairs(
    problem: Problem, codes: Fitted, *, precision: Any = lax.Precision.HIGHEST
) -> tuple[Fitted, jax.Array]:
    """Makes each filter's best change of two codes until none helps; codes and counts [M]."""
    # With d = v - w of either input, s' = s + d_j q_j + d_k q_k and c' = c + 2 d_j g_j + d_j^2 A_jj
    # + 2 d_k g_k + d_k^2 A_kk + 2 d_j d_k A_jk, where g = A w. The change with the largest s'^2 /
    # c' is made. One of the two may stay, so changes of one code are among them.
    #
    # Finding a change costs G (G + 1) / 2 N^2 gains for a grid of G codes. Ternary filters of 1152
    # inputs took 0.1 s a change and 0.8 s each on one core, 6 changes on average, and lost 0.6 % of
    # their residual: this is for small layers and few filters. Filters come one by one, and need
    # two arrays of the Gram matrix's shape. A filter's changes end at four for each input.
    gram_NxN = problem.gram_NxN
    N, G = gram_NxN.shape[0], problem.grid_G.shape[0]
    eps = jnp.finfo(gram_NxN.dtype).eps
    square_N = jnp.diagonal(gram_NxN) + problem.ridge
    first, second = jnp.triu_indices(G)

    def best_pair(w_N, g_N, q_N, s, c, stays_N):
        d_GxN = problem.grid_G[:, None] - w_N
        if stays_N is not None:
            d_GxN = jnp.where(stays_N, 0, d_GxN)
        s_GxN, own_GxN = d_GxN * q_N, d_GxN * (2 * g_N + d_GxN * square_N)
        least_GxN = jnp.abs(2 * d_GxN * g_N) + d_GxN * d_GxN * square_N

        def best_of(pair):
            u, v = pair
            both_NxN = 2 * d_GxN[u][:, None] * d_GxN[v] * gram_NxN
            s_NxN = s + s_GxN[u][:, None] + s_GxN[v]
            c_NxN = c + own_GxN[u][:, None] + own_GxN[v] + both_NxN
            terms_NxN = c + least_GxN[u][:, None] + least_GxN[v] + jnp.abs(both_NxN)
            # With a singular Gram matrix, c' can be the rounding of its own terms.
            gain_NxN = gain_of(s_NxN, c_NxN, jnp.maximum(problem.floor, 16 * eps * terms_NxN))
            gain_NxN = jnp.where(jnp.eye(N, dtype=bool), 0, gain_NxN)
            place = jnp.argmax(gain_NxN)
            return gain_NxN.reshape(-1)[place], place

        gain_P, place_P = lax.map(best_of, (first, second))
        p = jnp.argmax(gain_P)
        j, k = place_P[p] // N, place_P[p] % N
        return gain_P[p], j, k, d_GxN[first[p], j], d_GxN[second[p], k]

    def one_filter(arguments):
        w_N, q_N, s, c, stays_N = arguments

        def change(carry):
            w_N, g_N, s, c, moves, _ = carry
            gain, j, k, d_j, d_k = best_pair(w_N, g_N, q_N, s, c, stays_N)
            better = gain > gain_of(s, c, problem.floor) * (1 + 4 * eps)
            d_N = jnp.zeros_like(w_N).at[j].set(d_j).at[k].set(d_k)
            d_N = jnp.where(better, d_N, 0)
            moved_N = d_N[j] * gram_NxN[j] + d_N[k] * gram_NxN[k] + problem.ridge * d_N
            s, c = s + d_N @ q_N, c + d_N @ (2 * g_N + moved_N)
            return w_N + d_N, g_N + moved_N, s, c, moves + better, better

        def goes_on(carry):
            return carry[-1] & (carry[-2] < 4 * N)

        g_N = dot(gram_NxN, w_N, precision) + problem.ridge * w_N
        carry = lax.while_loop(goes_on, change, (w_N, g_N, s, c, jnp.array(0), jnp.array(N > 1)))
        return carry[0], carry[4]

    stays_MxN = None if problem.pruned_NxM is None else problem.pruned_NxM.T
    filters = codes.w_NxM.T, problem.cross_NxM.T, codes.s_M, codes.c_M, stays_MxN
    w_MxN, moves_M = lax.map(one_filter, filters)
    return from_scratch(problem, w_MxN.T, precision), moves_M
