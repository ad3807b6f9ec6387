"""Every public name imports and is documented, in a process that has seen no notebook; modules import only modules before them."""
import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [p.stem.split('_', 1)[1] for p in sorted((ROOT/'nbs').glob('[0-9]*_*.ipynb'))]

def test_names_in_a_clean_process():
    "Notebook globals leak into exports; a fresh process, elsewhere, has none"
    code = f"""
import importlib
for name in {ORDER}:
    module = importlib.import_module('distsmooth.' + name)
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert module.__all__ and not missing, (name, missing)
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd='/')

@pytest.mark.parametrize('name', ORDER)
def test_public_names_are_documented(name):
    module = importlib.import_module(f'distsmooth.{name}')
    things = [getattr(module, n) for n in module.__all__]
    bare = [t.__name__ for t in things if (inspect.isfunction(t) or inspect.isclass(t)) and not inspect.getdoc(t)]
    assert not bare

@pytest.mark.parametrize('name', ORDER)
def test_imports_go_upwards(name):
    tree = ast.parse((ROOT/'distsmooth'/f'{name}.py').read_text())
    used = {n.module.split('.')[1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and n.module.startswith('distsmooth.')}
    used |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level and n.module}
    assert all(ORDER.index(u) < ORDER.index(name) for u in used if u in ORDER), used

def notebooks(): return [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]

@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
def test_notebook_carries_outputs_and_no_errors(path):
    nb = json.loads(path.read_text())
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert outputs and not [o for o in outputs if o['output_type'] == 'error']
    assert 'widgets' not in nb['metadata'], 'drop the saved widget state: it breaks the page builder'
    assert path.stat().st_size < 1_000_000
    ids = [c['id'] for c in nb['cells']]
    assert len(set(ids)) == len(ids)

def test_repository_has_no_large_files():
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if files.returncode: pytest.skip('not a git checkout')
    large = {f: (ROOT/f).stat().st_size for f in files.stdout.split('\0') if f and (ROOT/f).exists() and (ROOT/f).stat().st_size > 5e6}
    assert not large
