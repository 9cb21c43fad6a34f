"""Worker processes of a run: there while it trains and evaluates, and gone afterwards."""

import multiprocessing

import numpy as np
import pytest
from PIL import Image

import tutelage
from tutelage.runs.reporter import Reporter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.mark.parametrize("failing", [False, True])
def test_a_run_starts_its_workers_once_and_ends_them(tmp_path, monkeypatch, failing):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    for k in range(24):
        folder = tmp_path / "images" / f"class{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / f"{k}.png")
    seen = []

    class Watching(Reporter):
        def tick(self):
            seen.append(tuple(child.pid for child in multiprocessing.active_children()))
            if failing and len(seen) == 3:
                raise ZeroDivisionError

    def run():
        tutelage.train(
            model="mlp:8",
            data={"source": f"imagefolder:{tmp_path / 'images'}", "test": "train", "memory_limit_mb": 0, "workers": 1},
            epochs=3,
            batch_size=12,
            device="cpu",
            runs=str(tmp_path / "runs"),
            display=Watching(),
        )

    if failing:
        with pytest.raises(ZeroDivisionError):
            run()
    else:
        run()
        assert len(set(seen[2:])) == 1
    assert len(seen[-1]) == 1
    assert not multiprocessing.active_children()
