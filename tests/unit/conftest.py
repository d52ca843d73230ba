"""Copies of the Hub's data sets and models, and of the user's own files, for the tests of the paper overlay."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def _paths(root: Path):
    """The variables of the overlay's paths name folders under `root`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RECLAIM_HUB", "RECLAIM_DATA", "ISIC"):
            patch.setenv(name, str(root / name))
        yield patch


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory):
    """Where all of it lies."""
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="session")
def folders(hub_root):
    """Canonical folders of the overlay's data sets, by name."""
    import datasets
    import huggingface_hub

    import hub_copies
    import paper_files
    from reclaim.sources import materialize

    def folder(name: str) -> Path:
        target = hub_root / "data" / name
        if target.exists():
            return target
        spec = hub_copies.overlay()["data"][name]
        with _paths(hub_root) as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(hub_root / "cache"))
            if spec["source"] == "local":
                paper_files.write_files(spec)
            elif spec["source"] == "git":
                paper_files.write_prompts(hub_root / spec["folder"])
                spec = {"kind": spec["kind"], "source": "local", "path": str(hub_root / spec["folder"])}
            elif "member" in spec:
                archive = paper_files.write_archive(hub_root / "hub" / spec["file"])
                patch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(archive))
            else:
                source = hub_copies.repository(hub_root / "hub" / name, spec)
                spec = {key: value for key, value in spec.items() if key not in ("id", "revision")}
                spec["path"] = str(source)
            materialize(spec, target)
        return target

    return folder


@pytest.fixture(scope="session")
def fetched(hub_root):
    """Folders of models as `fetch` leaves them: by a name of the overlay, or by an architecture of `hub_copies`."""
    import huggingface_hub

    import hub_copies
    from reclaim.fetch import fetch

    def copy_of(repo_id: str) -> Path:
        return hub_root / "models of the Hub" / repo_id

    def snapshot_download(repo_id, revision, local_dir, allow_patterns):
        for name in allow_patterns:
            target = Path(local_dir) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy_of(repo_id) / name, target)

    def list_repo_files(self, repo_id, revision):
        folder = copy_of(repo_id)
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def folder(name: str) -> Path:
        target = hub_root / "models" / name
        if target.exists():
            return target
        models = hub_copies.overlay()["models"]
        spec = models.get(name, {"source": "hub", "id": f"someone/{name}", "revision": "0" * 40})
        source = copy_of(spec["id"]) if spec["source"] == "hub" else hub_root / "RECLAIM_HUB" / Path(spec["path"]).name
        hub_copies.model_copy(hub_copies.ARCHITECTURES.get(name, name), source, pickled=name in hub_copies.PICKLED)
        with _paths(hub_root) as patch:
            patch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
            patch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
            fetch(spec, target)
        return target

    return folder
