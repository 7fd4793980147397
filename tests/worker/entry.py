"""`python -m worker` with a fake backbone: the process that tests of survival kill."""

from __future__ import annotations

import asyncio
import os

import torch
from fakes import fake_engine

from service.settings import load_settings
from worker.__main__ import serve
from worker.faults import parse_fault

if __name__ == "__main__":
    torch.set_num_threads(1)
    faults = parse_fault(os.environ.get("MIRAGE_FAULT", ""))
    asyncio.run(serve(load_settings(), fake_engine(), faults))
