"""From winners to readouts, compiled for CPUs: tokens gathered or blended, tables put in order.

A token lies in one piece and a readout holds each channel of all cells in one piece, so tokens are
turned in tiles of a cache line of cells: whole lines are written, whatever the size of the grid.
Sums are fixed-point and hence independent of order; products are rounded as in worker/splat.py.

Axis legend: n points, t cameras, h w the latent grid, c channels, p parts (threads).
"""

from __future__ import annotations

import numpy as np

from worker.compiled import compiled, inlined
from worker.projection import NEAR_M, QUALITY_BITS, QUALITY_ZERO

F, I64 = np.float32, np.int64
NOTHING = I64(np.iinfo(np.int64).max)
NO_SOURCE = I64(0x7FFFFFFF)
BEHIND = F(2.0**40) * F(NEAR_M)  # limits from here on are those of rims
TOKEN_ONE = F(1 << 24)
QUALITIES = (np.arange(QUALITY_ZERO, QUALITY_ZERO + 256, dtype=np.int32) << QUALITY_BITS).view(F)
TILE = 16  # cells whose tokens are turned together, a cache line of float32


@compiled
def merge(rank, distance, winner, place):
    """Fold the threads' tables (p, t * h * w), in order of rows, into the first."""
    for part in range(1, len(rank)):
        for cell in range(rank.shape[1]):
            mine, apart = rank[part, cell], distance[part, cell]
            if mine < rank[0, cell] or (mine == rank[0, cell] and apart < distance[0, cell]):
                rank[0, cell], distance[0, cell] = mine, apart
                winner[0, cell] = winner[part, cell]
                place[0, cell] = place[part, cell]


@compiled
def describe(rank, winner, place, limit, numbers, winners, sources):
    """Coverage, quality, depth, offset, span (t, 7, h * w) and winner, source (t * h * w,)."""
    size = numbers.shape[2]
    for cell in range(len(rank)):
        view, at = cell // size, cell % size
        if rank[cell] == NOTHING:
            for i in range(7):
                numbers[view, i, at] = F(0)
            winners[cell], sources[cell] = -1, -1
            continue
        numbers[view, 0, at] = F(0.5) if limit[cell] >= BEHIND else F(1)
        numbers[view, 1, at] = QUALITIES[I64(255) - (rank[cell] >> 32)]
        for i in range(5):
            numbers[view, 2 + i, at] = place[cell, i]
        winners[cell], sources[cell] = winner[cell], NO_SOURCE - (rank[cell] & NO_SOURCE)


@inlined
def decode(tokens, rows, out):
    """Tokens of these rows as the bits of float32, from bfloat16's or from int8 and scale; 0 for
    row -1.
    """
    large, small, scale = tokens
    values, channels = out.view(F), out.shape[1]
    for k in range(len(rows)):
        row = rows[k]
        if row < 0:
            for c in range(channels):
                out[k, c] = 0
        elif len(small):
            for c in range(channels):
                values[k, c] = F(small[row, c]) * scale[row]
        else:
            for c in range(channels):
                out[k, c] = np.int32(large[row, c]) << 16


@compiled
def gather(tokens, winner, first, last, out):
    """Tokens of the winners of cells first..last into out (t, c, h * w)."""
    tile = np.empty((TILE, out.shape[1]), np.int32)
    for begin in range(first, last, TILE):
        num = min(TILE, last - begin)
        decode(tokens, winner[begin : begin + num], tile)
        spill(tile, begin, num, out)


@compiled
def order(fragments, begin, out):
    """Place fragments by cell; begin (t * h * w,) is where each cell's go, advanced."""
    for k in range(len(fragments)):
        at = begin[fragments[k, 0]]
        out[at, 0], out[at, 1] = fragments[k, 1], fragments[k, 2]
        begin[fragments[k, 0]] = at + 1


@compiled
def blend(tokens, begin, fragments, total, first, last, out):
    """Weighted tokens of cells first..last, summed in fixed point, into out (t, c, h * w)."""
    channels = out.shape[1]
    tile, sums = np.empty((TILE, channels), np.int32), np.empty(channels, I64)
    token, row = np.empty((1, channels), np.int32), np.empty(1, I64)
    blended, value = tile.view(F), token.view(F)
    for start in range(first, last, TILE):
        num = min(TILE, last - start)
        for cell in range(start, start + num):
            for c in range(channels):
                sums[c] = 0
            for k in range(begin[cell], begin[cell + 1]):
                weight = F(np.float64(fragments[k, 1]) / np.float64(total[cell]))
                row[0] = fragments[k, 0]
                decode(tokens, row, token)
                for c in range(channels):
                    sums[c] += I64(np.rint((value[0, c] * weight) * TOKEN_ONE))
            for c in range(channels):
                blended[cell - start, c] = F(np.float64(sums[c]) / np.float64(TOKEN_ONE))
        spill(tile, start, num, out)


@inlined
def spill(tile, begin, num, out):
    """Write the rows of a tile to `num` cells from `begin`, which may belong to two views."""
    size, bits = out.shape[2], out.view(np.int32)
    turned = 0
    while turned < num:
        view, at = (begin + turned) // size, (begin + turned) % size
        some = min(num - turned, size - at)
        turn(tile[turned : turned + some], view, at, bits)
        turned += some


@inlined
def turn(tile, view, at, out):
    """Write a tile (k, c) to cells at..at + k of a view, a few channels side by side."""
    channels = tile.shape[1]
    whole = channels - channels % 4
    for c in range(0, whole, 4):
        for k in range(len(tile)):
            out[view, c, at + k] = tile[k, c]
            out[view, c + 1, at + k] = tile[k, c + 1]
            out[view, c + 2, at + k] = tile[k, c + 2]
            out[view, c + 3, at + k] = tile[k, c + 3]
    for c in range(whole, channels):
        for k in range(len(tile)):
            out[view, c, at + k] = tile[k, c]
