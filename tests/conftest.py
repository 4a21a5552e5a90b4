"""What every test starts from: no network, an empty Hugging Face home of the session's own, and one thread."""

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from tqdm import tqdm

from loopback_hub import LoopbackHub

# Before any test imports transformers or huggingface_hub: they read these once, when they are imported.
_HF_HOME = tempfile.mkdtemp(prefix="shirg-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ["HF_HOME"] = _HF_HOME
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if "HF_ENDPOINT" not in os.environ:
    os.environ["HF_HUB_OFFLINE"] = "1"

torch.set_num_threads(1)

# The lock that tqdm makes for its bars is one semaphore for all forked processes: a test that kills one while it holds
# the lock would leave every later bar waiting for ever. Nor may a thread hold the lock when another process is forked.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

# A slow moment of a shared machine is not a failure.
settings.register_profile("shirg", deadline=None)
settings.load_profile("shirg")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub of this test's own on 127.0.0.1. Hand `hub.env` to `run_fresh`."""
    with LoopbackHub() as running:
        yield running
