"""The training loop: forward, backward, step, teacher, log, save, resume. There is one.

A batch is a function of (step, part): parts are processes times micro-batches.
"""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from d2v import files
from d2v.config.schema import RunConfig, TrainConfig
from d2v.objectives.common.objective import Objective
from d2v.protocols import Batches
from d2v.training import checkpoint
from d2v.training.collapse import singular_values
from d2v.training.compiling import blocks_to_compile, compile_blocks
from d2v.training.curves import plot_curves, plot_spectrum
from d2v.training.distributed import all_sum, mean_of_metrics, of_all
from d2v.training.forecast import Forecast
from d2v.training.kernels import attention_line
from d2v.training.loading import Loaded, MicroBatches, loaded
from d2v.training.online_probe import JointProbe, OnlineProbe
from d2v.training.optim import make_optimizer, put_back_unless, scale_and_clip, skip_unless
from d2v.training.roll_call import RollCall
from d2v.training.run_folder import EXPORT, PAGE
from d2v.training.run_log import History, Meter, Step, of_name
from d2v.training.saving import Saver
from d2v.training.schedules import cosine_between, rate
from d2v.training.sharding import Sharding
from d2v.training.stopping import Stopping
from d2v.training.verdict import Verdict
from d2v.types import Loss, View


class Validation(Protocol):
    """What a run measures at intervals to choose the best model and when to stop: see d2v/finetuning/validation.py."""

    def due(self, step: int) -> bool: ...
    def __call__(self, step: int, accelerator: Accelerator, whole: Any) -> dict[str, float]: ...
    def stops(self, step: int) -> bool: ...


SIDES = ("student", "teacher", "local")  # whose features a health check measures


