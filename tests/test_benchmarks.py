"""The benchmarks run, and both sides of the comparison do the same work."""

import csv
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from d2v.config.loading import load_config
from d2v.modalities import text
from d2v.modalities.text import tokenizer as tokenizers
from d2v.models import positions
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.training.setup import build_objective
from d2v.types import View
from scripts import pretrain


@pytest.fixture
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The modules, as `python benchmarks/step_time.py` finds them."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import step_time
    import work

    return step_time, work


def encoder_size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
def test_both_sides_do_the_same_work(benchmarks, modality: str):
    step_time, work = benchmarks
    size, batch = work.TINY, work.make_batch(modality, work.TINY)
    ours, theirs = step_time.make_step("d2v", modality, size), step_time.make_step("transformers", modality, size)
    extra = {"image": 0, "speech": 0, "text": size.dim}[modality]  # the stock text model has token types
    assert encoder_size(theirs.model.student) == encoder_size(ours.objective.student) + extra
    assert encoder_size(theirs.model.predictor) == encoder_size(ours.objective.predictor)
    assert 0 < batch.hidden.float().mean() < 1
    for step in (ours, theirs):
        losses = [step(batch) for _ in range(2)]
        step.update_teacher()
        assert torch.isfinite(torch.tensor(losses)).all()
    assert step_time.gflop(ours, batch) > 0 and 0 < step_time.share_outside(ours, batch) < 1


def test_memory_is_read(benchmarks):
    step_time, _ = benchmarks
    assert 0 < step_time.memory("VmRSS") <= step_time.memory("VmHWM")


