"""Weight files are checked before use."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from worker.backbones.denoiser import Denoiser, DenoiserConfig
from worker.codec import Codec, CodecConfig
from worker.weights import WeightsError, checksum, load_module, read_card, save_module


@pytest.fixture
def path(tmp_path):
    return tiny.save_weights(tmp_path / "weights") / "codec.safetensors"


def test_a_module_comes_back_rounded_to_bfloat16(path):
    codec, _, _ = tiny.modules()
    loaded, found = load_module(path, Codec, CodecConfig)
    assert loaded.cfg == tiny.CODEC and found == checksum(path)
    expected = {name: v.bfloat16().float() for name, v in codec.state_dict().items()}
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name]), name
    assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}


def test_saving_what_was_loaded_gives_the_same_file(path, tmp_path):
    loaded, before = load_module(path, Codec, CodecConfig)
    save_module(loaded, tmp_path / "again.safetensors", {})
    assert checksum(tmp_path / "again.safetensors") == before


def test_the_card_names_the_file_and_how_it_was_made(path):
    card = read_card(path)
    assert card["file"] == "codec.safetensors" and card["stage"] == "codec"
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["config"]["width_quarter"] == tiny.CODEC.width_quarter


def test_tuples_of_a_config_come_back_as_tuples(path):
    denoiser, _ = load_module(path.with_name("denoiser.safetensors"), Denoiser, DenoiserConfig)
    assert denoiser.cfg == tiny.DENOISER and isinstance(denoiser.cfg.widths, tuple)


def test_an_altered_file_is_refused_by_name_with_both_checksums(path):
    expected = checksum(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        load_module(path, Codec, CodecConfig)
    assert all(part in str(caught.value) for part in (str(path), expected, checksum(path)))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_file_or_card_is_named(path, suffix):
    missing = path.with_suffix(suffix)
    missing.unlink()
    with pytest.raises(WeightsError, match=re.escape(f"{missing} is missing: reinstall")):
        load_module(path, Codec, CodecConfig)


def test_weights_of_another_size_or_config_do_not_fit(path):
    card = read_card(path)
    for config in (vars(replace(tiny.CODEC, num_blocks=2)), {"depth": 3}):
        path.with_suffix(".json").write_text(json.dumps({**card, "config": config}))
        with pytest.raises(WeightsError, match=re.escape(f"{path} does not fit the code")):
            load_module(path, Codec, CodecConfig)
