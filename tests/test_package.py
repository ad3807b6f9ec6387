"""The house: every public name imports and is documented, in a process that has seen no notebook; no arrow points up; the lines fit."""
import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pytest
import yaml
import distsmooth

ROOT = Path(__file__).resolve().parent.parent
COURSE = [p.stem.split('_', 1)[1] for p in sorted((ROOT/'nbs'/'course').glob('[0-9]*_*.ipynb'))]
MODULES = sorted('.'.join(p.relative_to(ROOT/'distsmooth').with_suffix('').parts) for p in (ROOT/'distsmooth').rglob('*.py') if not p.stem.startswith('_'))
BENEATH = ['checks', 'registry', 'data', 'features']  # what course modules may import besides earlier ones; `plots` stands above denoising

def imports(name):
    "The modules of this package that module `name` imports at its top level or anywhere inside"
    path = ROOT/'distsmooth'/(name.replace('.', '/') + '.py')
    for n in ast.walk(ast.parse(path.read_text(encoding='utf8'))):
        if isinstance(n, ast.ImportFrom) and n.level:
            above = ['distsmooth', *name.split('.')][:-n.level]
            yield '.'.join([*above, *filter(None, [n.module])]).removeprefix('distsmooth').removeprefix('.')
        elif isinstance(n, ast.ImportFrom) and n.module and n.module.startswith('distsmooth.'): yield n.module.removeprefix('distsmooth.')
        elif isinstance(n, ast.Import): yield from (a.name.removeprefix('distsmooth.') for a in n.names if a.name.startswith('distsmooth.'))

def test_names_in_a_clean_process():
    "Notebook globals leak into exports; a fresh process, elsewhere, has none"
    code = f"""
import importlib
for name in {MODULES}:
    module = importlib.import_module('distsmooth.' + name)
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert module.__all__ and not missing, (name, missing)
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd='/')

def test_the_package_itself_is_light_and_has_what_most_people_need():
    code = """
import sys, distsmooth
assert 'torch' not in sys.modules and not set(distsmooth.__all__) - set(dir(distsmooth))
from distsmooth import SmoothedModel, load_dataset, single_step
assert SmoothedModel.from_pretrained and len(load_dataset('digits', 'test')) == 2000 and callable(single_step)
try: distsmooth.nothing
except AttributeError as e: assert 'nothing' in str(e)
else: raise AssertionError
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd='/')

def test_what_a_package_says_of_itself(tmp_path):
    "Built from the sources: links hold elsewhere, types are there, nothing that is optional is required"
    for name in ('settings.ini', 'setup.py', 'README.md', 'CHANGELOG.md', 'LICENSE', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path)
    for name in ('distsmooth', 'distsmooth/engine', 'meta'): (tmp_path/name).mkdir()
    code = 'from setuptools.build_meta import prepare_metadata_for_build_wheel as write; write("meta")'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path, capture_output=True)
    said = next((tmp_path/'meta').rglob('METADATA')).read_text()
    head, _, body = said.partition('\n\n')
    assert f'Version: {distsmooth.__version__}\n' in head and 'Typing :: Typed' in head and head.count('Project-URL') == 3
    assert not re.search(r'Requires-Dist: (tensorboard|jupyterlab|shtab)[^;]*$', head, re.M) and 'extra == "tensorboard"' in head
    links = re.findall(r'\]\(([^)#][^)]*)\)', body)
    assert len(links) > 20 and all(link.startswith('https://') for link in links)

