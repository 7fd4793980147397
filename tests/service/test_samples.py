"""The shipped sample worlds are complete and can be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import InvalidRequest, NotFound
from service.samples import SAMPLES, Sample, Samples
from service.uploads.images import Files, observation_from
from service.uploads.pictures import UploadLimits


@pytest.mark.parametrize("sample", Samples().all(), ids=lambda sample: sample.name)
def test_every_shipped_sample_opens(sample: Sample) -> None:
    assert sample.card.title and sample.card.description
    assert sample.depth is not None
    observation = observation_from(
        Files(sample.picture.read_bytes(), sample.depth.read_bytes()),
        (192, 128),
        UploadLimits(20 << 20, 50_000_000),
        fov_deg=sample.card.fov_deg,
    )
    assert observation.depth_m is not None
    assert (observation.depth_m > 0).mean() > 0.5  # the rest is sky


def test_there_are_samples_and_no_others() -> None:
    samples = Samples()
    assert len(samples.all()) >= 4
    assert [sample.name for sample in samples.all()] == sorted(
        path.stem for path in SAMPLES.glob("*.png")
    )
    with pytest.raises(NotFound, match="there are atrium, "):
        samples.find("../../app")
    with pytest.raises(InvalidRequest) as refused:
        samples.chosen("cellar")
    assert refused.value.fields[0].field == "sample"


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="none installed"):
        Samples(tmp_path).find("attic")