def test_runs_are_compared_in_a_picture(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import compare_runs

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("train: {batch_size: 30}\n")
    records = [
        {"step": 0, "student_knn": 0.1},
        {"step": 20, "loss": 1.0, "samples_per_second": 10.0},
        {"step": 20, "student_knn": 0.2},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert compare_runs.curve(folder, "student") == {"step": [0, 20], "minutes": [0, 1], "accuracy": [10, 20]}
    assert compare_runs.curve(folder, "student", 6.0)["minutes"] == [0, 2]
    compare_runs.main([str(tmp_path / "out.png"), f"ours={folder},{folder}", f"theirs@0.5={folder}", "against=step"])
    assert (tmp_path / "out.png").stat().st_size > 1000
    for wrong in (
        [],
        [str(tmp_path / "out.png"), "of=nobody"],
        [str(tmp_path / "out.png"), f"a={tmp_path}"],
        [str(tmp_path / "out.png"), str(folder)],
    ):
        with pytest.raises(SystemExit):
            compare_runs.main(wrong)
    with pytest.raises(SystemExit, match="no labels"):
        compare_runs.curve(folder, "teacher")


@pytest.mark.parametrize(
    ("modality", "mixed"), [("image", False), ("speech", False), ("speech", True), ("text", False), ("text", True)]
)
def test_embeddings_of_both_sides_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch, modality: str, mixed: bool):
    """No claim about speed: that is for a quiet machine."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import embed
    from work import TINY

    found = embed.compare(modality, mixed, TINY, num=6, batch_size=4, rounds=1)
    assert (
        found["difference"] < 1e-5
        and found["ratio"] == pytest.approx(found["d2v"] / found["transformers"])
        and found["ratio"] > 0
    )
    lengths = embed.lengths_of(modality, mixed, TINY, 6)
    assert (len(set(lengths)) > 1) == mixed


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_both_versions_read_the_same_samples_and_take_a_step(
    root: Path, monkeypatch: pytest.MonkeyPatch, modality: str
):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import masks
    import work

    narrow = ["trunk.dim=48", "trunk.num_heads=4", "trunk.mlp_dim=96", "trunk.depth=2"]
    narrow += [
        f"frontends.{modality}.{field}"
        for field in {"image": ("image_size=32", "patch_size=8"), "speech": ("conv_dim=16",)}[modality]
    ]
    monkeypatch.setattr(masks, "SHORT", (*masks.SHORT, "objective.top_k=2", *(f"model.{field}" for field in narrow)))
    views = {version: masks.batch(modality, version, work.TINY) for version in (1, 2)}
    name = work.MAIN_INPUT[modality]
    assert torch.equal(views[1].inputs[name], views[2].inputs[name])
    assert len(views[2].mask.hidden) == masks.MASKS * len(views[1].mask.hidden)
    share = {"image": 0.8, "speech": 0.5}[modality]
    assert abs(float(views[2].mask.hidden.float().mean()) - share) < 0.06
    for version, view in views.items():
        step = masks.Step(modality, version)
        before = [p.detach().clone() for p in step.objective.student.parameters()]
        step(view)
        assert any(
            not torch.equal(old, new) for old, new in zip(before, step.objective.student.parameters(), strict=True)
        )
    assert step.decoder_seconds(view, repeats=1) > 0


def test_steps_of_configs_are_timed_on_real_batches(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import config_steps

    config_steps.main([str(root / "configs" / "text" / "demo.yaml"), "steps=1", "train.batch_size=2", "train.steps=60"])
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0].endswith("demo.yaml") and row[5] == "60" and float(row[1]) > 0 and float(row[3]) > 0
    with pytest.raises(SystemExit):
        config_steps.main(["steps=1"])


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
def test_fine_tuning_steps_are_compared_on_equal_models(benchmarks, modality: str):
    import finetune_step

    _, work = benchmarks
    found = finetune_step.compare(modality, work.TINY, steps=1)
    assert found["difference"] < 1e-5 and min(found.values()) >= 0 < found["ratio"]


@pytest.mark.parametrize("method", ["moco", "dino"])
@pytest.mark.parametrize("backbone", tiny.first(["test_resnet", "test_vit"]))
def test_steps_that_compare_views_are_those_of_lightly(benchmarks, method: str, backbone: str):
    """As many parameters, the same first loss and the same arithmetic.

    They hold also where each view is a forward pass of its own.
    """
    pytest.importorskip("lightly")
    import joint_step

    step_time, _ = benchmarks
    work = joint_step.small(joint_step.JointWork(method, backbone))
    assert joint_step.check(work) < 1e-5
    ours, *theirs = (
        step_time.gflop(*joint_step.make_task(name, work)) for name in ("d2v", "lightly", "lightly, tuned")
    )
    assert theirs == pytest.approx([ours, ours], rel=1e-4)  # lightly counts the cosine with the key as a product


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_steps_whose_losses_differ_are_not_timed(benchmarks, monkeypatch: pytest.MonkeyPatch, factor: float):
    pytest.importorskip("lightly")
    import joint_peer
    import joint_step

    step = joint_peer.PeerStep.__call__
    monkeypatch.setattr(joint_peer.PeerStep, "__call__", lambda self, views: factor * step(self, views))
    with pytest.raises(AssertionError, match=r"\["):
        joint_step.check(joint_step.small(joint_step.JointWork("moco", "test_resnet")))


def test_a_step_of_ijepa_is_that_of_transformers_layers(root: Path, monkeypatch: pytest.MonkeyPatch):
    """With the same weights: the loss and the gradient of the first layer."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import latent_step

    torch.manual_seed(0)
    ours, theirs = latent_step.ours("tiny", 64), latent_step.Theirs("tiny", 64)
    nn.init.normal_(theirs.mask_token)
    stacks = [(theirs.encoder, ours.student["encoder"]), (theirs.predictor, ours.predictor)]
    stacks.append((theirs.teacher, ours.teacher["encoder"]))
    with torch.no_grad():
        for stock, own in stacks:
            copy_layers(stock, own.trunk)
        for stock, own in (stacks[0], stacks[2]):
            patches = own.frontends["image"].patch_embed
            patches.load_state_dict(stock.embeddings.patch_embeddings.projection.state_dict())
        for name in ("inputs", "outputs"):
            getattr(ours.predictor, name).load_state_dict(getattr(theirs, name).state_dict())
        ours.predictor.mask_token.copy_(theirs.mask_token)
        for stock in (theirs.encoder, theirs.teacher, theirs.predictor):
            width = stock.config.hidden_size
            stock.embeddings.position_embeddings.copy_(positions.fixed(16, (4, 4), width, torch.device("cpu")))
    mask, pixels = latent_step.masks_of(2, (4, 4)), torch.randn(2, 3, 64, 64)
    found = ours([View("image", {"pixel_values": pixels}, mask=mask)])
    expected = theirs(pixels, mask)
    torch.testing.assert_close(found.total / found.count, expected)
    (found.total / found.count).backward()
    expected.backward()
    torch.testing.assert_close(
        ours.student["encoder"].trunk.blocks[0].mlp.fc1.weight.grad, theirs.encoder.layers[0].mlp.fc1.weight.grad
    )


def copy_layers(stock: nn.Module, trunk: nn.Module) -> None:
    """Weights of transformers' layers and last norm, to blocks of ours."""
    for layer, block in zip(stock.layers, trunk.blocks, strict=True):
        attention = layer.attention
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(attention, name), kind) for name in ("q_proj", "k_proj", "v_proj")]
            getattr(block.attention.qkv, kind).copy_(torch.cat(parts))
        block.attention.proj.load_state_dict(attention.o_proj.state_dict())
        block.norm1.load_state_dict(layer.layernorm_before.state_dict())
        block.norm2.load_state_dict(layer.layernorm_after.state_dict())
        block.mlp.fc1.load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp.fc2.load_state_dict(layer.mlp.fc2.state_dict())
    trunk.final_norm.load_state_dict(stock.layernorm.state_dict())


