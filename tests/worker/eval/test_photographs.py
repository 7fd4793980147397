"""Photographs nobody trained on: they exist, and the stereo pair's geometry is right."""

import numpy as np
import pytest
import skimage.data
import tiny
import torch

from worker.eval.photographs import (
    BASELINE_M,
    FOCAL_PX,
    LEFT_CENTRE_PX,
    RIGHT_CENTRE_PX,
    depth_figures,
    framed,
    photographs,
    score_photographs,
)


def test_six_photographs_are_scored():
    scores = dict(score_photographs(tiny.engine()))
    assert set(scores) == {f"photographs.{name}.psnr" for name in photographs()}
    assert len(scores) == 6 and all(0 < value < 60 for value in scores.values())


def test_points_of_the_left_view_land_where_the_disparity_says():
    left, right, disparity = skimage.data.stereo_motorcycle()
    engine = tiny.engine()
    depth = np.where(np.isfinite(disparity), 3.0, 0.0).astype(np.float32)
    _, _, camera = framed(engine, left, depth, LEFT_CENTRE_PX, 0.0)
    _, _, view = framed(engine, right, depth, RIGHT_CENTRE_PX, BASELINE_M)
    point = torch.tensor([0.4, 0.1, 3.0], dtype=torch.float64)
    u = [
        float(K[0] * (point[0] - x) / point[2] + K[2])
        for K, x in ((camera.intrinsics[0], 0.0), (view.intrinsics[0], BASELINE_M))
    ]
    scale = tiny.WIDTH / min(left.shape[1], round(500 * tiny.WIDTH / tiny.HEIGHT))
    offset = RIGHT_CENTRE_PX[0] - LEFT_CENTRE_PX[0]
    expected = FOCAL_PX * BASELINE_M / 3.0 - offset  # pixels of the full picture
    assert abs((u[0] - u[1]) / scale - expected) < 0.01


def test_depth_from_one_view_and_from_two_is_scored_on_the_same_cells():
    truth = torch.tensor([[[2.0, 2.0, 2.0, 2.0, 0.0]]])
    found = torch.tensor([[[2.2, 1.8, 2.2, 0.0, 5.0]]])  # given up where the guess is worst
    guessed = torch.tensor([[[3.0, 3.0, 1.0, 20.0, 9.0]]])
    figures = dict(depth_figures(guessed, found, truth))
    assert figures["depth_absrel_one"] == pytest.approx(0.5)
    assert figures["depth_absrel_two"] == pytest.approx(0.1)
    assert figures["depth_kept"] == 0.75
