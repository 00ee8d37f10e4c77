"""The files that a project is trusted by say what holds: one version, one licence, a workflow that runs .ci/run."""

from pathlib import Path

import yaml

import d2v


def test_one_version_and_one_licence(root: Path):
    citation = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    project = (root / "pyproject.toml").read_text("utf-8")
    assert citation["version"] == d2v.__version__ and f'version = "{d2v.__version__}"' in project
    assert citation["license"] == "Apache-2.0" and 'license = "Apache-2.0"' in project
    assert "Apache License" in (root / "LICENSE").read_text("utf-8")


def test_the_workflow_and_the_templates_are_yaml_that_says_what_is_run(root: Path):
    workflow = yaml.safe_load((root / ".github/workflows/checks.yml").read_text("utf-8"))
    job = workflow["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.13"]
    assert any(step.get("run", "").startswith(".ci/run") for step in job["steps"]) and (root / ".ci/run").is_file()
    for template in (root / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(template.read_text("utf-8"))
        assert content["name"] and content["body"]