def test_unknown_options_of_steps_that_compare_views_are_named(benchmarks):
    import joint_step

    works, options = joint_step.parse(["dino", "backbones=resnet18,vit_small", "batch=2", "steps=1"])
    assert [work.backbone for work in works] == ["resnet18", "vit_small_patch16_224"] and options["steps"] == 1
    assert {(work.method, work.batch, work.size, work.local_size) for work in works} == {("dino", 2, 112, 48)}
    for wrong in ("byol", "step=1"):
        with pytest.raises(SystemExit, match=wrong.partition("=")[0]):
            joint_step.parse([wrong])


@pytest.mark.parametrize("size", [224, 32])
def test_views_of_both_sides_are_alike(benchmarks, size: int):
    """Random draws differ; what all pictures and draws have in common does not."""
    import augment

    generator = augment.np.random.default_rng(0)
    pictures = [augment.picture(generator, *augment.CASES[size])] * 24
    torch.manual_seed(0)
    made = [side(size)(pictures) for side in augment.SIDES.values()]
    assert all(views.shape == (24, 3, size, size) and views.dtype == torch.float32 for views in made)
    assert (made[0].mean((0, 2, 3)) - made[1].mean((0, 2, 3))).abs().max() < 0.3
    assert min(augment.compare(size, rounds=1, num_images=2).values()) > 0


def test_what_keeping_rows_apart_costs_is_a_share_of_a_step(benchmarks, monkeypatch, capsys):
    """No claim about speed: that is for a quiet machine."""
    import guards

    monkeypatch.setattr(guards, "SMALL", {"depth": 1, "dim": 32, "num_heads": 2, "mlp_dim": 64})
    guards.main(["rows=8", "dim=4", "images=2", "size=32", "rounds=1"])
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in table[1:]] == ["step", *guards.LOSSES]
    step, *losses = ([float(cell.strip(" |%")) for cell in row[1:]] for row in table[1:])
    assert step[2:] == [100, 100] and all(row[0] > 0 and row[2] > 0 for row in losses)
    with pytest.raises(SystemExit, match="row=8 is no option"):
        guards.main(["row=8"])


def test_a_table_of_all_methods(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import table

    assert {"data2vec", "moco", table.CONTROL} <= set(table.methods("text"))
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "results.md").write_text("# Results\n")
    controls = {
        "random init (3 seeds)": {"k-NN 20": 90.0, "k-NN 20, other speaker": 40.0, "linear, other speaker": 60.0}
    }
    for name, seed, knn, probe in (
        ("moco", 0, 50.0, 70.0),
        ("moco", 1, 52.0, 71.0),
        ("dino", 0, 30.0, 61.0),
        ("x", 0, 1.0, 1.0),
    ):
        own = {"export": {"k-NN 20, other speaker": knn, "linear, other speaker": probe}}
        found = {
            "step": 0.5,
            "settings": ["train.steps=600"],
            "minutes": 6,
            "rows": own | (controls if seed == 0 else {}),
        }
        table.keep("speech", table.key_of(name, seed), found, pages)
    table.keep("speech", "mae_0", None, pages)  # it failed
    assert list(table.record("speech", pages)) == ["moco_0", "moco_1", "dino_0", "x_0"]
    for _ in range(2):  # again: in the same place
        table.publish("speech", pages)
    page = (pages / "results.md").read_text()
    assert page.count("## All methods: speech") == 1 and page.startswith("# Results")
    shown = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert shown == [
        "| random init (3 seeds) |  | 40.0 | 60.0 |  |",
        "| moco | 600 | 50.0; 52.0 | 70.0; 71.0 |  |",
        "| dino | 600 | 30.0 | 61.0 | only its probe rises |",
        "| x | 600 | 1.0 | 1.0 | does not rise |",
    ]
    assert (pages / "table_speech.png").stat().st_size > 5000
    assert not (pages / "teacher_speech.png").exists() and "teacher_speech" not in page
    for name in ("data2vec2", table.CONTROL):
        table.keep("speech", table.key_of(name, 0), {**found, "rows": own}, pages)
    table.publish("speech", pages)
    assert (pages / "teacher_speech.png").stat().st_size > 5000
    assert "](teacher_speech.png)" in (pages / "results.md").read_text()


