"""Settings: what is wrong with them is said in one line, and every YAML that is shipped trains."""

from pathlib import Path

import pytest
import tiny
from tiny import MODALITIES, ROOT

from d2v.config.cli import run_cli
from d2v.config.loading import differences, from_dict, load_config, load_values, save_yaml

# of pretraining; "_" is of bases, which are no recipes, and data/ of what belongs to a data set
RECIPES = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("data", "joint")]
FILES = sorted(path for path in RECIPES if not path.stem.startswith(("finetune", "detect", "_")))
DEMO = str(ROOT / "configs" / MODALITIES[0] / "demo.yaml")


def shrunk(path: Path, folder: Path) -> list[str]:
    """Overrides that make any config of this project train two steps on demo data."""
    raw = load_values(path)
    overrides = [
        *tiny.TRUNK[:-1],
        "data.path=demo",
        "data.split=train",
        "train.steps=2",
        "train.warmup_steps=0",
        "train.start=0",
        "train.batch_size=4",
    ]
    overrides += [
        "train.accumulate=1",
        "train.mixed_precision=no",
        "run.log_every=1",
        "run.workers=0",
        f"run.dir={folder}",
        "run.trackers=[]",
    ]
    overrides += (
        ["objective.top_k=2"]
        if "top_k" in raw.get("objective", {}) or raw.get("objective", {}).get("name") == "data2vec"
        else []
    )
    if "prenet_depth" in raw["model"]["trunk"]:
        overrides.append("model.trunk.prenet_depth=0")
    overrides += tiny.small(raw["objective"]["name"])
    small = {"tokenizer": "null", "min_seconds": "0.1", "masks": "2"}  # of those that a config sets
    overrides += [f"data.{name}={value}" for name, value in small.items() if raw["data"].get(name)]
    return [*overrides, *shrunk_views(raw)] if tiny.compares_views(raw["objective"]["name"]) else overrides


def shrunk_views(raw: dict) -> list[str]:
    """The same for what methods that compare views have besides: heads, queues, and a backbone in the trunk's place."""
    name, frontend = raw["objective"]["name"], next(iter(raw["model"]["frontends"].values()))
    overrides = [*tiny.small_heads(name, raw["objective"]), *tiny.SMALL.get(name, ())]
    overrides += ["model.frontends.image.image_size=32"] if "image_size" in frontend else []
    overrides += ["data.local_size=16"] if raw["data"].get("local_views") else []
    overrides += ["objective.num_samples=0"] if "num_samples" in raw["objective"] else []
    overrides += ["objective.norm_groups=2"] if "norm_groups" in raw["objective"] else []
    if frontend.get("backbone"):
        network = [f"model.frontends.image.{setting}" for setting in ("backbone=test_resnet", "small_stem=false")]
        overrides += [*network, "model.trunk.depth=0", "model.trunk.dim=96"]
        overrides += ["model.trunk.num_heads=12", "model.trunk.mlp_dim=3072"]  # the defaults: of blocks
    return overrides


def slow_but_tiny(path: Path):
    """Of the large recipes two steps take longest, even made tiny."""
    marks = () if path.stem.endswith("_tiny") else pytest.mark.slow
    return pytest.param(path, marks=marks, id=f"{path.parent.name}-{path.stem}")


def test_there_are_configs():
    assert {path.parent.name for path in FILES} == set(MODALITIES)