class Loop:
    """One run: what it trains, where it stands, and where it writes."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        *,
        train: TrainConfig,
        run: RunConfig,
        accelerator: Accelerator,
        health: Any = None,  # a HealthCheck, of a joint run a JointHealth
        validation: Validation | None = None,
        probe: OnlineProbe | JointProbe | None = None,
    ):
        self.train, self.run, self.accelerator = train, run, accelerator
        self.health, self.validation, self.probe = health, validation, probe
        self.folder = Path(run.dir)
        self.objective = objective
        objective.check_batch(train.batch_size, accelerator.num_processes * train.accumulate)
        if not train.update_teacher and not len(objective.teacher):
            raise ValueError("train.update_teacher is false, but this method has no teacher: leave it out")
        self.model: Any
        self.optimizer: Any
        self.sharding = None
        blocks = blocks_to_compile(objective, accelerator.device, self._say) if train.compile else []
        if train.sharding == "fsdp" and accelerator.num_processes == 1:
            self._say("train.sharding=fsdp: one process has nothing to share, and trains as with none")
        if train.sharding == "fsdp" and accelerator.num_processes > 1:
            self.sharding = Sharding(objective, accelerator)
            self.model = accelerator.prepare_model(objective, evaluation_mode=True)  # not DistributedDataParallel
            self.optimizer = accelerator.prepare_optimizer(make_optimizer(objective, train))
        else:
            self.model, self.optimizer = accelerator.prepare(objective, make_optimizer(objective, train))
        compile_blocks(blocks)
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.progress = checkpoint.Progress()
        self.save = Saver(accelerator, self.folder / "checkpoints", run, train.accumulate)
        self.roll_call = RollCall()
        self.micro_batches = MicroBatches(
            batches, accelerator.process_index, accelerator.num_processes, train.accumulate
        )
        self.meter = Meter(self.folder / "bad_steps.jsonl", train.max_bad_steps)
        self.features: dict[str, Tensor] = {}
        self.at_init: dict[str, Tensor] = {}  # spectra of the student's features, if this process saw step 0
        self.verdict = Verdict("too early", "no step yet")
        self.was_finished = self.was_reported = False  # when it was called
        self.waited = 0.0  # seconds that the last step waited for data
        self.views: list[View] = []  # of the last micro-batch

    def __call__(self) -> Verdict:
        """Trains from where the run folder stands to train.steps.

        SystemExit: Ctrl-C or SIGTERM asked for it; the run is saved. ValueError: damaged checkpoints, or too many
        non-finite steps in a row.
        """
        self._resume()
        kernels = attention_line(self.objective.student, self.accelerator.device, self.train.mixed_precision)
        if kernels:
            self._say(kernels)
        self.meter.start = time.perf_counter()
        bar = tqdm(
            total=self.train.steps,
            initial=self.progress.step,
            disable=not self.accelerator.is_main_process,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,  # a log file keeps every line
            maxinterval=60.0,
            unit="step",
        )
        self.model.train()
        with Stopping(self.accelerator) as stopping, contextlib.closing(self._batches()) as batches:
            self._train(batches, bar, stopping)
            self.save.wait()
        bar.close()
        if not (self.was_reported or self.run.dry):
            if self.was_finished:  # and killed before its report, for which features are measured once more
                self._check_health(again=True)
            self.meter.check_any_taken()
            self.plot()
        return self.verdict

    def _train(self, batches: Loaded, bar: tqdm, stopping: Stopping) -> None:
        """Steps, each followed by what is due after it."""
        forecast = Forecast(self.train.steps - self.progress.step, self.accelerator.device)
        while self.progress.step < self.train.steps and not self._stopped():
            start = time.perf_counter()
            with self.roll_call.around(self.progress.step):
                self._step(batches)
            if forecast.add(start, self.waited):
                self._say(forecast.line(self.objective, self.optimizer.optimizer, self.folder, self.run.keep))
                if self.run.dry:
                    return
            bar.update()
            step, last_step = self.progress.step, self.progress.step == self.train.steps
            at_log_line = step % self.run.log_every == 0 or last_step
            if at_log_line:
                self._log(bar)
            with self._aside(bar):
                collapsed = self._measure(step, last_step)
                if self.validation is not None and (self.validation.due(step) or last_step):
                    self.history.add({"step": step, **self.validation(step, self.accelerator, self.whole())})
            asked = not last_step and stopping.is_asked(at_log_line=at_log_line)
            ends = self._stopped() or collapsed or asked
            if ends and not at_log_line:  # a run that goes on from here logs the steps from here on
                self._log(bar)
            if step % self.run.save_every == 0 or last_step or ends:
                self.save(step)
            if collapsed:
                self._say(f"stopping at step {step}: {self.verdict.reason}")
                return
            if asked:
                self.save.wait()
                bar.close()
                several = self.accelerator.num_processes > 1  # each knows its own command, and not the launcher's
                command = "the same command" if several else shlex.join(sys.orig_argv)
                self._say(f"stopped at step {step}, saved in {self.folder / 'checkpoints'}; go on by: {command}")
                raise SystemExit(stopping.exit_code)

    def _measure(self, step: int, last_step: bool) -> bool:
        """The probe and the health check, where they are due; whether the run is to stop because it collapsed."""
        if step % self._every(self.run.probe_every) == 0 or last_step:
            self._run_probe()
        if step % self._every(self.run.health_every) == 0 or last_step:
            self._check_health()
            found = mean_of_metrics(self.objective.diagnose(self.views))
            if found:
                self.history.add({"step": step, **{name: value.item() for name, value in found.items()}})
            return self.run.stop_on_collapse and self._collapsed()
        return False

    def _resume(self) -> None:
        """Takes up weights, records and verdict where the run folder stands; at step 0 measures the random init."""
        last = checkpoint.restore(self.accelerator, self.folder / "checkpoints", self._say)
        if last is not None:
            self.progress.step = checkpoint.step_of(last)
            self._say(f"resuming from step {self.progress.step} ({last})")
            if line := checkpoint.another_split(last, self.accelerator.num_processes, self.train.accumulate):
                self._say(line)
        self.was_finished = self.progress.step >= self.train.steps or self._stopped()
        page_is_there = (self.folder / PAGE).is_file() and files.is_whole(self.folder / EXPORT)
        self.was_reported = self.was_finished and of_all(page_is_there)[0]  # the page is written last
        self.history = History(self.folder / "metrics.jsonl", self.progress.step, self.accelerator.is_main_process)
        if self.health is not None and self.history.records:
            self.verdict = self.health.judge(self.history.records)
        if self.progress.step == 0:
            self._check_health()
            self._run_probe()

    def _step(self, batches: Iterator[tuple[list[View], list[str], float]]) -> None:
        """One optimizer step.

        Losses are sums: what they are divided by is the count of predictions of all processes and micro-batches.
        """
        train, world, step = self.train, self.accelerator.num_processes, self.progress.step
        before = [x.clone() for x in self.objective.remembered()]
        lr = self._set_rates(step)
        self.objective.begin_step(step, train.steps)
        sums = torch.zeros(2, device=self.accelerator.device)
        guess = torch.ones((), device=self.accelerator.device)
        ids: list[str] = []
        self.waited = 0.0
        for micro in range(train.accumulate):
            views, names, waited = next(batches)
            self.views = views
            ids += names
            self.waited += waited
            metrics: dict[str, Any] = {}
            groups = self.objective.apart(views)
            for number, group in enumerate(groups, 1):
                last = micro == train.accumulate - 1 and number == len(groups)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                    loss = _checked(self.model(group), self.objective)
                    if micro == 0 and number == 1:
                        # Keeps fp16 gradients near 1; exact only without accumulation, hence the correction below.
                        guess = all_sum(loss.count.float()) * train.accumulate / world
                        guess = torch.where(guess > 0, guess, 1.0)  # no prediction in these micro-batches
                    self.accelerator.backward(loss.total / guess)
                sums += torch.stack([loss.total.detach().float(), loss.count.float()])
                metrics |= loss.metrics
            self.meter.add_micro(metrics, views, waited)
        total, count = all_sum(sums)
        self.accelerator.unscale_gradients()
        self.objective.adjust_gradients(step, train.steps)
        norm = scale_and_clip(self.parameters, world * guess / count, train.clip, each=train.clip_each)
        finite = torch.isfinite(norm) & torch.isfinite(total)  # without predictions the norm is 0 times infinity
        bad = ~finite & ~self._backs_off(total, count)
        self._take_if(finite)
        put_back_unless(finite, self.objective.remembered(), before)
        rates = {"lr": lr}
        if len(self.objective.teacher) and train.update_teacher:
            rates["ema_decay"] = self.objective.ema_decay(step + 1, train.steps)
            self.objective.update_teacher(rates["ema_decay"], finite)
        self.progress.step += 1
        self.meter.add_step(Step(step, total / count, norm, finite, bad, count, ids, rates))

    def _take_if(self, finite: Tensor) -> None:
        """The optimizer's step, which changes nothing unless `finite` ()."""
        if self.accelerator.scaler is None:
            skip_unless(finite, self.optimizer.optimizer)
        elif not finite:  # fp16's scaler, which has looked at the gradients before, waits for the device anyway
            self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _backs_off(self, total: Tensor, count: Tensor) -> Tensor:
        """Whether gradients that are not finite are of fp16's scale alone, which falls until they are, () bool."""
        scaler = self.accelerator.scaler
        can_fall = scaler is not None and scaler.get_scale() > 1
        return torch.isfinite(total) & (count > 0) & can_fall

    def _set_rates(self, step: int) -> float:
        """Gives each parameter group its learning rate and weight decay; the learning rate of most."""
        train = self.train
        lr = train.lr * rate(train, step, train.steps)
        weight_decay = cosine_between(step, train.steps, train.weight_decay, train.end_weight_decay)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * (train.lr if group["constant"] else lr)
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        return lr

    def _batches(self) -> Loaded:
        """From the current step on."""
        numbers = range(self.progress.step * self.train.accumulate, self.train.steps * self.train.accumulate)
        return loaded(self.micro_batches, numbers, self.run.workers, self.accelerator.device)

    def _log(self, bar: tqdm) -> None:
        metrics, speed, error = self.meter.flush(self.accelerator.is_main_process)
        self.history.add({"step": self.progress.step, **metrics, **speed})
        self.accelerator.log({**metrics, **speed}, step=self.progress.step)
        shown = {
            "loss": f"{metrics['loss']:.4g}",
            "lr": f"{metrics['lr']:.2e}",
            "samples/s": f"{speed['samples_per_second']:.1f}",
            "data": f"{speed['data_wait']:.0%}",
        }
        if self.health is not None:
            shown["health"] = self.verdict.state
        bar.set_postfix(shown, refresh=False)
        if error:
            raise ValueError(error)

    @contextlib.contextmanager
    def _aside(self, bar: tqdm) -> Iterator[None]:
        """What is measured in between is no training: neither samples per second nor the time to go count it."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.meter.start += seconds
        if not bar.disable:
            bar.start_t += seconds

    def whole(self, *, wanted: bool = True) -> Objective | None:
        """The objective with all of its parameters; of a sharded run a copy on the main process, None on the others.

        Every process calls it; if none wants it nothing is copied.
        """
        return self.objective if self.sharding is None else self.sharding.whole(wanted=wanted)

    def _check_health(self, *, again: bool = False) -> None:
        """Measures on the main process; the model's mode and all random states stay as they are.

        `again`: what was measured at this step stands in the records already.
        """
        objective = self.whole(wanted=self.health is not None)
        if self.health is not None and objective is not None and self.accelerator.is_main_process:
            metrics, self.features = self.health(*objective.encoders, self.accelerator.device)
            if self.progress.step == 0 and self.features:
                self.at_init = {name: singular_values(x) for name, x in self.features.items() if "student" in name}
            if not again:
                whole = {"total_steps": self.train.steps, "peak_lr": self.train.lr}
                self.history.add({"step": self.progress.step, **whole, **metrics})
                self.verdict = self.health.judge(self.history.records)
                self.accelerator.log(metrics, step=self.progress.step)
        self.accelerator.wait_for_everyone()

    def _run_probe(self) -> None:
        """As a health check: on the main process, and nothing of the training changes."""
        objective = self.whole(wanted=self.probe is not None)
        if self.probe is not None and objective is not None and self.accelerator.is_main_process:
            metrics = self.probe(*objective.encoders, self.accelerator.device)
            self.history.add({"step": self.progress.step, **metrics})
            self.accelerator.log(metrics, step=self.progress.step)
            self.plot()
        self.accelerator.wait_for_everyone()

    def _every(self, steps: int) -> int:
        return steps or max(1, self.train.steps // 10)

    def _stopped(self) -> bool:
        return self.validation is not None and self.validation.stops(self.progress.step)

    def _collapsed(self) -> bool:
        mine = torch.tensor(float(self.verdict.state == "collapsed"), device=self.accelerator.device)
        return bool(all_sum(mine).item())  # only the main process judges

    def plot(self) -> None:
        """Curves and, after a health check, the singular-value spectrum, as PNG in the run folder."""
        if not self.accelerator.is_main_process:
            return
        for name in self.health.names if self.health is not None else ("",):
            suffix = f"_{name}" if name else ""
            plot_curves(of_name(self.history.records, name), self.folder / f"curves{suffix}.png")
            prefix = f"{name}/" if name else ""
            spectra = {
                key: singular_values(self.features[prefix + key]) for key in SIDES if prefix + key in self.features
            }
            if spectra and f"{prefix}student" in self.at_init:
                spectra["random init"] = self.at_init[f"{prefix}student"]
            drawn = {key: values for key, values in spectra.items() if values.any()}  # constant features have none
            if drawn:
                plot_spectrum(drawn, self.folder / f"spectrum{suffix}.png")

    def _say(self, text: str) -> None:
        self.accelerator.print(text)


def _checked(loss: Any, objective: Objective) -> Loss:
    """What `forward` returned. ValueError: it is no Loss."""
    if isinstance(loss, Loss) and all(isinstance(x, Tensor) and not x.ndim for x in (loss.total, loss.count)):
        return loss
    raise ValueError(
        f"forward of {type(objective).__name__} returned a {type(loss).__name__}; it must be a Loss (d2v/types.py): "
        "total, a sum over predictions, and count, how many they are, each a tensor of one number, and metrics"
    )
