"""Seconds and memory of opening data as `d2v pretrain` does it, at the first start and at the second.

    python benchmarks/start_up.py image [number=10000] [folders=100] [check=0]
    python benchmarks/start_up.py speech [number=10000]
    python benchmarks/start_up.py text [megabytes=100] [TOKENIZER]

Images are hard links of 16 JPEGs of 160 x 120 pixels, clips of 16 FLACs of 2 s; text is drawn words. Data and cache lie
in a folder that then goes. Each start is a process of its own; what the libraries take is not counted. Memory is what a
process has for itself (RssAnon), most and in the end: pages of files that are mapped belong to all of them.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
from data_loading import picture
from turns import parse_options

from d2v import plugins
from d2v.config.loading import load_config
from d2v.protocols import ScoredSplit
from d2v.training.same_data import DataCheck

OLD = time.time() - 3600  # files have lain there for a while
STARTS = ("first", "second")


def main(arguments: list[str]) -> None:
    """Prints a line of JSON for each start."""
    if arguments[:1] == ["start"]:
        print(json.dumps(start(*arguments[1:])))
        return
    words, options = parse_options(arguments, {"number": 10_000, "folders": 100, "megabytes": 100, "check": 0})
    if not words or len(words) > 2 or words[0] not in MAKE:
        raise SystemExit(f"name one of {', '.join(MAKE)}")
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "data"
        data.mkdir()
        MAKE[words[0]](data, SimpleNamespace(**options))
        environment = {**os.environ, "D2V_CACHE": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "hf")}
        for turn in STARTS:
            command = [
                sys.executable,
                __file__,
                "start",
                words[0],
                str(data),
                str(folder / "run"),
                str(options["check"]),
                *words[1:],
            ]
            said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            load = Path("/proc/loadavg").read_text().split()[0]
            print(words[0], turn, said.strip().splitlines()[-1], f"load {load}", flush=True)
        cache = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
        print(f"{words[0]} cache {cache / 1e6:.1f} MB", flush=True)


def images(data: Path, options: Any) -> None:
    """Hard links in class folders."""
    draw = np.random.default_rng(0)
    _links(data, options, ".jpg", lambda file: picture(draw, 160, 120).save(file, quality=90))


def clips(data: Path, options: Any) -> None:
    """Hard links in folders."""
    draw = np.random.default_rng(0)
    _links(data, options, ".flac", lambda file: soundfile.write(file, 0.1 * draw.standard_normal(32000), 16000))


def _links(data: Path, options: Any, ending: str, write: Any) -> None:
    sources = [data.parent / f"source{number}{ending}" for number in range(16)]
    for source in sources:
        write(source)
        os.utime(source, (OLD, OLD))
    for number in range(options.number):
        folder = data / f"class{number % options.folders:04d}"
        if number < options.folders:
            folder.mkdir()
        os.link(sources[number % len(sources)], folder / f"sample_{number:08d}{ending}")


def texts(data: Path, options: Any) -> None:
    """Files of 10 MB of lines of drawn words, by Zipf's law."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = np.array(["".join(draw.choice(letters, size)) for size in draw.integers(2, 10, 20_000)])
    for number in range(-(-options.megabytes // 10)):
        chosen = words[draw.zipf(1.2, 1_700_000) % len(words)]
        lines = [" ".join(line) for line in np.array_split(chosen, 85_000)]
        file = data / f"part{number:04d}.txt"
        file.write_text("\n".join(lines)[:10_000_000] + "\n")
        os.utime(file, (OLD, OLD))


MAKE = {"image": images, "speech": clips, "text": texts}


def start(name: str, data: str, run: str, check: str, tokenizer: str = "") -> dict[str, Any]:
    """What one start takes; without a tokenizer text has one of its own."""
    settings = [f"data.path={data}", f"run.dir={run}", "evaluate.path=''"]
    if name == "text":
        settings += [f"data.tokenizer={tokenizer}"] if tokenizer else ["data.vocab_size=8000"]
    else:
        settings += [f"data.check_files={bool(int(check))}"]
    config = load_config(f"{name}/data2vec_tiny", settings)
    modality, folder = plugins.load("d2v.modalities", name), Path(run)
    memory = Memory()
    before, began, processor = memory.now(), time.perf_counter(), time.process_time()
    seconds = {}
    folder.mkdir(exist_ok=True)
    modality.prepare(config.data, config.frontend, folder, 0)
    seconds["prepare"] = time.perf_counter() - began
    samples = modality.Samples(config.data, config.frontend, split="train", folder=folder)
    seconds["samples"] = time.perf_counter() - began
    accelerator: Any = SimpleNamespace(is_main_process=True, num_processes=1, print=print)
    same_data = DataCheck(accelerator, folder, config.run)
    same_data(config.data.path, [ScoredSplit(samples, range(len(samples)), ())])
    same_data.save()
    seconds["same data"] = time.perf_counter() - began
    batches = modality.batches(samples, config.data, config.frontend, 8, 0, print)
    batches(0, 0, 1)
    seconds["all"] = time.perf_counter() - began
    seconds["of the processor"] = time.process_time() - processor
    most, after = memory.most(), memory.now()
    return {
        "samples": len(samples),
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
        "MB": {"most": round(most - before, 1), "end": round(after - before, 1)},
        "worker is sent, kB": round(len(pickle.dumps(batches)) / 1e3, 1),
    }


class Memory:
    """Megabytes that this process has for itself."""

    def __init__(self):
        self._most, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Now."""
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) / 1e3

    def most(self) -> float:
        """The most there was, looked at every 20 ms."""
        self._done.set()
        self._thread.join()
        return max(self._most, self.now())

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, self.now())


if __name__ == "__main__":
    main(sys.argv[1:])
