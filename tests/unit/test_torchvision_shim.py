"""The shim makes timm and torchvision importable, whatever torch build is installed."""

import subprocess
import sys


def test_timm_and_transformers_import_after_the_shim():
    code = (
        "import reclaim.torchvision_shim, timm, torchvision; from transformers import RobertaForMaskedLM; print('ok')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "ok", run.stderr


def test_nothing_is_declared_where_torchvision_is_absent(monkeypatch):
    import reclaim.torchvision_shim as shim

    monkeypatch.setattr(shim.importlib.util, "find_spec", lambda name: None)
    assert shim._declare() is None


def test_nothing_is_declared_where_the_extension_loads(monkeypatch):
    import reclaim.torchvision_shim as shim

    monkeypatch.setattr(shim, "_extension_loads", lambda package: True)
    assert shim._declare() is None