@pytest.mark.parametrize('name', MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(f'distsmooth.{name}')
    things = [getattr(module, n) for n in module.__all__]
    bare = [t.__name__ for t in things if (inspect.isfunction(t) or inspect.isclass(t)) and not inspect.getdoc(t)]
    assert not bare

NO_MODULE = {'start', 'results'}
def test_every_course_notebook_is_a_module(): assert COURSE and set(COURSE) - set(MODULES) <= NO_MODULE

@pytest.mark.parametrize('name', COURSE)
def test_course_modules_import_earlier_ones_only(name):
    if name in NO_MODULE: return
    used = set(imports(name))
    assert not [u for u in used if u.startswith('engine')], 'the course reaches the engine through `registry` alone'
    assert not used - set(COURSE[:COURSE.index(name)]) - set(BENEATH)

@pytest.mark.parametrize('name', MODULES)
def test_no_arrow_points_up(name):
    "What lies beneath the course imports nothing above it; no cycle anywhere"
    if name in BENEATH: assert not set(imports(name)) - {'', *BENEATH}
    seen, todo = set(), list(imports(name))
    while todo:
        u = todo.pop()
        assert u != name, f'{name} imports itself by way of {seen}'
        if u in MODULES and u not in seen: seen.add(u); todo += list(imports(u))

def test_importing_the_course_imports_no_engine():
    code = f"import sys\nfor n in {COURSE}:\n    if n not in {NO_MODULE}: __import__('distsmooth.' + n)\nassert not [m for m in sys.modules if m.startswith('distsmooth.engine')]"
    subprocess.run([sys.executable, '-c', code], check=True, cwd='/')

@pytest.mark.parametrize('name', MODULES)
def test_exported_lines_fit(name):
    text = (ROOT/'distsmooth'/(name.replace('.', '/') + '.py')).read_text(encoding='utf8')
    by_nbdev = next(n for n in ast.parse(text).body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    lines = enumerate(text.splitlines(), 1)
    long = [f'{i}: {line[:60]}...' for i, line in lines if len(line) > 120 and not by_nbdev.lineno <= i <= by_nbdev.end_lineno]
    assert not long

def notebooks(): return [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]

@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
def test_notebook_carries_outputs_and_no_errors(path):
    nb = json.loads(path.read_text())
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert outputs and not [o for o in outputs if o['output_type'] == 'error']
    assert 'widgets' not in nb['metadata'] and not [o for o in outputs if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})], 'a saved widget is dead: run scripts/book --settle'
    assert path.stat().st_size < 1_000_000
    ids = [c['id'] for c in nb['cells']]
    assert len(set(ids)) == len(ids)

TEXTS = [ROOT/name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'TEACHING.md')] + sorted((ROOT/'distsmooth').rglob('README.md'))

def prose(path):
    "Markdown of a file, or of the markdown cells of a notebook"
    if path.suffix != '.ipynb': return path.read_text(encoding='utf8')
    return '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown')

@pytest.mark.parametrize('path', [*notebooks(), *TEXTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_hold(path):
    "What a link names is there; what is written as a path to a notebook or a text, too"
    text = prose(path)
    targets = [t for t in re.findall(r'\]\(<?([^)>#\s]+)', text) if '://' not in t and not t.startswith('mailto:')]
    assert not [t for t in targets if not (path.parent/t).exists()]
    named = re.findall(r'`((?:nbs|scripts|tests|distsmooth)/[\w./-]+\.(?:ipynb|md|py|html))`', text)
    assert not [t for t in named if not (ROOT/t).exists()]

@pytest.mark.parametrize('path', sorted((ROOT/'nbs'/'course').glob('*.ipynb')), ids=lambda p: p.stem)
def test_code_of_the_course_fits_the_page(path):
    "At most 100 columns; a directive of nbdev is no code"
    cells = [(c['id'], ''.join(c['source'])) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    assert not [f'{i}: {line[:60]}...' for i, code in cells for line in code.splitlines() if len(line) > 100 and not line.startswith('#|')]

def words(path): return sum(len(''.join(c['source']).split()) for c in json.loads(path.read_text())['cells'])

def test_the_course_can_be_read_in_the_time_it_names():
    "At most an hour a notebook"
    course = {p.stem: words(p) for p in (ROOT/'nbs'/'course').glob('*.ipynb')}
    assert max(course.values()) <= 6000 and sum(course.values()) <= 60_000, course

def path_words(path):
    "Words of the sections that are not marked as deeper"
    cells = json.loads(path.read_text())['cells']
    sections = re.split(r'(?m)^(?=## )', '\n'.join(''.join(c['source']) for c in cells))
    return sum(len(s.split()) for s in sections if not s.startswith('## Deeper'))

def test_three_hours_are_three_hours():
    "The path in the sidebar: 100 words a minute, as each notebook says itself"
    on = [i for section in yaml.safe_load((ROOT/'nbs'/'sidebar.yml').read_text())['website']['sidebar']['contents'] if isinstance(section, dict)
          for i in section['contents'] if isinstance(i, dict) and i.get('path')]
    read = {i['href']: path_words(ROOT/'nbs'/i['href']) for i in on}
    assert len(on) >= 10 and sum(read.values()) <= 18_000 and sum(i['minutes'] for i in on) <= 180, read
    for i in on:
        opening = (ROOT/'nbs'/i['href']).read_text()[:4000]
        assert f"{i['minutes']} minutes" in opening and abs(i['minutes'] - read[i['href']]/100) <= 3, (i, read[i['href']])

def test_repository_has_no_large_files():
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if files.returncode: pytest.skip('not a git checkout')
    large = {f: (ROOT/f).stat().st_size for f in files.stdout.split('\0') if f and (ROOT/f).exists() and (ROOT/f).stat().st_size > 5e6}
    assert not large