@pytest.mark.parametrize("path", [slow_but_tiny(path) for path in FILES])
def test_every_config_loads_and_does_two_steps_when_made_tiny(path, tmp_path):
    config = load_config(path)
    assert path.parent.name == config.modality
    header = path.read_text().split("model:")[0]
    assert all(word in header for word in ("# command:", "# hardware:", "hours:", "expected:"))
    loop = tiny.loop_of(load_config(path, shrunk(path, tmp_path)))
    loop()
    assert sorted(tiny.losses(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=3", r"unknown key 'train.stpes'.*did you mean 'steps'\?"),
        ("trian.steps=3", r"unknown key 'trian'.*did you mean 'train'\?"),
        ("model.trunk.dept=3", r"'model.trunk.dept'.*'depth'"),
        ("objective.topk=3", r"'objective.topk'.*'top_k'"),
        ("data.pth=x", r"'data.pth'.*'path'"),
        ("run.zzzzzz=1", r"'run.zzzzzz'.*it may be dir, resume"),
        ("train.steps=many", r"train.steps.*'many'"),
        ("train.steps=1.5", r"train.steps.*'1.5'"),
        ("train.betas=3", r"train.betas"),
        ("train=3", r"train must hold keys"),
        ("model=3", r"model"),
        ("model.frontends.other={}", r"model.frontends must name one modality"),
        ("train.steps", r"argument 'train.steps' is neither key=value nor a config"),
        ("=3", r"argument '=3' is not key=value"),
        ("train.betas=[0.9", r"argument 'train.betas=\[0.9'"),
        ("train.steps=0", r"train.steps is 0; it must be at least 1"),
        ("train.schedule=cosin", r"'cosin'; it may be cosine, polynomial, tri_stage, constant"),
        ("train.mixed_precision=fp8", r"'fp8'; it may be no, bf16, fp16"),
        ("train.warmup_steps=1000000", r"train.warmup_steps is 1000000"),
        ("train.optimizer=adam", r"'adam'; it may be adamw, sgd, lars"),
        ("train.momentum=0.8", r"train.momentum is 0.8, which train.optimizer=adamw does not read.*its default, 0.9"),
        (
            "train={optimizer: sgd, momentum: 1.0, betas: [0.9, 0.98], eps: 1.0e-6}",
            r"train.momentum is 1.0; it must be at least 0 and below 1",
        ),
        (
            "train={optimizer: sgd, betas: [0.9, 0.95], eps: 1.0e-6}",
            r"train.betas is \[0.9, 0.95\], which train.optimizer=sgd does not read",
        ),
        (
            "train={optimizer: lars, betas: [0.9, 0.98], eps: 1.0e-8}",
            r"train.eps is 1e-08, which train.optimizer=lars does not read",
        ),
        ("train={clip: 0.0, clip_each: true}", r"train.clip_each is True, and nothing reads it: train.clip is 0"),
        ("train.end_weight_decay=-0.1", r"train.end_weight_decay is -0.1; it must be 0 or more"),
        ("run.resume=yes", r"run.resume"),
        ("run.trackers=[mlflow]", r"mlflow"),
        ("run.keep=0", r"run.keep is 0"),
        ("model.trunk.dim=33", r"dim 33 is not a multiple of model.trunk.num_heads"),
        ("model.trunk.dropout=1.0", r"model.trunk.dropout is 1.0"),
        ("model.trunk.qkv_bias=q", r"'q'; it may be qkv, qv, none"),
        ("model.trunk={pre_norm: false, layer_scale: 0.1}", r"layer_scale is 0.1"),
        ("objective.name=data3vec", r"d2v.objectives has no 'data3vec'; it has .*data2vec"),
        ("evaluate.k=[]", r"evaluate.k"),
    ],
)
def test_a_wrong_setting_is_named(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(DEMO, [override])
    assert "\n" not in str(caught.value)


def test_nothing_after_the_equals_sign_is_an_empty_text():
    """A shell hands over group='' as group=."""
    config = load_config(
        ROOT / "configs" / "speech" / "data2vec_tiny.yaml", ["evaluate.group=", "data.path=", "run.trackers=[]"]
    )
    assert config.evaluate.group == config.data.path == "" and config.run.trackers == []


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config file .*nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    text = Path(DEMO).read_text()
    for name, content, message in (
        ("twice", text + "\ntrain: {steps: 3}\n", r"twice.yaml cannot be read:.*duplicate key.*train"),
        ("broken", "model: [", r"broken.yaml cannot be read"),
        ("list", "- a\n- b\n", r"must hold sections"),
        ("empty", "", r"model.frontends must name one modality"),
        ("stranger", "model: {frontends: {smell: {}}}", rf"modalities has no 'smell'; it has {', '.join(MODALITIES)}"),
        ("two", f"model: {{frontends: {{{MODALITIES[0]}: {{}}, {MODALITIES[1]}: {{}}}}}}", "must name one modality"),
        ("key", text.replace("train:", "trainn:"), r"unknown key 'trainn'.*did you mean 'train'\?"),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_config(path)
        assert "\n" not in str(caught.value)


def test_numbers_and_defaults(tmp_path):
    config = load_config(
        DEMO, ["train.lr=5e-4", "train.weight_decay=1e-2", f"run.dir={tmp_path}", "train.betas=[0.5,0.6]"]
    )
    assert (config.train.lr, config.train.weight_decay, config.train.betas) == (5e-4, 0.01, [0.5, 0.6])
    assert isinstance(config.train.lr, float) and config.train.seed == 0
    assert load_config(DEMO, ["train.lr=1", "train.lr=2"]).train.lr == 2.0  # the last one counts
    (tmp_path / "few.yaml").write_text(f"model: {{frontends: {{{MODALITIES[0]}: null}}}}\ntrain: {{lr: 5e-4}}\n")
    few = load_config(tmp_path / "few.yaml")
    assert few.train.lr == 5e-4 and few.model.trunk.depth == 12 and few.objective.name == "data2vec"


def test_written_and_read_again_it_is_the_same(tmp_path):
    config = load_config(DEMO, ["data.path=[a,b]", f"run.dir={tmp_path}"])
    save_yaml(config.as_dict(), tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").as_dict() == config.as_dict() == from_dict(config.as_dict()).as_dict()
    assert not [path for path in tmp_path.iterdir() if path.name != "config.yaml"]


def test_differences_leave_out_what_may_not_change_a_result():
    old, new = (
        load_config(DEMO, more).as_dict()
        for more in ([], ["train.lr=0.5", "run.log_every=7", "evaluate.k=[3]", "model.trunk.depth=1"])
    )
    assert differences(old, new) == [
        f"model.trunk.depth: {old['model']['trunk']['depth']} -> 1",
        f"train.lr: {old['train']['lr']} -> 0.5",
    ]
    assert differences(old, old) == []


def test_command_line_prints_one_line(monkeypatch, capsys):
    def main(arguments):
        raise ValueError(f"what is {arguments[0]}?")

    monkeypatch.setattr("sys.argv", ["script", "this"])
    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == 2 and capsys.readouterr().err == "error: what is this?\n"
    monkeypatch.setattr("sys.argv", ["script", "this", "--help"])
    run_cli(main)
    assert capsys.readouterr().out == f"{__doc__}\n"


def test_what_a_recipe_sets_steps_aside_for_what_was_typed():
    """A user who types another optimizer did not write the recipe's betas; what is typed is asked for."""
    train = load_config("image/data2vec_tiny", ["train.optimizer=sgd"]).train
    assert (train.betas, train.eps) == ([0.9, 0.98], 1e-6)  # the defaults: not the recipe's
    with pytest.raises(ValueError, match=r"train.betas is \[0.8, 0.9\], which train.optimizer=sgd does not read"):
        load_config("image/data2vec_tiny", ["train.optimizer=sgd", "train.betas=[0.8,0.9]"])
    views = ["objective.name=simclr", "data.views=[simclr,simclr]"]
    data = load_config("image/data2vec_tiny", views).data
    assert data.min_block == type(data)().min_block and data.views == ["simclr", "simclr"]
    for recipe in ("image/ibot_base", "image/lejepa_base"):  # what steps aside is what others were read under
        assert load_config(recipe, ["data.views=[]", "objective.name=data2vec"]).data.local_views == 0
    network = ["model.trunk.depth=0", "model.frontends.image.backbone=resnet18", "model.trunk.dim=512"]
    for recipe in ("image/data2vec_base", "image/beit_base", "image/data2vec2_base"):
        trunk = load_config(recipe, [*network, *views, "model.trunk.input_norm=false"]).model.trunk
        assert (trunk.layer_scale, trunk.pre_norm, trunk.prenet_depth) == (0, False, 0)
    with pytest.raises(ValueError, match=r"data.min_block is 5, and nothing reads it"):
        load_config("image/data2vec_tiny", [*views, "data.min_block=5"])


def test_what_a_file_of_ones_own_sets_does_not_step_aside(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: image/data2vec_tiny\ntrain: {optimizer: sgd}\n")
    with pytest.raises(ValueError, match=r"train.betas is .*, which train.optimizer=sgd does not read: leave it out"):
        load_config(path)