@pytest.mark.parametrize("update", ["true", "false"])
def test_the_settings_of_a_row_are_read(update: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also those of the control, whose teacher nothing anneals."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import table

    recipe = str(table.recipe("text", table.CONTROL))
    small = ["dim=16", "num_heads=2", "mlp_dim=32", "depth=1"]
    settings = [*(f"model.trunk.{one}" for one in small), "objective.top_k=1", f"train.update_teacher={update}"]
    settings += ["data.path=demo", "data.vocab_size=400", "data.block_size=16", "train.batch_size=4"]
    _, scaled = table.timed(recipe, settings, 0.001, 1)
    config = load_config(recipe, [*settings, *scaled, f"run.dir={tmp_path}"])
    assert ("ema_anneal_steps" in str(scaled)) == (update == "true") and config.train.steps >= 1


def test_no_bag_of_words_knows_a_minimal_pair(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import minimal_pairs

    book = tmp_path / "book.txt"
    book.write_text("\n".join(f"The old man number {n} went down to the river again. Yes." for n in range(80)))
    minimal_pairs.main([str(tmp_path / "pairs"), f"text={book}"])
    content: dict[str, set[str]] = {}
    for name in (*minimal_pairs.TASKS, "order"):
        for split in ("train", "test"):
            with (tmp_path / "pairs" / name / f"{split}.csv").open() as file:
                rows = list(csv.DictReader(file))
            bags: dict[str, Counter] = {"right": Counter(), "wrong": Counter()}
            for row in rows:
                bags[row["label"]][" ".join(sorted(re.findall(r"\w+", row["text"])))] += 1
            assert bags["right"] == bags["wrong"] and bags["right"], name
            right = {row["text"] for row in rows if row["label"] == "right"}
            assert not right & {row["text"] for row in rows if row["label"] == "wrong"}
            content[split] = {word for row in rows for word in row["text"].split()} if name == "arguments" else set()
        nouns = {*minimal_pairs.LIVING, *minimal_pairs.THINGS}
        assert not content["train"] & content["test"] & nouns
    table = tmp_path / "questions.csv"
    table.write_text('text,label\n"Where is my new card now, please?",1\nwhy,2\n"how do i get more of these cards",3\n')
    assert minimal_pairs.sentences(table) == [
        ["where", "is", "my", "new", "card", "now", "please"],
        ["how", "do", "i", "get", "more", "of", "these", "cards"],
    ]


def test_sentences_tell_a_words_class_and_bags_do_not(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import word_classes

    for task in word_classes.TASKS:
        words: dict[str, set[str]] = {}
        for split, size in word_classes.SIZE.items():
            found = word_classes.sentences(task, split, seed=1)
            assert len(found) == size and Counter(label for *_, label in found) == dict.fromkeys(range(3), size // 3)
            words[split] = {word for line, *_ in found for word in line.split()}
            for line, start, stop, label in found:
                word, rest = line[start:stop], (line[:start] + line[stop:]).split()
                assert word.isalpha() and line[:start][-1:] in ("", " ") and line[stop : stop + 1] in ("", " ")
                assert task == "context" or word in list(word_classes.CLASSES.values())[label]
                filled = [sum(other in of for other in rest) for of in word_classes.CLASSES.values()]
                assert all(count or place == label for place, count in enumerate(filled))  # the others of its frame
        common = {word for line in (*word_classes.FRAMES, *word_classes.OPENINGS) for word in line.split()}
        assert words["train"] & words["test"] <= common  # no content word is seen before


def test_the_feature_of_a_word_is_the_mean_of_its_tokens(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import word_classes

    found = word_classes.sentences("types", "test", seed=0)[:20]
    tokenizer = tokenizers.train([line for line, *_ in found[:10]], 300)
    frontend = {"vocab_size": len(tokenizer), "max_positions": 64, "mask_token_id": tokenizer.mask_token_id}
    model = D2vModel(D2vConfig({"text": frontend}, {"depth": 1, "dim": 16, "num_heads": 2, "mlp_dim": 16})).eval()
    read = word_classes.Read(tokenizer, found)
    monkeypatch.setattr(word_classes, "BATCH", 7)
    features, bag = read.features(model), read.bag(len(tokenizer))
    for row, (line, start, stop, _) in enumerate(found):
        ids = tokenizer(line)["input_ids"]
        before = len(tokenizer(line[:start].rstrip())["input_ids"]) - 1 if start else 1  # without </s>
        before += tokenizer.decode(ids[before]) == " "  # which may be a token by itself
        many = len(tokenizer(line[:stop])["input_ids"]) - 1 - before
        assert tokenizer.decode(ids[before : before + many]).strip() == line[start:stop]
        with torch.no_grad():
            x = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(features[row]), x[before : before + many].mean(dim=0))
        assert bag[row].sum() == many + len(ids)


def test_a_word_loss_is_of_words_alone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import word_loss

    ids = torch.tensor([5, 5, 6, 7])
    assert word_loss.entropy(ids.numpy()) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    pretrain.main(tiny.arguments("text", tmp_path, "objective={name: mlm}", "train.steps=2", "run.save_every=2"))
    capsys.readouterr()
    word_loss.main([str(tmp_path), "split=test", "steps=2"])
    said = re.search(r": (\S+) nats, (\S+) below the entropy (\S+) of (\d+) hidden words", capsys.readouterr().out)
    loss, below, entropy = (float(said[number]) for number in (1, 2, 3))
    assert entropy - loss == pytest.approx(below, abs=2e-3) and int(said[4]) > 10
    config = load_config(tmp_path / "config.yaml", ["data.split=test"])
    samples = text.Samples(config.data, config.frontend, split="test", folder=tmp_path)
    objective = build_objective(config, 0).eval()
    objective.load_state_dict(load_file(tmp_path / "checkpoints" / "00000002" / "model.safetensors"))
    (view,), _ = text.batches(samples, config.data, config.frontend, config.train.batch_size, 1)(0, 0, 1)
    values, words = word_loss.losses(objective, view)
    assert float(values.sum()) == pytest.approx(float(objective([view]).total.detach()), rel=1e-5)
    assert len(words) == int(objective([view]).count)


def test_jobs_of_a_device_are_done_once_and_cut_off_in_time(root: Path, tmp_path: Path, monkeypatch, capsys):
    """Real functions and commands; that they find a GPU is for one to show."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    import gpu
    import gpu_work

    assert gpu_work.rates("cpu", side=64)["bf16 TFLOP/s"] > 0
    found = gpu_work.step("cpu", "image/demo", 8, "train.mixed_precision=no")
    assert found["samples/s"] == pytest.approx(8000 / found["ms"]) and found["TFLOP"] > 0
    listed = gpu.jobs("cpu", tmp_path, "photos", 0.1)
    (curve,) = (job for job in listed if job.name == "curve image/moco_cifar")
    assert {"train.steps=1940", "data.path=photos", f"run.dir={tmp_path / 'image_moco_cifar'}"} <= {*curve.command}
    cut = gpu.Job("curve", command=(sys.executable, "-c", "import time; time.sleep(60)", f"run.dir={tmp_path}"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 6, "student_knn": 0.5}\n')
    assert gpu.run_command(cut, 0.1) == {
        **{"unfinished": True, "step": 6, "loss": 1.0, "student_knn": 0.5},
        **{"samples_per_second": None, "data_wait": None},
    }
    jobs = [gpu.Job("rates", command=(sys.executable, "-c", "0")), gpu.Job("step a", command=("false",))]
    monkeypatch.setattr(gpu, "jobs", lambda *_: jobs)
    for again in (False, True):
        assert gpu.main([f"out={tmp_path / 'out'}"]) == 1  # `false`, each time
        assert ("rates ..." in capsys.readouterr().out) != again
    with pytest.raises(SystemExit, match="no job is named like nothing"):
        gpu.main(["nothing"])
